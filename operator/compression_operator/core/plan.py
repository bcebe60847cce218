"""From a spec to the steps that make its students: their order, their inputs, their fingerprints. Pure."""

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from pydantic.alias_generators import to_camel

from compression_operator.api.phase_settings import PhaseSettings
from compression_operator.api.run import CPU, DEVICES_ANNOTATION, GPUS_ANNOTATION, CompressionRun
from compression_operator.api.spec import CompressionRunSpec, Student
from compression_operator.api.status import CompressionRunStatus
from compression_pipeline.config import (
    FORMER_NAMES,
    PHASES,
    Cache,
    JobConfig,
    Phase,
    Precision,
    digest,
    fingerprint,
    measuring,
)

from .jobs import Job
from .names import job_name
from .phase_steps import STEPS
from .step_spec import Asked, Discovered, PhaseSteps

NOTHING_DISCOVERED: Discovered = MappingProxyType({})

NOTHING_SPARED: Mapping[str, Set[str]] = MappingProxyType({})

NO_FILES: Mapping[str, str] = MappingProxyType({})

MEASURES = frozenset({"validation"})
"""Fields of jobs that only measure what is made."""

_in_camel_case = cache(to_camel)  # asked for the same few fields in every pass

BACKEND_FILLS_IN = ""
"""The store's path, in the configuration of a planned job: only a backend knows it."""


@dataclass(frozen=True)
class PlannedStep:
    """One step: a phase, for one student or for all of them.

    Its fingerprint tells whether it was done, with all that it measures; the artifact is named by what makes it alone.
    """

    name: str
    phase: Phase
    student: str | None
    inputs: Mapping[str, str]  # role (a field of the phase's job) -> the step whose artifact fills it
    configuration: Mapping[str, Any]  # field of the phase's job -> what shapes the artifact
    settings: PhaseSettings
    fingerprint: str | None  # None while the inputs aren't known
    artifact: str | None  # name in the store; None while it isn't known
    precision: Precision | None = None  # that the key counts on, where the configuration says none
    sources: tuple[str, ...] = ()  # steps that read the manifest's sources, which must be right before this one begins

    @property
    def dependencies(self) -> tuple[str, ...]:
        """The steps that make its inputs, each once."""
        return tuple(dict.fromkeys(self.inputs.values()))

    @property
    def predecessors(self) -> tuple[str, ...]:
        """The steps that come first, each once: those that make its inputs, and those that find faults early."""
        return tuple(dict.fromkeys([*self.dependencies, *self.sources]))

    @property
    def key(self) -> str | None:
        """Key of the artifact, if it is known and is not the fingerprint. None if the job finds its own."""
        key = self.artifact.removeprefix(f"{self.phase}-") if self.artifact else None
        return key if key != self.fingerprint and not PHASES[self.phase].reads_sources else None


@dataclass(frozen=True)
class Plan:
    """The steps of a run, each after its inputs."""

    steps: tuple[PlannedStep, ...]

    @property
    def students(self) -> list[str]:
        """Every student that has steps."""
        return list(dict.fromkeys(step.student for step in self.steps if step.student is not None))

    def get(self, name: str) -> PlannedStep | None:
        """The step of this name."""
        return next((step for step in self.steps if step.name == name), None)

    def job(self, step: PlannedStep, *, run: str, attempt: int) -> Job:
        """The job of one attempt at `step`. Raises ValueError while the step's inputs aren't known."""
        artifacts = {role: self._artifact(name) for role, name in step.inputs.items()}
        if step.fingerprint is None or None in artifacts.values():
            raise ValueError(f"the inputs of {step.name} are not known yet")
        settings = step.settings
        config: JobConfig = PHASES[step.phase].job.model_validate(
            {
                "run": run,
                "step": step.name,
                "student": step.student,
                "attempt": attempt,
                "fingerprint": step.fingerprint,
                "key": step.key,
                "store": BACKEND_FILLS_IN,
                "grace_period_seconds": settings.termination_grace_period_seconds,
                "rendezvous_timeout_seconds": settings.rendezvous_timeout_seconds,
                "processes_per_node": settings.per_node,
                "parallelism": settings.split,
                **step.configuration,
                **artifacts,
            }
        )
        return Job(
            name=job_name(run, step.student, step.phase, step.fingerprint, attempt),
            step=step.name,
            phase=step.phase,
            student=step.student,
            attempt=attempt,
            fingerprint=step.fingerprint,
            config=config,
            settings=settings,
            precision=step.precision,
        )

    def _artifact(self, name: str) -> str | None:
        step = self.get(name)
        return step.artifact if step else None


