"""From a spec to the steps that make its students: their order, their inputs, their fingerprints. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from compression_operator.api.run import CPU, DEVICES_ANNOTATION, SOURCES_ANNOTATION, CompressionRun
from compression_operator.api.spec import CompressionRunSpec, PhaseSettings, Student
from compression_operator.api.status import Resolved
from compression_pipeline.config import (
    FORMER_NAMES,
    JOBS,
    Cache,
    JobConfig,
    Phase,
    Precision,
    TeacherConfig,
    TrainingConfig,
    fingerprint,
    measuring,
)

from .jobs import Job
from .names import job_name

MEASURES = frozenset({"validation"})
"""Fields of jobs that only measure what is made."""

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

    @property
    def dependencies(self) -> tuple[str, ...]:
        """The steps that come first, each once."""
        return tuple(dict.fromkeys(self.inputs.values()))

    @property
    def key(self) -> str | None:
        """Key of the artifact, where that is known and is not the fingerprint. Prepare's job finds its own."""
        key = self.artifact.removeprefix(f"{self.phase}-") if self.artifact else None
        return key if key != self.fingerprint and self.phase is not Phase.PREPARE else None


@dataclass(frozen=True)
class Plan:
    """The steps of a run, each after its inputs."""

    steps: tuple[PlannedStep, ...]

    def get(self, name: str) -> PlannedStep | None:
        """The step of this name."""
        return next((step for step in self.steps if step.name == name), None)

    def job(self, step: PlannedStep, *, run: str, attempt: int) -> Job:
        """The job of one attempt at `step`. Raises ValueError while the step's inputs aren't known."""
        artifacts = {role: self._artifact(name) for role, name in step.inputs.items()}
        if step.fingerprint is None or None in artifacts.values():
            raise ValueError(f"the inputs of {step.name} are not known yet")
        settings = step.settings
        config: JobConfig = JOBS[step.phase].model_validate(
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
                "processes_per_node": settings.gpus_per_node or settings.processes_per_node,
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
    resolved: Resolved | None = None,
    sources: str | None = None,
    kept: Mapping[str, str] | None = None,
    gpus: bool = True,
    maker: str | None = None,
) -> Plan:
    """The steps of `spec`, breadth first: every student is pruned before the first is distilled, so that what cannot
    work shows early.

    Fingerprints after prepare rest on the content that prepare found (`resolved`) and are None until it is known; equal
    content gives equal fingerprints in any run. `sources` is a digest of the local files that the spec names: prepare
    runs again when they change. `kept` holds fingerprints, by step, that stand as they are: those of the same spec
    planned earlier, perhaps by another version of the operator. `gpus`: whether a phase gets GPUs that asks for some;
    the arithmetic that is left to the machine is settled by that. `maker`: whose artifacts alone the run shares, if not
    everybody's: they have names of their own then. Empty: not known yet.
    """
    teacher = step_name(Phase.FINETUNE) if spec.finetune else step_name(Phase.PREPARE)
    builder = _Builder(spec, resolved, sources, kept or {}, gpus=gpus, maker=maker)
    builder.add(Phase.PREPARE)
    if spec.finetune:
        builder.add(Phase.FINETUNE, data=step_name(Phase.PREPARE), teacher=step_name(Phase.PREPARE))
    common = {"data": step_name(Phase.PREPARE), "teacher": teacher}
    for student in spec.students:
        builder.add(Phase.PRUNE, student, **common)
    for student in spec.students:
        builder.add(Phase.DISTILL, student, **common, pruned=step_name(Phase.PRUNE, student.name))
    for student in spec.students:
        pruned, distilled = (step_name(phase, student.name) for phase in (Phase.PRUNE, Phase.DISTILL))
        builder.add(Phase.EXPORT, student, **common, pruned=pruned, distilled=distilled)
    return Plan(tuple(builder.steps.values()))


def plan_of(run: CompressionRun, *, resolved: Resolved | None, kept: Mapping[str, str] | None = None) -> Plan:
    """The steps of a run, on the machine and of the files that it notes (see `plan`)."""
    noted = run.metadata.annotations
    gpus = noted.get(DEVICES_ANNOTATION) != CPU
    return plan(
        run.spec, resolved=resolved, sources=noted.get(SOURCES_ANNOTATION), kept=kept, gpus=gpus, maker=maker_of(run)
    )


def maker_of(run: CompressionRun) -> str | None:
    """Whose artifacts alone the run takes; None where anybody's, empty where the run has not been given a UID yet."""
    match run.spec.cache:
        case Cache.RUN:
            return f"run {run.metadata.uid}" if run.metadata.uid else ""
        case Cache.STORE:
            return None


