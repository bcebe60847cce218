"""What a run's report is about: its resource (run.yaml) and its artifacts in the store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import ExportResult, Phase

from .data import Exported, Measured, RunData, StudentData
from .reading import Chain, Reader, exported_of
from .resource import Resource, Step, Student, read_resource


def load_run(run: Path, store: Path) -> RunData:
    """The run whose resource is in the file `run`, with its artifacts in the folder `store`.

    Raises UserError where the file can't be read or is no CompressionRun.
    """
    return run_data(read_resource(run), store)


def run_data(resource: Resource, store: Path) -> RunData:
    """The run of the resource, with its artifacts in the folder `store`."""
    status, spec = resource.status, resource.spec
    found = _Artifacts(Store(store))
    figures = {student.name: student for student in status.students}
    shared = found.chain([step for step in status.steps if step.student is None])
    teacher = found.reader.teacher(
        shared,
        parameters=status.teacher.parameter_count,
        losses=[Measured.of_status(student.validation_loss) for student in status.students],
    )
    students: list[StudentData] = []
    for name in [entry["name"] for entry in spec.get("students") or []] or list(figures):
        mine = [step for step in status.steps if step.student == name]
        known, chain = figures.get(name, Student(name=name)), found.chain(mine)
        exported = _exported(chain, spec)
        export = chain.artifacts.get(Phase.EXPORT)
        checkpoint = known.artifact or (export.name if export else None)
        load = None
        if checkpoint and exported:  # a run on a cluster names its storage, and has no work directory
            load = f"artifacts/{checkpoint}/model" if spec.get("storage") else f"students/{name}"
        students.append(found.reader.student(chain, exported, teacher=teacher, steps=mine, load=load, figures=known))
    teacher, shown = found.reader.comparable(teacher, students)
    return RunData(
        name=resource.metadata.name,
        title=resource.metadata.name,
        phase=status.phase,
        start=status.start_time,
        end=status.completion_time,
        message=status.message,
        spec=spec,
        teacher=teacher,
        students=shown,
        steps=status.steps,
        versions=found.reader.versions,
        gaps=found.reader.gaps,
        place="the store" if spec.get("storage") else "the work directory",
        results=shared.results,
    )


class _Artifacts:
    """Finds the artifacts of steps."""

    def __init__(self, store: Store) -> None:
        self.reader = Reader()
        self._store = store

    def chain(self, steps: Sequence[Step]) -> Chain:
        """Of those steps that have succeeded."""
        phases = {phase.value: phase for phase in Phase}
        found = {phases[step.phase]: self._of(step) for step in steps if step.phase in phases}
        return self.reader.chain({phase: artifact for phase, artifact in found.items() if artifact is not None})

    def _of(self, step: Step) -> Artifact | None:
        if step.artifact is None or step.state != "Succeeded":
            return None
        found = self._store.find(step.artifact)
        if found is None:
            said = f"{step.artifact} is not whole in the store, so what {step.name} measured is left out."
            self.reader.gaps.append(said)
            return None
        self.reader.saw(found.manifest.versions)
        note = self._store.published(step.fingerprint) if step.fingerprint else None
        if note is None or note.artifact != found.name:
            return found
        return self._store.recorded(note) or found  # with the figures that this very step told of it


def _exported(chain: Chain, spec: Mapping[str, Any]) -> Exported | None:
    result, artifact = chain.result(Phase.EXPORT, ExportResult), chain.artifacts.get(Phase.EXPORT)
    if result is None:
        return None
    return exported_of(result, artifact, result.dtype or (spec.get("export") or {}).get("dtype", "bfloat16"))