def plan(
    spec: CompressionRunSpec,
    *,
    discovered: Discovered = NOTHING_DISCOVERED,
    sources: Mapping[str, str] = NO_FILES,
    kept: Mapping[str, str] | None = None,
    without: Mapping[str, Set[str]] = NOTHING_SPARED,
    gpus: bool = True,
    maker: str | None = None,
) -> Plan:
    """The steps of `spec`, breadth first: every student is pruned before the first is distilled, so that what cannot
    work shows early.

    `discovered` is what steps have found (see `discovered_in`). The keys of all steps that read an artifact which is
    named by what its job finds rest on that, and are None until it is known; equal content gives equal fingerprints in
    any run. `sources` has by annotation (see `files`) digests of the local files that the spec names: what reads them
    runs again when they change. `kept` holds fingerprints, by step, that stand as they are: those of the same spec
    planned earlier, perhaps by another version of the operator. `without` holds the roles, by step, that are not filled
    (see `PhaseSteps.spares`). `gpus`: whether a phase gets GPUs that asks for some;
    the arithmetic that is left to the machine is settled by that. `maker`: whose artifacts alone the run shares, if not
    everybody's: they have names of their own then. Empty: not known yet.
    """
    builder = _Builder(spec, discovered, sources, kept or {}, without, gpus=gpus, maker=maker)
    for phase in Phase:
        steps = STEPS[phase]
        if steps.wanted(spec):
            for student in steps.students(spec, discovered) if PHASES[phase].per_student else (None,):
                builder.add(steps, student)
    return Plan(tuple(builder.steps.values()))


def plan_of(
    run: CompressionRun,
    *,
    discovered: Discovered,
    kept: Mapping[str, str] | None = None,
    without: Mapping[str, Set[str]] = NOTHING_SPARED,
) -> Plan:
    """The steps of a run, on the machine and of the files that it notes (see `plan`)."""
    return plan(
        run.spec,
        discovered=discovered,
        sources=run.metadata.annotations,
        kept=kept,
        without=without,
        gpus=runs_on_gpus(run),
        maker=maker_of(run),
    )


def runs_on_gpus(run: CompressionRun) -> bool:
    """Whether phases of the run that ask for GPUs get them: a machine may have none."""
    return run.metadata.annotations.get(DEVICES_ANNOTATION) != CPU


def gpus_of(run: CompressionRun) -> int | None:
    """GPUs of the one machine that runs all; None on a cluster, which has what the phases ask for."""
    noted = run.metadata.annotations.get(GPUS_ANNOTATION)
    return int(noted) if noted is not None else None


def discovered_in(status: CompressionRunStatus) -> Discovered:
    """What the status keeps of all that steps have found and other steps are planned by."""
    found = {
        step_name(phase): steps.discovery.read(status) for phase, steps in STEPS.items() if steps.discovery is not None
    }
    return {name: finding for name, finding in found.items() if finding is not None}


def phases_that_were_planned(status: CompressionRunStatus) -> Set[Phase]:
    """The phases whose fingerprints in the status are of the plan in force: those up to the first one whose finding,
    which the later ones are planned by, is not known.
    """
    planned = set[Phase]()
    for phase in Phase:
        planned.add(phase)
        discovery = STEPS[phase].discovery
        if discovery is not None and discovery.read(status) is None and status.step(step_name(phase)) is not None:
            break
    return planned


def forget_discoveries(status: CompressionRunStatus, steps: Collection[str]) -> CompressionRunStatus:
    """The status without what these steps have found."""
    for phase, entry in STEPS.items():
        if entry.discovery is not None and step_name(phase) in steps:
            status = entry.discovery.forget(status)
    return status


def maker_of(run: CompressionRun) -> str | None:
    """Whose artifacts alone the run takes; None where anybody's, empty where the run has not been given a UID yet."""
    match run.spec.cache:
        case Cache.RUN:
            return f"run {run.metadata.uid}" if run.metadata.uid else ""
        case Cache.STORE:
            return None


def step_name(phase: Phase, student: str | None = None) -> str:
    """`<phase>-<student>`, or `<phase>` for a step that is for all students."""
    return f"{phase}-{student}" if student else phase.value


