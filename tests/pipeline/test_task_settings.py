"""How tasks are asked for, and what is told of the machine that scored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from requests import Response
from task_folders import fetch, write_task
from tiny import write_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression_pipeline.artifact import Store
from compression_pipeline.config import EvaluateConfig, ExportDtype, TaskScore
from compression_pipeline.errors import TransientError, UserError
from compression_pipeline.phases import evaluate
from compression_pipeline.tasks import generation
from compression_pipeline.tasks.scoring import score

FILTERED = """\
task: calls
dataset_path: json
dataset_kwargs:
  data_files: {test: questions.jsonl}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 2}
metric_list:
- {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
- {name: strict, filter: [{function: regex, regex_pattern: "answer: (.*)", fallback: missed}, {function: take_first}]}
- {name: loose, filter: [{function: take_first}]}
"""


def test_the_filter_of_a_metric_is_chosen(tmp_path: Path) -> None:
    """Every strict reply is the same word here, which is the right answer to half of the questions."""
    rows = [{"question": f"call {n}", "answer": "missed" if n % 2 else "found"} for n in range(4)]
    write_task(tmp_path / "own", FILTERED, rows)
    write_checkpoint(tmp_path / "model", seed=3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    folder = Store(tmp_path / "store").open(f"tasks-{fetch(tmp_path, {}).key}").path

    def scored(**told: Any) -> TaskScore:
        [found], _ = score(
            model, tokenizer, folder, EvaluateConfig.model_validate({"tasks": [told | {"name": "calls"}]})
        )
        return found

    plain, strict, loose = scored(), scored(filter="strict"), scored(metric="exact_match", filter="loose")
    assert (plain.measure, plain.score) == (strict.measure, strict.score) == ("exact_match, strict", 0.5)
    assert (loose.measure, loose.score) == ("exact_match, loose", 0.0)
    assert loose.change(strict) is None, "they do not compare"
    with pytest.raises(UserError) as raised:
        fetch(tmp_path, {"filter": "flexible-extract"})
    assert str(raised.value) == (
        "evaluate.tasks[0].filter: calls has no filter flexible-extract; choose one of strict, loose"
    )


def refusal(kind: type[HfHubHTTPError], status: int) -> DatasetNotFoundError:
    """What `datasets` raises where the Hub answers so."""
    response = Response()
    response.status_code = status
    error = DatasetNotFoundError("Dataset 'Rowan/hellaswag' doesn't exist on the Hub or cannot be accessed.")
    error.__cause__ = kind("refused", response=response)
    return error


@pytest.mark.parametrize(
    ("raised", "kind", "sentence"),
    [
        (refusal(GatedRepoError, 403), UserError, "which is gated; ask for access at https://huggingface.co/datasets/"),
        (
            refusal(RepositoryNotFoundError, 404),
            UserError,
            "which has no such data set, or a private one; give the run",
        ),
        (ConnectionError("no route to host"), TransientError, "which cannot be reached; use tasks of your own"),
    ],
)
def test_a_refusal_of_the_hub_is_the_users_to_mend_and_only_silence_passes(
    raised: Exception, kind: type[Exception], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(**told: Any) -> None:
        raise raised

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(kind) as found:
        fetch(tmp_path, {"name": "hellaswag", "source": None})
    assert str(found.value).startswith(
        "evaluate.tasks[0].name: hellaswag has its questions on the Hub (Rowan/hellaswag)"
    )
    assert sentence in str(found.value)


def test_a_gpu_computes_in_the_type_of_the_export() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    told = {dtype: evaluate.computed_in(dtype, gpu) for dtype in (None, *ExportDtype)}
    assert told == {
        None: torch.bfloat16,
        ExportDtype.BFLOAT16: torch.bfloat16,
        ExportDtype.FLOAT16: torch.float16,
        ExportDtype.FLOAT32: torch.float32,
    }
    assert {evaluate.computed_in(dtype, cpu) for dtype in (None, *ExportDtype)} == {torch.float32}


@pytest.mark.parametrize(
    ("told", "name"),
    [("processor: 0\nmodel name\t: AMD  EPYC 7B13\nmodel name\t: x\n", "AMD EPYC 7B13"), ("CPU part: 0xd40\n", "CPU")],
)
def test_a_cpu_has_the_name_of_its_model(told: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(generation, "PROCESSORS", tmp_path / "cpuinfo")
    assert generation.device_name(torch.device("cpu")).startswith(f"{name}, {torch.get_num_threads()} thread")
