"""A folder with a small multiple-choice task, and the phases that fetch it and score a model by it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compression_pipeline.artifact import Store
from compression_pipeline.config import EvaluateJob, EvaluateResult, TasksJob, TasksResult
from compression_pipeline.context import Context
from compression_pipeline.events import Events
from compression_pipeline.phases import evaluate, tasks

CHOICES = ["a list", "a function of two arguments", "the module", "None"]
QUESTIONS = [
    {"question": f"What does call number {n} return?", "choices": CHOICES[: 2 + n % 3], "answer": n % (2 + n % 3)}
    for n in range(12)
]

DEFINITION = """\
task: calls
dataset_path: json
dataset_kwargs:
  data_files: {test: questions.jsonl, train: solved.jsonl}
training_split: train
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
- metric: acc
  aggregation: mean
  higher_is_better: true
- metric: acc_norm
  aggregation: mean
  higher_is_better: true
metadata: {version: 1.0}
"""


def write_task(folder: Path, definition: str = DEFINITION, questions: list[Any] = QUESTIONS) -> None:
    """The task `calls`, with solved examples."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "calls.yaml").write_text(definition)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions[:4]))


def fetch(folder: Path, *told: dict[str, Any]) -> TasksResult:
    """Run the phase tasks with these tasks, whose source is `own` below the folder unless told otherwise."""
    job = TasksJob.model_validate(
        {
            "run": "r",
            "step": "tasks",
            "attempt": 1,
            "fingerprint": "1" * 32,
            "store": str(folder / "store"),
            "evaluate": {"tasks": [{"name": "calls", "source": "file:own"} | one for one in told]},
            "sourceRoots": {"file": str(folder)},
        }
    )
    context = Context.of(job, environment={})
    context.events = Events(io.StringIO())
    return tasks.run(job, context)


def fetch_task(folder: Path, store: Path) -> str:
    """Publish the task `calls`, written into `folder`, in a store; returns the artifact's name."""
    write_task(folder / "own")
    told = {"run": "test", "step": "tasks", "attempt": 1, "fingerprint": "7" * 32, "store": str(store)}
    evaluate = {"tasks": [{"name": "calls", "source": "file:own"}]}
    job = TasksJob.model_validate({**told, "evaluate": evaluate, "sourceRoots": {"file": str(folder)}})
    context = Context.of(job, environment={})
    context.events = Events(io.StringIO())
    return f"tasks-{tasks.run(job, context).key}"


def evaluated(
    root: Path, model: Path, fingerprint: str, key: str, *, made: str = "3", job: Mapping[str, Any] = {}, **told: Any
) -> EvaluateResult:
    """Run the phase evaluate over a model as an artifact of distill, whose key is all `made`. `told`: what is asked of
    it, `job`: other fields of the job.
    """
    store, distilled = Store(root), f"distill-{made * 32}"
    if store.find(distilled) is None:
        with store.draft("distill", made * 32) as draft:
            (draft.path / "model").mkdir()
            for file in model.iterdir():
                (draft.path / "model" / file.name).write_bytes(file.read_bytes())
            draft.publish(config={}, inputs={}, result={})
    asked = EvaluateJob.model_validate(
        {
            "run": "r",
            "step": "evaluate-width",
            "student": "width",
            "attempt": 1,
            "fingerprint": fingerprint,
            "store": str(root),
            "model": distilled,
            "tasks": f"tasks-{key}",
            "evaluate": told,
            "dtype": "bfloat16",
            "threads": 1,
            **job,
        }
    )
    context = Context.of(asked, environment={})
    context.events = Events(io.StringIO())
    return evaluate.run(asked, context)