class _Builder:
    """Collects steps; each finds its inputs among those before it."""

    def __init__(
        self,
        spec: CompressionRunSpec,
        discovered: Discovered,
        sources: Mapping[str, str],
        kept: Mapping[str, str],
        without: Mapping[str, Set[str]],
        *,
        gpus: bool,
        maker: str | None,
    ) -> None:
        self.steps: dict[str, PlannedStep] = {}
        self._keys: dict[str, str | None] = {}
        self._spec = spec
        self._discovered = discovered
        self._sources = sources
        self._kept = kept
        self._without = without
        self._gpus = gpus
        self._maker = maker

    def add(self, steps: PhaseSteps, student: Student | None) -> None:
        """Add a step; its inputs are among those before it."""
        phase = steps.phase
        of_student = student.name if student else None
        name = step_name(phase, of_student)
        inputs = {
            role: step_name(other, of_student if PHASES[other].per_student else None)
            for role, other in {**steps.inputs(self._spec), **steps.of_student(self._spec, student)}.items()
            if role not in self._without.get(name, ())
        }
        on_gpu = self._gpus and self._spec.phases.of(phase).gpus_per_node > 0
        precision = Precision.BF16 if on_gpu else Precision.FP32
        configuration = steps.configuration(self._spec, student, precision)
        mark, key = self._marks(name, steps, configuration, inputs, precision)
        if PHASES[phase].reads_sources:
            # It is named by the content that was found, so that two ways to the same content share it.
            found = self._discovered.get(name)
            key = steps.discovery.key(found) if steps.discovery and found else None
        self._keys[name] = key
        self.steps[name] = PlannedStep(
            name=name,
            phase=phase,
            student=of_student,
            inputs=inputs,
            configuration=configuration,
            settings=self._spec.phases.of(phase),
            fingerprint=mark,
            artifact=f"{phase}-{key}" if key else None,
            precision=precision if steps.depends_on_device else None,
            sources=self._sources_before(phase),
        )

    def _sources_before(self, phase: Phase) -> tuple[str, ...]:
        """What a step waits for beside its inputs, so that no source that turns out to be wrong does so when GPUs are
        taken. A student that is made is handed out whatever the sources.
        """
        if PHASES[phase].reads_sources or PHASES[phase].delivers:
            return ()
        return tuple(name for name, step in self.steps.items() if PHASES[step.phase].reads_sources)

    def _marks(
        self,
        name: str,
        steps: PhaseSteps,
        configuration: Mapping[str, Any],
        inputs: Mapping[str, str],
        precision: Precision,
    ) -> tuple[str | None, str | None]:
        """Fingerprint of the step and key of its artifact; none of either while the inputs aren't known."""
        watched = steps.watches(configuration)
        shaping = {role: step for role, step in inputs.items() if role not in watched}
        asked = steps.asks(configuration)
        keys = {role: key for role, step in shaping.items() if (key := self._key_of(step, asked)) is not None}
        if len(keys) < len(shaping) or self._maker == "":
            return None, None
        measuring_alone = frozenset[str]() if steps.measures_choose(configuration) else MEASURES
        apart = measuring_alone | watched
        shaped_by = {**configuration, **asked}
        blocks = {_in_camel_case(field): block for field, block in shaped_by.items() if field not in apart}
        if PHASES[steps.phase].reads_sources:
            blocks["sources"] = self._sources.get(steps.files) or None
            blocks["maker"] = self._maker  # all later keys rest on this one
        if steps.depends_on_device:
            blocks["precision"] = steps.arithmetic(configuration, precision)
        key = fingerprint(steps.phase, blocks, keys)
        measures = {
            FORMER_NAMES.get(field, field): configuration[field] for field in measuring_alone & configuration.keys()
        }
        mark = measuring(key, measures)
        kept = self._kept.get(name, mark)
        return (mark, key) if kept == mark else (kept, kept)

    def _key_of(self, step: str, asked: Asked) -> str | None:
        """Key of what is read of another step's artifact: of the tasks, where some are asked alone, that of these."""
        key, discovery, found = self._keys[step], STEPS[self.steps[step].phase].discovery, self._discovered.get(step)
        names = {task.name for block in asked.values() for task in block.tasks}
        parts: Mapping[str, str] = discovery.parts(found) if discovery and found else {}
        read = {name: parts[name] for name in names & parts.keys()}
        return digest(read) if key is not None and names and read.keys() == names else key
