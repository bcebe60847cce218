"""Runs, as a test needs them: `a_run().student("width", hiddenSize=64).distill(steps=3).body()`.

Each call gives another builder, so what several tests share can be named once.
"""

import copy
from typing import Any

from compression_operator.api.run import API_VERSION, KIND, CompressionRun

Body = dict[str, Any]


class Run:
    """A CompressionRun in the making."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def named(self, name: str, **metadata: Any) -> "Run":
        """Name, and other fields of the metadata: namespace, uid, labels."""
        return self._with("metadata", {**self._body["metadata"], "name": name, **metadata})

    def student(self, name: str, *, distill: Body | None = None, **prune: Any) -> "Run":
        """One student more; what pruning leaves of it as in the manifest."""
        added = {"name": name, "prune": prune} | ({"distill": distill} if distill else {})
        return self.spec(students=[*self._body["spec"].get("students", ()), added])

    def finetune(self, **settings: Any) -> "Run":
        return self.spec(finetune=settings)

    def distill(self, **settings: Any) -> "Run":
        return self.spec(distill=settings)

    def claim(self, name: str, **more: Any) -> "Run":
        """The PersistentVolumeClaim that keeps its artifacts."""
        return self.spec(storage={"persistentVolumeClaim": {"claimName": name, **more}})

    def spec(self, **fields: Any) -> "Run":
        """Fields of the spec as the manifest names them, each in place of what it was."""
        return self._with("spec", {**self._body["spec"], **fields})

    def body(self) -> Body:
        """As JSON; the caller's own."""
        return copy.deepcopy(self._body)

    def model(self) -> CompressionRun:
        return CompressionRun.model_validate(self.body())

    def _with(self, part: str, value: Body) -> "Run":
        return Run({**self._body, part: value})


def a_run(
    name: str = "demo", teacher: str = "hf://owner/teacher", text: str = "hf://owner/text", length: int = 64
) -> Run:
    """A run that has a teacher and a text, and no student yet; `length`: tokens of a sequence."""
    spec = {"teacher": {"model": teacher}, "dataset": {"source": text, "sequenceLength": length}}
    return Run({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec})


def tiny_run() -> Run:
    """A local run of `tiny`'s teacher and texts with one student, whose phases take seconds. Give it a `distill`."""
    run = a_run("tiny", "file:teacher", "file:text.jsonl", 32).student(
        "narrow", ffnHiddenSize=96, divisor=32, calibrationSamples=8
    )
    dataset = {**run.body()["spec"]["dataset"], "validationFraction": 0.1}
    return run.spec(dataset=dataset, validation={"samples": 4}, export={"sampleTokens": 4})


def two_students() -> Run:
    """A run of eight steps: prepare, finetune, and prune, distill and export of `width` and `depth`."""
    run = a_run().finetune(steps=200).distill(steps=100)
    return run.student("width", hiddenSize=128).student("depth", dropLayers=[3])
