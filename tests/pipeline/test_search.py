"""search: candidates are cut as prune cuts them, measured as distill measures them, and each of them once."""

import contextlib
import dataclasses
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from stores import DATA, TEACHER, Recorder, common, context, make_store
from task_folders import fetch_task

from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    DistillConfig,
    DistillJob,
    EvaluateConfig,
    ImportanceConfig,
    PruneConfig,
    PruneJob,
    Ranking,
    Search,
    SearchedAxis,
    SearchJob,
    SearchResult,
    Shape,
    SizeBounds,
    TargetConfig,
    TaskConfig,
    TaskScore,
    ValidationConfig,
)
from compression_pipeline.errors import Diverged, Interrupted, UserError
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.megatron.engine import MegatronEngine
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import distill, prune, search
from compression_pipeline.tasks import live

TARGET = TargetConfig(ratio=1.6, tolerance=0.1, candidates=3, axes=list(SearchedAxis))
SEARCHED, PRUNED = "5" * 32, "6" * 32
DISTILL = DistillConfig(
    steps=4, global_batch_size=4, micro_batch_size=2, learning_rate=1e-2, min_learning_rate=1e-3, warmup_steps=1
)


@pytest.fixture(autouse=True)
def shared_engine(engine: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phases find the process group that the tests share: there is one in a process."""
    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))


def settings(**target: Any) -> PruneConfig:
    return PruneConfig(target=TARGET.model_copy(update=target), divisor=16, calibration_samples=8)


def job_in(store: Store, of: PruneConfig, *, attempt: int = 1, distilled: bool = False, **told: Any) -> SearchJob:
    return SearchJob(
        **common(store, "search-small", SEARCHED, attempt),
        data=DATA,
        teacher=TEACHER,
        sequence_length=32,
        prune=of,
        validation=ValidationConfig(samples=6),
        distill=DISTILL if distilled else None,
        **told,
    )


def run(
    store: Store, of: PruneConfig, *, attempt: int = 1, distilled: bool = False, **told: Any
) -> tuple[SearchResult, Recorder]:
    inside, recorder = context(store, SEARCHED, attempt)
    return search.run(job_in(store, of, attempt=attempt, distilled=distilled, **told), inside), recorder


def cut(store: Store, of: PruneConfig, searched: str | None, **told: Any) -> Shape:
    """The shape that prune makes."""
    job = PruneJob(
        **common(store, "prune-small", PRUNED),
        data=DATA,
        teacher=TEACHER,
        sequence_length=32,
        prune=of,
        searched=searched,
        **told,
    )
    prune.run(job, context(store, PRUNED)[0])
    return Shape.of(read_architecture(store.open(f"prune-{PRUNED}").model))


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """Calls of a method of the engine from now on."""
    calls: list[Any] = []
    method = getattr(MegatronEngine, name)

    def called(self: MegatronEngine, *told: Any, **named: Any) -> Any:
        calls.append(told)
        return method(self, *told, **named)

    monkeypatch.setattr(MegatronEngine, name, called)
    return calls


def test_the_candidates_are_measured_and_the_best_is_cut_without_another_forward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    measures, reads = counted(monkeypatch, "measure"), counted(monkeypatch, "read")
    found, _ = run(store, settings())
    assert (len(measures), len(reads)) == (1, 1), "importance is scored once, and the teacher read once"
    expected = Search.of(read_architecture(store.open(TEACHER).model), settings())
    assert expected is not None and found.shapes == expected.found.count
    assert {one.shape for one in found.candidates} == {Shape.of(one) for one in expected.found.best}
    losses = [one.pruned_loss for one in found.candidates if one.pruned_loss is not None]
    assert len(losses) == len(found.candidates) and losses == sorted(losses)
    assert found.candidates[0].distilled_loss is None
    table = json.loads((store.open(f"search-{SEARCHED}").path / "candidates.json").read_text())
    assert table["candidates"] == [one.to_json() for one in found.candidates]

    assert cut(store, settings(), f"search-{SEARCHED}") == found.candidates[0].shape
    assert len(measures) == 1, "prune takes the scores"
    assert store.open(f"prune-{PRUNED}").manifest.inputs["searched"] == f"search-{SEARCHED}"
    # What distill measures of it before its first step.
    again = DistillJob(
        **common(store, "distill-small", "7" * 32),
        data=DATA,
        teacher=TEACHER,
        pruned=f"prune-{PRUNED}",
        sequence_length=32,
        distill=DISTILL.shortened(1),
        validation=ValidationConfig(samples=6),
    )
    told = distill.run(again, context(store, "7" * 32)[0])
    assert told.pruned_loss == pytest.approx(found.candidates[0].pruned_loss, abs=1e-6)
    assert told.teacher_loss == pytest.approx(found.teacher_loss, abs=1e-6)


@pytest.fixture(scope="module")
def distilled(engine: Runtime, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Recorder]:
    """A search with short distillations that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))
        return run(make_store(tmp_path_factory.mktemp("distilled")), settings(distill_steps=4), distilled=True)


