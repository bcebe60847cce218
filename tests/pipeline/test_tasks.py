"""Tasks: fetched from a folder, and a tiny Hugging Face model scored by them."""

import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.group import Group
from task_folders import DEFINITION, QUESTIONS, evaluated, fetch, write_task
from tiny import write_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression_pipeline.artifact import Store
from compression_pipeline.config import EvaluateConfig, TaskConfig
from compression_pipeline.errors import UserError
from compression_pipeline.tasks import fetching
from compression_pipeline.tasks import model as tasks_model
from compression_pipeline.tasks.model import HuggingFaceModel
from compression_pipeline.tasks.scoring import score

SCORED = "2" * 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, seed=3)
    return folder


def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def by_hand(folder: Path, questions: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Whether the likeliest answer is the right one, and the likeliest by its length, question by question."""
    model, tokenizer = loaded(folder)
    found: list[tuple[float, float]] = []
    for row in questions:
        prompt = tokenizer.encode(f"Question: {row['question']}\nAnswer:")
        likely: list[float] = []
        for choice in row["choices"]:
            whole = tokenizer.encode(f"Question: {row['question']}\nAnswer: {choice}")
            with torch.no_grad():
                logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            likely.append(sum(logits[at - 1, whole[at]].item() for at in range(len(prompt), len(whole))))
        normal = [score / len(choice) for score, choice in zip(likely, row["choices"], strict=True)]
        right = row["answer"]
        found.append((float(likely.index(max(likely)) == right), float(normal.index(max(normal)) == right)))
    return found


def test_a_score_is_the_accuracy_that_is_counted_by_hand(tmp_path: Path, model: Path) -> None:
    write_task(tmp_path / "own")
    folder = Store(tmp_path / "store").open(f"tasks-{fetch(tmp_path, {}).key}").path
    settings = {"name": "calls", "source": "file:own"}
    told = EvaluateConfig.model_validate({"tasks": [settings], "batchSize": 5})
    [plain], every = score(*loaded(model), folder, told)
    expected = by_hand(model, QUESTIONS)
    right = [one for one, _ in expected]
    assert 0 < sum(right) < len(QUESTIONS), "a task that tells nothing"
    assert (plain.metric, plain.samples, plain.shots) == ("acc", 12, 0)
    assert plain.score == pytest.approx(statistics.mean(right))
    assert plain.stderr == pytest.approx(statistics.stdev(right) / 12**0.5)
    low, high = plain.interval or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(1.959964 * (plain.stderr or 0))
    assert every["calls"]["calls"]["acc_norm,none"] == pytest.approx(statistics.mean(two for _, two in expected))
    first = EvaluateConfig.model_validate({"tasks": [settings | {"metric": "acc_norm", "limit": 7}]})
    [limited], _ = score(*loaded(model), folder, first)
    assert (limited.metric, limited.samples) == ("acc_norm", 7)
    assert limited.score == pytest.approx(statistics.mean(two for _, two in expected[:7]))


def test_two_evaluations_give_the_same_bits(tmp_path: Path, model: Path) -> None:
    task = {"name": "calls", "source": "file:own", "shots": 3}
    told = {"tasks": [task], "generation": {"promptTokens": 8, "newTokens": 4, "repeats": 1}}
    results = []
    for mark in "45":  # a store for each, because a score is not measured twice in one
        write_task(tmp_path / mark / "own")
        key = fetch(tmp_path / mark, {}).key
        results.append(evaluated(tmp_path / mark / "store", model, mark * 32, key, **told))
    assert results[0].tasks == results[1].tasks and results[0].tasks[0].shots == 3
    files = [(tmp_path / mark / "store" / "artifacts" / f"evaluate-{mark * 32}" / "scores.json") for mark in "45"]
    assert files[0].read_bytes() == files[1].read_bytes()
    figures = results[0].generation
    assert figures and figures.tokens_per_second > 0 and figures.first_token_seconds > 0 and figures.device


def test_only_scores_are_made_deterministic_not_the_measured_speed_nor_what_comes_after(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path / "own")
    key, seen = fetch(tmp_path, {}).key, list[tuple[str, bool]]()

    def watched(name: str, whole: Any) -> Any:
        def call(*told: Any, **named: Any) -> Any:
            seen.append((name, torch.are_deterministic_algorithms_enabled()))
            return whole(*told, **named)

        return call

    for place, name in (("phases.evaluate", "measure_generation"), ("tasks.scoring", "measure")):
        module = __import__(f"compression_pipeline.{place}", fromlist=[name])
        monkeypatch.setattr(module, name, watched(name, getattr(module, name)))
    generation = {"promptTokens": 8, "newTokens": 4, "repeats": 1}
    task = {"name": "calls", "source": "file:own", "limit": 2}
    evaluated(tmp_path / "store", model, "6" * 32, key, tasks=[task], generation=generation)
    assert seen == [("measure_generation", False), ("measure", True)]
    assert not torch.are_deterministic_algorithms_enabled()


def test_no_more_logits_are_computed_than_are_asked_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, tokenizer = loaded(model)
    requests = [(None, list(range(5, 25)), [3, 4]), (None, list(range(7, 24)), [9]), (None, [5], [6, 7, 8, 9])]
    with torch.no_grad():
        expected = [
            sum(
                whole(torch.tensor([context + text])).logits[0].log_softmax(-1)[at - 1, (context + text)[at]].item()
                for at in range(len(context), len(context + text))
            )
            for _, context, text in requests
        ]
    seen: list[int] = []
    whole.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    monkeypatch.setattr(tasks_model, "AT_ONCE", 2)
    asked = HuggingFaceModel(whole, tokenizer, batch_size=2)
    assert [likely for likely, _ in asked._loglikelihood_tokens(requests)] == pytest.approx(expected, abs=1e-4)
    assert seen == [2, 1, 2, 2], "of the two longest, then of the last, two positions at a time"


def test_a_text_as_a_whole_is_scored_by_few_logits_at_a_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, tokenizer = loaded(model)
    texts = ["What does it return? " * 12, "A list.", "The module " * 7]
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    expected: list[float] = []
    for text in texts:
        tokens = [begin, *tokenizer.encode(text, add_special_tokens=False)]
        with torch.no_grad():
            logits = whole(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
        expected.append(logits.gather(1, torch.tensor(tokens[1:])[:, None]).sum().item())
    seen: list[int] = []
    whole.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    monkeypatch.setattr(tasks_model, "AT_ONCE", 16)
    asked = HuggingFaceModel(whole, tokenizer, batch_size=2)
    scored = asked.loglikelihood_rolling([SimpleNamespace(args=(text,)) for text in texts])
    assert scored == pytest.approx(expected, abs=1e-3) and max(seen) == 16


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_a_reply_is_as_long_as_the_task_says(name: str, model: Path) -> None:
    whole, tokenizer = loaded(model)
    tokens = tokenizer.encode("What does it return?")
    expected = whole.generate(torch.tensor([tokens]), max_new_tokens=5, do_sample=False, pad_token_id=0)
    asked = SimpleNamespace(args=("What does it return?", {"until": "nothing like it", name: 5}))
    [reply] = HuggingFaceModel(whole, tokenizer, batch_size=1).generate_until([asked])
    assert reply == tokenizer.decode(expected[0, len(tokens) :], skip_special_tokens=True)


def test_a_reply_is_the_most_likely_one_whatever_the_checkpoint_prefers(model: Path) -> None:
    whole, tokenizer = loaded(model)

    def reply() -> str:
        asked = SimpleNamespace(args=("What does it return?", {"until": "nothing like it", "max_gen_toks": 20}))
        return HuggingFaceModel(whole, tokenizer, batch_size=1).generate_until([asked])[0]

    plain = reply()
    whole.generation_config.update(repetition_penalty=50.0, num_beams=3, do_sample=True)
    assert reply() == plain


def test_each_task_has_a_digest_that_no_other_task_bears_on(tmp_path: Path) -> None:
    write_task(tmp_path / "own")
    alone = fetch(tmp_path, {}).digests
    (tmp_path / "own" / "others.yaml").write_text(DEFINITION.replace("task: calls", "task: others"))
    both = fetch(tmp_path, {"shots": 2}, {"name": "others"}).digests
    assert alone.keys() == {"calls"} and both["calls"] == alone["calls"] != both["others"]
    write_task(tmp_path / "own", questions=QUESTIONS[1:])
    assert fetch(tmp_path, {}).digests["calls"] != alone["calls"]


def test_the_key_is_the_content_of_definition_and_questions(tmp_path: Path) -> None:
    write_task(tmp_path / "own")
    key = fetch(tmp_path, {}).key
    assert fetch(tmp_path, {"shots": 2, "limit": 3}).key == key, "what is asked of it is no part of a task"
    (tmp_path / "own" / "another.yaml").write_text("task: another\nprocess_docs: !function utils.run\n")
    assert fetch(tmp_path, {}).key == key, "what is wrong with another task is not this one's"
    write_task(tmp_path / "own", DEFINITION.replace("Question:", "Q:"))
    other = fetch(tmp_path, {}).key
    write_task(tmp_path / "own", questions=QUESTIONS[1:])
    assert len({key, other, fetch(tmp_path, {}).key}) == 3


FAULTS = {
    "unknown": ({"name": "nonesuch"}, DEFINITION, "evaluate.tasks[0].name: nonesuch should be defined by one file"),
    "not shipped": (
        {"name": "nonesuch", "source": None},
        DEFINITION,
        "evaluate.tasks[0].name: lm-eval 0.4.13 has no task nonesuch; correct the name, or name the folder",
    ),
    "tag": (
        {"name": "glue", "source": None},
        DEFINITION,
        "evaluate.tasks[0].name: lm-eval 0.4.13 has no task glue; correct the name",
    ),
    "random replies": (
        {},
        DEFINITION.replace('doc_to_choice: "{{choices}}"\n', "")
        .replace("output_type: multiple_choice", "output_type: generate_until\ngeneration_kwargs: {do_sample: true}")
        .replace("metric: acc\n", "metric: exact_match\n")
        .replace("metric: acc_norm\n", "metric: chrf\n"),
        "evaluate.tasks[0].name: calls draws its replies at random (do_sample)",
    ),
    "offline": (
        {"name": "hellaswag", "source": None},
        DEFINITION,
        "evaluate.tasks[0].name: hellaswag has its questions on the Hub (Rowan/hellaswag), which this job may not ask",
    ),
    "code": ({}, DEFINITION + "process_docs: !function utils.run\n", "names Python code (!function), which is not run"),
    "include": ({}, DEFINITION + "include: ../../other.yaml\n", "include is not supported"),
    "class": ({}, DEFINITION + "class: os.system\n", "class is not supported"),
    "Hub": ({}, DEFINITION.replace("path: json", "path: owner/data"), "dataset_path should be one of json, csv"),
    "outside": ({}, DEFINITION.replace("test: questions", "test: ../questions"), "is not in the folder of the task"),
    "kind": ({}, DEFINITION.replace("path: json", "path: [json]"), "calls.yaml: dataset_path should be a name"),
    "kind of a split": ({}, DEFINITION.replace("split: train", "split: [train]"), "training_split should be a name"),
    "metric": (
        {"metric": "f2"},
        DEFINITION,
        "evaluate.tasks[0].metric: calls has no metric f2; choose one of acc",
    ),
    "no metric": ({}, DEFINITION.replace("metric: acc_norm", "metric: own"), "own is no metric of lm-eval"),
    "template": (
        {},
        DEFINITION.replace("{{question}}", "{{question.__class__.__mro__}}"),
        "__class__",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_is_told_before_anything_is_scored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, definition, sentence = FAULTS[name]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_task(tmp_path / "own", definition)
    with pytest.raises(UserError) as raised:
        fetch(tmp_path, told)
    assert sentence in str(raised.value)


def test_a_group_without_a_score_of_its_own_is_refused(tmp_path: Path) -> None:
    found = {"tasks": {"one": None, "two": None}, "groups": {"both": Group("both")}}
    with pytest.raises(UserError) as raised:
        fetching.check(found, TaskConfig(name="both"), "evaluate.tasks[0]")
    assert str(raised.value) == (
        "evaluate.tasks[0].name: both stands for several tasks, and lm-eval gives them no score together; name one of "
        "one, two"
    )


@pytest.mark.parametrize(("name", "folders"), [("minerva_math", None), ("arc_challenge", ["arc"])])
def test_a_group_finds_its_tasks_in_whatever_folder(
    name: str, folders: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def shipped(name: str, folders: list[str] | None) -> dict[str, Any]:
        asked.append(folders)
        raise InterruptedError

    monkeypatch.setattr("compression_pipeline.tasks.harness.shipped", shipped)
    with pytest.raises(InterruptedError):
        fetching.Fetched(tmp_path).shipped(TaskConfig(name=name), "evaluate.tasks[0]")
    assert asked == [folders]


def test_what_lies_in_a_store_names_no_code(tmp_path: Path, model: Path) -> None:
    """Who may write into the store may plant an artifact there; it is data alone."""
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "run.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef docs(rows): return rows\n")
    (evil / "calls.yaml").write_text(DEFINITION + "process_docs: !function run.docs\n")
    settings = EvaluateConfig.model_validate({"tasks": [{"name": "calls"}]})
    for task, sentence in (
        ({"folders": [str(evil)], "questions": {}}, "is no folder of lm-eval"),
        ({"folders": ["../../../evil"], "questions": {}}, "is no folder of lm-eval"),
        ({"definition": {"task": "calls", "dataset_path": "json", "class": "os.system"}, "data": "0"}, "not supported"),
    ):
        (tmp_path / fetching.DEFINITIONS).write_text(json.dumps({"calls": task}))
        with pytest.raises(UserError, match=sentence):
            score(*loaded(model), tmp_path, settings)
    assert not (tmp_path / "ran").exists()


def test_a_line_of_jsonl_ends_where_json_ends_it() -> None:
    table = fetching._table('{"a": "x\u2028y"}\r\n\n{"a": "z"}\n'.encode(), "json", "questions.jsonl")
    assert table.to_pylist() == [{"a": "x\u2028y"}, {"a": "z"}]


def test_a_task_that_lm_eval_ships_is_scored_without_network(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its definition is lm-eval's own, Python and all; its questions are what the Hub gave the step tasks."""
    import datasets

    rows = [
        {
            "activity_label": "Making tea",
            "ctx_a": f"Number {n} fills a kettle.",
            "ctx_b": "then he",
            "endings": ["waits for it to boil.", "paints a wall.", "sleeps.", "sings loudly."],
            "label": str(n % 4),
        }
        for n in range(6)
    ]
    asked: list[str] = []

    def from_the_hub(path: str, **told: Any) -> datasets.DatasetDict:
        asked.append(path)
        split = datasets.Dataset.from_list(rows)
        return datasets.DatasetDict({"train": split, "validation": split, "test": split})

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.load_dataset", from_the_hub)
    settings = {"name": "hellaswag", "source": None, "shots": 2, "metric": "acc_norm"}
    key = fetch(tmp_path, settings).key
    assert asked == ["Rowan/hellaswag"]
    folder = Store(tmp_path / "store").open(f"tasks-{key}").path
    [found], every = score(*loaded(model), folder, EvaluateConfig.model_validate({"tasks": [settings]}))
    assert (found.name, found.metric, found.samples, found.shots) == ("hellaswag", "acc_norm", 6, 2)
    assert {"acc,none", "acc_norm,none"} <= every["hellaswag"]["hellaswag"].keys()
    assert asked == ["Rowan/hellaswag"], "scoring asks nobody"