def step_name(phase: Phase, student: str | None = None) -> str:
    """`prepare`, `finetune`, `prune-<student>`, `distill-<student>`, `export-<student>`."""
    return f"{phase}-{student}" if student else phase.value


class _Builder:
    """Collects steps; each finds its inputs among those before it."""

    def __init__(
        self,
        spec: CompressionRunSpec,
        resolved: Resolved | None,
        sources: str | None,
        kept: Mapping[str, str],
        *,
        gpus: bool,
        maker: str | None,
    ) -> None:
        self.steps: dict[str, PlannedStep] = {}
        self._keys: dict[str, str | None] = {}
        self._spec = spec
        self._resolved = resolved
        self._sources = sources
        self._kept = kept
        self._gpus = gpus
        self._maker = maker

    def add(self, phase: Phase, student: Student | None = None, **inputs: str) -> None:
        """Add a step; `inputs` maps roles to earlier steps."""
        name = step_name(phase, student.name if student else None)
        on_gpu = self._gpus and getattr(self._spec.phases, phase).gpus_per_node > 0
        precision = Precision.BF16 if on_gpu else Precision.FP32
        configuration = _configuration(self._spec, phase, student, precision)
        mark, key = self._marks(name, phase, configuration, inputs, precision)
        if phase is Phase.PREPARE:
            # It is named by the content that was found, so that two ways to the same content share it.
            key = self._resolved.key if self._resolved else None
        self._keys[name] = key
        self.steps[name] = PlannedStep(
            name=name,
            phase=phase,
            student=student.name if student else None,
            inputs=inputs,
            configuration=configuration,
            settings=getattr(self._spec.phases, phase),
            fingerprint=mark,
            artifact=f"{phase}-{key}" if key else None,
            precision=precision if phase is Phase.PRUNE else None,
        )

    def _marks(
        self,
        name: str,
        phase: Phase,
        configuration: Mapping[str, Any],
        inputs: Mapping[str, str],
        precision: Precision,
    ) -> tuple[str | None, str | None]:
        """Fingerprint of the step and key of its artifact; none of either while the inputs aren't known."""
        keys = {role: key for role, step in inputs.items() if (key := self._keys[step]) is not None}
        if len(keys) < len(inputs) or self._maker == "":
            return None, None
        blocks = {to_camel(field): block for field, block in configuration.items() if field not in MEASURES}
        if phase is Phase.PREPARE:
            blocks["sources"] = self._sources or None
            blocks["maker"] = self._maker  # all later keys rest on prepare's
        if phase is Phase.PRUNE:
            # What the device makes of it: importance measured in another arithmetic may choose another student.
            blocks["precision"] = precision
        key = fingerprint(phase, blocks, keys)
        measures = {FORMER_NAMES.get(field, field): configuration[field] for field in MEASURES & configuration.keys()}
        mark = measuring(key, measures)
        kept = self._kept.get(name, mark)
        return (mark, key) if kept == mark else (kept, kept)


def _configuration(
    spec: CompressionRunSpec, phase: Phase, student: Student | None, precision: Precision
) -> dict[str, Any]:
    """What a phase is told of its artifact, by the fields of its job. All of it enters fingerprints, names do not.

    `precision`: the arithmetic of what computes on the phase's device and isn't told any.
    """
    length = spec.dataset.sequence_length
    match phase:
        case Phase.PREPARE:
            # Without the secret: it opens the teacher and does not change it.
            teacher = TeacherConfig.model_validate(spec.teacher.model_dump(include=set(TeacherConfig.model_fields)))
            return {"teacher": teacher, "dataset": spec.dataset}
        case Phase.FINETUNE:
            return {
                "finetune": _settled(spec.finetune, precision),
                "validation": spec.validation,
                "sequence_length": length,
            }
        case Phase.PRUNE:
            return {"prune": student and student.prune, "sequence_length": length}
        case Phase.DISTILL:
            distill = (student and student.distill) or spec.distill
            return {"distill": _settled(distill, precision), "validation": spec.validation, "sequence_length": length}
        case Phase.EXPORT:
            return {"export": spec.export}


def _settled(training: TrainingConfig | None, precision: Precision) -> TrainingConfig | None:
    """The settings of a training with the arithmetic that it will use: what is trained in another is another model."""
    if training is None or training.precision is not Precision.AUTO:
        return training
    return training.model_copy(update={"precision": precision})
