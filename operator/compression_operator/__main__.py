"""`python -m compression_operator`: the operator's process."""

import argparse
import asyncio
import gc
import logging
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

from .backends.log_watcher import PERIOD_SECONDS
from .backends.pods.platform_defaults import PLAIN, job_defaults
from .cluster.health import MISSED_SECONDS
from .cluster.log_format import LOG_FORMATS, configure
from .cluster.process import operate
from .cluster.resync import StateWentBack
from .cluster.secure_metrics import NoCertificate, SecureMetrics
from .cluster.service import Options, Service
from .core.controller import WORKERS
from .kube.leader import LeadershipLost
from .kube.login import NoCluster

logger = logging.getLogger("compression_operator")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line of the operator; the chart sets it."""
    parser = argparse.ArgumentParser(prog="compression-operator", description="Reconciles CompressionRuns.")
    parser.add_argument("--image", required=True, help="pipeline image of runs that name none")
    parser.add_argument(
        "--jobs",
        type=job_defaults,
        default=PLAIN,
        metavar="JSON",
        help="what every job gets: the chart's values `jobs`",
    )
    parser.add_argument(
        "--namespace", action="append", default=[], help="namespace to watch, repeatable; none: the whole cluster"
    )
    parser.add_argument(
        "--identity", default=os.environ.get("POD_NAME", "compression-operator"), help="of this replica"
    )
    parser.add_argument("--lease-namespace", default=os.environ.get("POD_NAMESPACE", "default"))
    parser.add_argument("--lease-name", default="compression-operator")
    parser.add_argument(
        "--take-over",
        action="append",
        default=[],
        help="installation that is gone, repeatable: its lease's namespace/name; its runs are this one's from now on",
    )
    parser.add_argument("--leader-election", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help="runs that are looked at at once; of one namespace a quarter"
    )
    parser.add_argument("--resync-seconds", type=float, default=60.0, help="a lost event costs this long at most")
    parser.add_argument(
        "--missed-seconds",
        type=float,
        default=MISSED_SECONDS,
        help="/healthz fails once a watch has not told for so long what a list showed",
    )
    parser.add_argument(
        "--progress-seconds", type=float, default=PERIOD_SECONDS, help="between two looks at a run's logs"
    )
    parser.add_argument("--host", help="address of the endpoints; none: every one, of IPv4 and of IPv6")
    parser.add_argument("--port", type=int, default=8080, help="port of /healthz, /readyz and /metrics")
    parser.add_argument(
        "--per-run-metrics", action=argparse.BooleanOptionalAction, default=True, help="progress and loss of each run"
    )
    parser.add_argument(
        "--secure-metrics-port",
        type=int,
        help="port of /metrics over TLS, for whoever the API server allows; none: /metrics is plain, on --port",
    )
    parser.add_argument(
        "--metrics-certificate",
        type=Path,
        default=Path("/etc/compression/metrics"),
        metavar="FOLDER",
        help="tls.crt and tls.key of that port; read again when they change",
    )
    parser.add_argument("--log-format", choices=LOG_FORMATS, default="text")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop. Exit code 1 where leadership was lost, or the cluster went back in time:
    Kubernetes starts a fresh process.
    """
    given = parse(arguments)
    configure(given.log_format, given.log_level)
    options = Options(
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
        secure_metrics=SecureMetrics(given.secure_metrics_port, given.metrics_certificate)
        if given.secure_metrics_port is not None
        else None,
    )
    # What importing made stays to the end. To walk it again at each full collection would hold everything up (30 ms).
    gc.freeze()
    code = 0
    try:
        asyncio.run(_operate(options))
    except* (LeadershipLost, NoCertificate, NoCluster, StateWentBack) as group:
        logger.error("%s", group.exceptions[0])
        code = 1
    except* Exception as group:  # in the log's own format too, for whoever reads that by machine
        logger.critical("ends for what it did not expect", exc_info=group)
        code = 1
    return code


async def _operate(options: Options) -> None:
    await operate(Service(options), options.namespaces)


def leave(code: int) -> NoReturn:
    """End the process. A watch may not have left its thread yet (LEAVING_SECONDS). Then Python's own end is left out,
    because it takes the interpreter away from under the thread, and the process ended by a segmentation fault.
    """
    if any(thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
