"""Prometheus metrics of the operator: names and units by Prometheus' conventions, in a registry of their own.

What is true now (runs and steps by phase and state, progress) is read from the cache when Prometheus asks, so it cannot
be stale after a restart; what has happened is counted.
"""

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from compression_operator.api.run import CompressionRun
from compression_operator.api.status import CompressionRunStatus, RunPhase, Step, StepState

STEP_SECONDS = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 86400, 259200, 604800)
RECONCILE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Everything the operator tells Prometheus."""

    def __init__(
        self,
        runs: Callable[[], Iterable[CompressionRun]],
        queue: Callable[[], int],
        leads: Callable[[], bool],
        *,
        per_run: bool,
        unreadable: Callable[[], int] = lambda: 0,
        others: Callable[[], int] = lambda: 0,
        denied: Callable[[], Mapping[str, bool]] = dict,
        outdated: Callable[[], bool] = lambda: False,
    ) -> None:
        """`runs`, `queue` and `leads` are asked at each scrape; runs only where this replica leads, so that sums over
        replicas are right. `per_run`: progress and loss of each run, a series for each running step. `unreadable`: how
        many runs there are besides that this version does not understand. `others`: how many another installation of
        the operator looks after. `denied`: whether it is, for each namespace that is to be watched; under no name: the
        whole cluster. `outdated`: whether the cluster's CRD is older than this operator.
        """
        registry = self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        registry.register(_Now(runs, unreadable, others, queue, leads, denied, outdated, per_run=per_run))
        self.reconcile_seconds = Histogram(
            "compression_reconcile_duration_seconds",
            "Time of one pass over a run, API calls included.",
            buckets=RECONCILE_SECONDS,
            registry=registry,
        )
        self.reconcile_errors = Counter(
            "compression_reconcile_errors_total", "Passes that failed and are tried again.", registry=registry
        )
        self._requests = Counter(
            "compression_api_requests_total",
            "Requests to the Kubernetes API by verb and HTTP status (0: no answer). Neither the watches that last, nor "
            "the lists that they begin with; the short watches of each resync are counted, as verb watch.",
            ["verb", "code"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "compression_api_request_duration_seconds",
            "Time of the requests that compression_api_requests_total counts.",
            ["verb"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self._step_seconds = Histogram(
            "compression_step_duration_seconds",
            "Running time of the attempts that ended a step, by outcome.",
            ["phase", "outcome"],
            buckets=STEP_SECONDS,
            registry=registry,
        )
        self._retries = Counter(
            "compression_step_retries_total",
            "Attempts that ended without success and are followed by another, by reason.",
            ["phase", "reason"],
            registry=registry,
        )

    def request(self, verb: str, code: int, seconds: float) -> None:
        """A request to the API server has been answered. Called from threads."""
        self._requests.labels(verb, str(code)).inc()
        self._request_seconds.labels(verb).observe(seconds)

    def written(self, before: CompressionRunStatus, after: CompressionRunStatus) -> None:
        """A run's status has been replaced: count what its steps did. So each of these is counted once, by the replica
        that told of it, also where it had only just begun to lead.
        """
        steps = {step.name: step for step in before.steps}
        for step in after.steps:
            self._count(steps.get(step.name), step)

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _count(self, before: Step | None, step: Step) -> None:
        ended = step.state.final and (before is None or before.state is not step.state)
        if ended and step.start_time and step.completion_time:
            seconds = (step.completion_time - step.start_time).total_seconds()
            outcome = "Cached" if step.cached else step.state.value
            self._step_seconds.labels(step.phase.value, outcome).observe(max(seconds, 0.0))
        failure = step.last_failure
        new = failure is not None and (before is None or before.last_failure != failure)
        if failure is not None and new and step.state is not StepState.FAILED:
            self._retries.labels(step.phase.value, failure.exit_class).inc()


class _Now(Collector):
    """Gauges made at scrape time from the runs as they are."""

    def __init__(
        self,
        runs: Callable[[], Iterable[CompressionRun]],
        unreadable: Callable[[], int],
        others: Callable[[], int],
        queue: Callable[[], int],
        leads: Callable[[], bool],
        denied: Callable[[], Mapping[str, bool]],
        outdated: Callable[[], bool],
        *,
        per_run: bool,
    ) -> None:
        self._runs = runs
        self._unreadable = unreadable
        self._others = others
        self._denied = denied
        self._outdated = outdated
        self._queue = queue
        self._leads = leads
        self._per_run = per_run

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("compression_queue_depth", "Runs that wait for a worker.", value=self._queue())
        leads = self._leads()
        yield GaugeMetricFamily("compression_leader", "Whether this replica leads (1) or waits (0).", value=leads)
        refused = GaugeMetricFamily(
            "compression_namespace_denied",
            "Whether a namespace that this replica is to watch is denied to it (1), as it is once it was deleted. "
            "Without a namespace: the whole cluster.",
            labels=["namespace"],
        )
        for namespace, denied in self._denied().items():
            refused.add_metric([namespace], denied)
        yield refused
        yield GaugeMetricFamily(
            "compression_crd_outdated",
            "Whether the cluster's CRD lacks fields that this replica knows (1): it is of an older version.",
            value=self._outdated(),
        )
        if not leads:
            return
        runs = list(self._runs())
        by_phase = GaugeMetricFamily("compression_runs", "CompressionRuns by phase.", labels=["phase"])
        phases = Counts(run.status.phase for run in runs)
        for phase in RunPhase:
            by_phase.add_metric([phase.value], phases[phase])
        yield by_phase
        yield GaugeMetricFamily(
            "compression_runs_unreadable",
            "CompressionRuns that this version of the operator does not understand; they have no phase here.",
            value=self._unreadable(),
        )
        yield GaugeMetricFamily(
            "compression_runs_managed_elsewhere",
            "CompressionRuns that another installation of the operator looks after (status.managedBy).",
            value=self._others(),
        )
        steps = [step for run in runs for step in run.status.steps]
        by_state = GaugeMetricFamily("compression_steps", "Steps by phase and state.", labels=["phase", "state"])
        for (phase, state), number in sorted(Counts((step.phase.value, step.state.value) for step in steps).items()):
            by_state.add_metric([phase, state], number)
        yield by_state
        if self._per_run:
            yield from self._each(runs)

    def _each(self, runs: Iterable[CompressionRun]) -> Iterator[GaugeMetricFamily]:
        labels = ["namespace", "run", "step"]
        ratio = GaugeMetricFamily(
            "compression_run_progress_ratio", "Share of a running step that is done.", labels=labels
        )
        loss = GaugeMetricFamily("compression_run_loss", "Newest training loss of a running step.", labels=labels)
        speed = GaugeMetricFamily(
            "compression_run_tokens_per_second", "Newest throughput of a running step.", labels=labels
        )
        for run in runs:
            for step in run.status.steps:
                progress = step.progress
                if step.state is not StepState.RUNNING or progress is None:
                    continue
                names = [run.metadata.namespace, run.metadata.name, step.name]
                ratio.add_metric(names, progress.step / max(progress.total_steps, 1))
                for family, value in ((loss, progress.loss), (speed, progress.tokens_per_second)):
                    if value is not None:
                        family.add_metric(names, value)
        yield from cast(Iterable[GaugeMetricFamily], (ratio, loss, speed))
