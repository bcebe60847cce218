"""What an operator is told when it starts, by the command line that the chart sets."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from compression_operator.backends.log_watcher import PERIOD_SECONDS
from compression_operator.backends.pods.platform_defaults import PLAIN, JobDefaults, job_defaults
from compression_operator.core.controller import WORKERS
from compression_operator.core.managers import Manager

from .health import MISSED_SECONDS
from .log_format import LOG_FORMATS
from .secure_metrics import SecureMetrics


@dataclass(frozen=True)
class Options:
    """What an operator is told when it starts."""

    image: str  # what runs that name no image get
    jobs: JobDefaults = PLAIN  # what the platform gives to every job
    namespaces: tuple[str, ...] = ()  # empty: the whole cluster
    identity: str = "compression-operator"  # of this replica: its pod's name
    lease_namespace: str = "default"
    lease_name: str = "compression-operator"
    leader_election: bool = True
    take_over: tuple[str, ...] = ()  # installations that are gone, whose runs are this one's from now on
    workers: int = WORKERS
    resync_seconds: float = 60.0
    missed_seconds: float = MISSED_SECONDS
    progress_seconds: float = PERIOD_SECONDS
    host: str | None = None  # of the endpoints; None: every address
    port: int = 8080
    per_run_metrics: bool = True
    secure_metrics: SecureMetrics | None = None  # None: /metrics is on `port`, plain

    @property
    def manager(self) -> Manager:
        return Manager(f"{self.lease_namespace}/{self.lease_name}", self.take_over)

    @classmethod
    def of(cls, given: argparse.Namespace) -> "Options":
        """What a command line says."""
        port, certificate = given.secure_metrics_port, given.metrics_certificate
        return cls(
            image=given.image,
            jobs=given.jobs,
            namespaces=tuple(given.namespace),
            identity=given.identity,
            lease_namespace=given.lease_namespace,
            lease_name=given.lease_name,
            leader_election=given.leader_election,
            take_over=tuple(given.take_over),
            workers=given.workers,
            resync_seconds=given.resync_seconds,
            missed_seconds=given.missed_seconds,
            progress_seconds=given.progress_seconds,
            host=given.host,
            port=given.port,
            per_run_metrics=given.per_run_metrics,
            secure_metrics=None if port is None else SecureMetrics(port, certificate),
        )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line of the operator; the chart sets it."""
    parser = argparse.ArgumentParser(prog="compression-operator", description="Reconciles CompressionRuns.")
    parser.add_argument("--image", required=True, help="pipeline image of runs that set no jobTemplate.image")
    parser.add_argument(
        "--jobs",
        type=job_defaults,
        default=PLAIN,
        metavar="JSON",
        help="defaults of all jobs: the chart's value `jobs`",
    )
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        help="namespace to watch; may be repeated (default: the whole cluster)",
    )
    parser.add_argument(
        "--identity",
        default=os.environ.get("POD_NAME", "compression-operator"),
        help="name of this replica in the lease and in Events",
    )
    parser.add_argument("--lease-namespace", default=os.environ.get("POD_NAMESPACE", "default"))
    parser.add_argument("--lease-name", default="compression-operator")
    parser.add_argument(
        "--take-over",
        action="append",
        default=[],
        help="installation that no longer exists, as namespace/name of its lease: this one takes over its runs; may be "
        "repeated",
    )
    parser.add_argument("--leader-election", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--workers",
        type=int,
        default=WORKERS,
        help="number of runs that are processed at the same time; at most a quarter of them are of one namespace",
    )
    parser.add_argument(
        "--resync-seconds",
        type=float,
        default=60.0,
        help="time between two comparisons of the caches with the API server",
    )
    parser.add_argument(
        "--missed-seconds",
        type=float,
        default=MISSED_SECONDS,
        help="time that a watch may lag behind such a comparison before /healthz fails",
    )
    parser.add_argument(
        "--progress-seconds", type=float, default=PERIOD_SECONDS, help="time between two readings of a job's log"
    )
    parser.add_argument("--host", help="address of the endpoints (default: all, of IPv4 and IPv6)")
    parser.add_argument("--port", type=int, default=8080, help="port of /healthz, /readyz and /metrics")
    parser.add_argument(
        "--per-run-metrics",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to expose progress, loss and throughput of each running step",
    )
    parser.add_argument(
        "--secure-metrics-port",
        type=int,
        help="port of /metrics over TLS, for clients that the API server admits (default: plain /metrics on --port)",
    )
    parser.add_argument(
        "--metrics-certificate",
        type=Path,
        default=Path("/etc/compression/metrics"),
        metavar="FOLDER",
        help="folder with tls.crt and tls.key of that port; they are read again when they change",
    )
    parser.add_argument("--log-format", choices=LOG_FORMATS, default="text")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser.parse_args(arguments)