def test_a_short_distillation_of_each_decides_and_none_goes_on_from_another(
    tmp_path: Path, distilled: tuple[SearchResult, Recorder]
) -> None:
    found, recorder = distilled
    after = [one.distilled_loss for one in found.candidates if one.distilled_loss is not None]
    assert len(after) == len(found.candidates) and after == sorted(after)
    assert all((one.pruned_loss or 0) > (one.distilled_loss or 0) for one in found.candidates)
    assert not [event for event in recorder.seen if event["event"] == "warning"]
    before, _ = run(make_store(tmp_path), settings())
    pruned = {one.shape: one.pruned_loss for one in before.candidates}
    assert pruned == pytest.approx({one.shape: one.pruned_loss for one in found.candidates}, abs=1e-6)


def test_an_interrupted_search_measures_no_candidate_again_and_goes_on_from_the_checkpoint_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilled: tuple[SearchResult, Recorder]
) -> None:
    store, (undisturbed, _) = make_store(tmp_path), distilled
    method = MegatronEngine.distill
    trained: list[Shape] = []

    def stop(step: int, *told: Any) -> None:
        if step == 2:
            raise Interrupted("was told to stop")

    def stopped_in_the_second(self: MegatronEngine, student: Any, teacher: Any, training: Any, **told: Any) -> Any:
        trained.append(Shape.of(training.architecture))
        stopped = dataclasses.replace(training, on_step=stop) if len(trained) == 2 else training
        return method(self, student, teacher, stopped, **told)

    monkeypatch.setattr(MegatronEngine, "distill", stopped_in_the_second)
    with pytest.raises(Interrupted):
        run(store, settings(distill_steps=4), distilled=True)
    validations = counted(monkeypatch, "validate")
    resumed, recorder = run(store, settings(distill_steps=4), attempt=2, distilled=True)
    assert len(trained) == 4 and trained[1] == trained[2] and len(set(trained)) == 3
    went_on = [event["message"] for event in recorder.seen if "goes on from step" in event.get("message", "")]
    assert len(went_on) == 1 and went_on[0].startswith("goes on from step 2 "), "of the second alone"
    # After the training of the second; the third's loss after pruning, and before and after its training.
    assert len(validations) == 1 + 3
    assert resumed == undisturbed.model_copy(update={"digest": resumed.digest})


def test_a_candidate_that_diverges_comes_last_and_an_attempt_that_goes_on_does_not_try_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilled: tuple[SearchResult, Recorder]
) -> None:
    store, (undisturbed, _) = make_store(tmp_path), distilled
    method = MegatronEngine.distill
    trained: list[Shape] = []

    def diverges(step: int, *told: Any) -> None:
        if step == 2:
            raise Diverged("the loss is nan")

    def the_first_diverges(self: MegatronEngine, student: Any, teacher: Any, training: Any, **told: Any) -> Any:
        trained.append(Shape.of(training.architecture))
        if len(trained) == 2:
            raise Interrupted("was told to stop")
        broken = dataclasses.replace(training, on_step=diverges) if len(trained) == 1 else training
        return method(self, student, teacher, broken, **told)

    monkeypatch.setattr(MegatronEngine, "distill", the_first_diverges)
    with pytest.raises(Interrupted):
        run(store, settings(distill_steps=4), distilled=True)
    found, _ = run(store, settings(distill_steps=4), attempt=2, distilled=True)
    bad = trained[0]
    assert trained.count(bad) == 1 and found.candidates[-1].shape == bad
    assert found.candidates[-1].distilled_loss is None and found.candidates[-1].loss(distilled=True) is None
    assert found.candidates[:-1] == [one for one in undisturbed.candidates if one.shape != bad]


