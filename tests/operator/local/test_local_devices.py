"""A local run computes in what its machine has, and moved to another kind of machine it is another run."""

from datetime import UTC, datetime
from pathlib import Path

from jobs_world import World, manifest
from looks import PREPARED, at

from compression_operator.api.run import CPU, DEVICES_ANNOTATION, SOURCES_ANNOTATION, CompressionRun
from compression_operator.core.plan import gpus_of
from compression_operator.local.runs import submit
from compression_operator.local.workdir import Workdir
from compression_pipeline.config import FinetuneJob, Precision


def submitted(root: Path, *, gpus: int) -> CompressionRun:
    now, workdir = datetime(2026, 1, 1, tzinfo=UTC), Workdir(root)
    workdir.make(None)
    return submit(workdir, manifest(), sources={SOURCES_ANNOTATION: "same"}, gpus=gpus, now=now, uid="u", retry="r")


def test_another_kind_of_machine_is_an_edit(tmp_path: Path) -> None:
    generations = [submitted(tmp_path, gpus=gpus).metadata.generation for gpus in (0, 0, 1, 2, 0)]
    assert generations == [1, 1, 2, 2, 3]
    assert [gpus_of(submitted(tmp_path, gpus=gpus)) for gpus in (1, 2)] == [1, 2], "their number is noted anew"


def test_a_directory_from_before_devices_were_noted_is_not_edited(tmp_path: Path) -> None:
    before, workdir = submitted(tmp_path, gpus=0), Workdir(tmp_path)
    kept = {name: told for name, told in before.metadata.annotations.items() if name != DEVICES_ANNOTATION}
    workdir.write(before.model_copy(update={"metadata": before.metadata.model_copy(update={"annotations": kept})}))
    after = submitted(tmp_path, gpus=0)
    assert (after.metadata.generation, after.metadata.annotations[DEVICES_ANNOTATION]) == (1, CPU)


def test_without_a_gpu_jobs_are_told_float32() -> None:
    for devices, precision in ((CPU, Precision.FP32), ("GPU", Precision.BF16)):
        world = World(manifest())
        world.annotate(DEVICES_ANNOTATION, devices)
        at(world, *PREPARED)
        [config] = [truth.job.config for truth in world.jobs.values() if truth.live]
        assert isinstance(config, FinetuneJob)
        assert config.finetune.precision is precision
