"""What the tests of the seams say in manifests, and what jobs are told of it."""

from typing import Any, TypeVar

import yaml
from tests.support.runs import a_run as build

from compression_operator.api.resolved import Resolved
from compression_operator.api.rules import World
from compression_operator.api.run import CompressionRun
from compression_operator.api.validate import validate
from compression_operator.core.plan import plan
from compression_pipeline.config import ConfigModel

Job = TypeVar("Job", bound=ConfigModel)


def judged(world: World = World.LOCAL, **spec: Any) -> CompressionRun | list[str]:
    """The run of a manifest with one student, `width`; or a line for each fault of it."""
    manifest = build(length=32).student("width", hiddenSize=64).distill(steps=100).spec(**spec)
    found = validate(yaml.safe_dump(manifest.body()), "run.yaml", world)
    return [str(fault).removeprefix("run.yaml: ") for fault in found] if isinstance(found, list) else found


def a_run(world: World = World.LOCAL, **spec: Any) -> CompressionRun:
    """The run of a manifest that is right."""
    run = judged(world, **spec)
    assert isinstance(run, CompressionRun), run
    return run


def told(run: CompressionRun, step: str, job: type[Job]) -> Job:
    """What the job of a step is told, by way of its JSON."""
    source = {"source": "hf://owner/x", "digest": "d"}
    resolved = Resolved.model_validate({"key": "k" * 32, "teacher": source, "dataset": source})
    steps = plan(run.spec, discovered={"prepare": resolved})
    planned = steps.get(step)
    assert planned
    return job.model_validate(steps.job(planned, run="demo", attempt=1).config.for_image())