def by(store: Store, depth: str, **told: Any) -> PruneConfig:
    """A search along the layers of a teacher of six, of which it leaves out one, two or three."""
    assert read_architecture(store.open(TEACHER).model).layers == 6
    target = {"axes": [SearchedAxis.LAYERS], "layers": SizeBounds(min=3), "tolerance": 0.5}
    importance = ImportanceConfig(depth=depth, depth_samples=2)
    return settings(**target).model_copy(update={"importance": importance, **told})


def test_layers_by_loss_are_swept_for_the_numbers_of_layers_that_need_it_in_one_shot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "one", num_hidden_layers=6)
    measures = counted(monkeypatch, "measure")
    found, _ = run(store, by(store, "LMLoss"))
    assert {one.layers for one in found.candidates} == {3, 4, 5}
    assert len(measures) == 2, "what one and two layers cost is measured at once, and what three do by itself"
    assert cut(store, by(store, "LMLoss"), f"search-{SEARCHED}") == found.candidates[0].shape
    # A prune in several cuts begins with fewer layers; the candidates are cut in one, and nothing is taken for another.
    store = make_store(tmp_path / "other", num_hidden_layers=6)
    again, _ = run(store, by(store, "LMLoss", iterations=3))
    assert [one.pruned_loss for one in again.candidates] == [one.pruned_loss for one in found.candidates]
    assert cut(store, by(store, "LMLoss", iterations=3), f"search-{SEARCHED}") == found.candidates[0].shape


def test_layers_are_ranked_by_a_task_where_that_is_asked(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", num_hidden_layers=6)
    with pytest.raises(UserError, match=r"needs a task of evaluate\.tasks"):
        run(store, by(store, "Task"))
    told = {
        "tasks": fetch_task(tmp_path, store.root),
        "evaluate": EvaluateConfig(tasks=[TaskConfig(name="calls", limit=2)]),
    }
    found, _ = run(store, by(store, "Task"), **told)
    made = store.open(f"search-{SEARCHED}").manifest.inputs
    assert {one.layers for one in found.candidates} == {3, 4, 5}
    assert made["tasks"] == told["tasks"] and "scores.Task" in made
    assert cut(store, by(store, "Task"), f"search-{SEARCHED}", **told) == found.candidates[0].shape


def test_by_shape_alone_prune_cuts_the_first_candidate(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    by_shape = settings(rank=Ranking.SHAPE)
    expected = Search.of(read_architecture(store.open(TEACHER).model), by_shape)
    assert expected is not None and cut(store, by_shape, None) == Shape.of(expected.found.best[0])


def test_a_target_that_no_shape_meets_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    started = counted(monkeypatch, "build")
    with pytest.raises(UserError, match=r"^prune.target: no shape has .* parameters \(within 10 %\); the nearest are "):
        run(store, settings(ratio=900.0))
    assert not started


def asking(folder: Path, store: Store, *, limit: int | None = None) -> dict[str, Any]:
    """What a job is told that ranks candidates by the task `calls`."""
    asked = EvaluateConfig(tasks=[TaskConfig(name="calls", limit=limit)])
    return {"tasks": fetch_task(folder, store.root), "ranked_by": asked}


def scored_apart(store: Store, folder: Path) -> float:
    """What lm-eval gives a checkpoint in the task, when it is read from its files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from compression_pipeline.tasks.scoring import score

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tasks = next(path for path in (store.root / "artifacts").iterdir() if path.name.startswith("tasks-"))
    [found], _ = score(
        model, AutoTokenizer.from_pretrained(folder), tasks, EvaluateConfig(tasks=[TaskConfig(name="calls")])
    )
    return found.score


def test_candidates_are_ranked_by_a_task_as_the_pruned_student_would_be_scored(tmp_path: Path) -> None:
    store, by_task = make_store(tmp_path / "store"), settings(rank=Ranking.TASK)
    told = asking(tmp_path, store)
    found, _ = run(store, by_task, **told)
    whole = found.teacher_score
    assert whole is not None and (whole.name, whole.metric, whole.samples) == ("calls", "acc", 12)
    assert whole.score == scored_apart(store, store.open(TEACHER).model)
    scores = [one.score for one in found.candidates]
    assert None not in scores and scores == sorted(scores, key=lambda score: -(score or 0))
    for before, after in zip(found.candidates, found.candidates[1:], strict=False):  # few questions: many are equal
        assert before.score != after.score or (before.pruned_loss or 0) <= (after.pruned_loss or 0)
    assert all(one.score_stderr is not None for one in found.candidates)
    interval = found.candidates[0].task_score(whole)
    assert interval is not None and interval.interval is not None
    table = json.loads((store.open(f"search-{SEARCHED}").path / "candidates.json").read_text())
    assert table["candidates"][0]["score"] == scores[0] and table["teacherScore"]["name"] == "calls"
    assert store.open(f"search-{SEARCHED}").manifest.inputs["tasks"] == told["tasks"]

    assert cut(store, by_task, f"search-{SEARCHED}") == found.candidates[0].shape
    assert scored_apart(store, store.open(f"prune-{PRUNED}").model) == scores[0]


def test_no_model_of_the_engine_is_held_while_another_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is scored is a copy, which may be as large as the teacher."""
    build, score, built = MegatronEngine.build, live.score_live, list[weakref.ref[Any]]()
    held: list[int] = []

    def building(self: MegatronEngine, *told: Any, **named: Any) -> Any:
        built.append(weakref.ref(made := build(self, *told, **named)))
        return made

    def scoring(*told: Any, **named: Any) -> list[TaskScore]:
        held.append(sum(one() is not None for one in built))
        return score(*told, **named)

    monkeypatch.setattr(MegatronEngine, "build", building)
    monkeypatch.setattr(live, "score_live", scoring)
    store = make_store(tmp_path / "store")
    run(store, settings(rank=Ranking.TASK), **asking(tmp_path, store, limit=2))
    assert held == [0] * (1 + 3), "the teacher's score, and those of the candidates"


def test_after_a_short_distillation_its_score_decides_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilled: tuple[SearchResult, Recorder]
) -> None:
    """The scores are made up: the worst by loss is the best by score, and one that is lower is better."""
    store = make_store(tmp_path / "store")
    order = [one.shape for one in distilled[0].candidates]
    asked: list[Shape] = []

    def made_up(tensors: Any, architecture: Any, **told: Any) -> list[TaskScore]:
        assert sum(tensor.numel() for _, tensor in tensors) == architecture.parameters
        asked.append(shape := Shape.of(architecture))
        if len(asked) == 3:
            raise Interrupted("was told to stop")
        rank = order.index(shape) if shape in order else -1
        return [TaskScore(name="calls", metric="ppl", score=9.0 - rank, samples=4, higher_is_better=False)]

    monkeypatch.setattr("compression_pipeline.tasks.live.score_live", made_up)
    by_task, told = settings(distill_steps=4, rank=Ranking.TASK), asking(tmp_path, store)
    with pytest.raises(Interrupted):
        run(store, by_task, distilled=True, **told)
    found, _ = run(store, by_task, distilled=True, attempt=2, **told)
    assert [one.shape for one in found.candidates] == order[::-1]
    assert [one.score for one in found.candidates] == [9.0 - n for n in (2, 1, 0)]
    assert len(asked) == 1 + 3 + 1, "the teacher and each candidate once, and once more where it was interrupted"
    losses = {one.shape: one.distilled_loss for one in distilled[0].candidates}
    assert {one.shape: one.distilled_loss for one in found.candidates} == losses, "scoring changes no training"


def test_a_search_by_a_task_without_one_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = counted(monkeypatch, "build")
    with pytest.raises(UserError, match=r"^prune\.target\.rank: Task needs a task of evaluate\.tasks"):
        run(make_store(tmp_path), settings(rank=Ranking.TASK))
    assert not started
