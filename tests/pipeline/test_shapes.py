"""Shapes that meet a target: all of them, each once, and the candidates among them."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import LLAMA_8B, NEMOTRON_15B, QWEN_8B

from compression_pipeline.config import (
    Architecture,
    Family,
    ImportanceConfig,
    PruneConfig,
    Search,
    SearchedAxis,
    Shape,
    SizeBounds,
    TargetConfig,
    ValidationConfig,
    served_bytes,
    student_architecture,
    student_faults,
)
from compression_pipeline.sizing import forward_flops, search_flops

ALL = list(SearchedAxis)


@st.composite
def teachers(draw: st.DrawFn) -> Architecture:
    """Small ones, some of whose sizes no divisor divides."""
    groups = draw(st.sampled_from([1, 2, 3]))
    return Architecture(
        family=draw(st.sampled_from(Family)),
        layers=draw(st.integers(1, 6)),
        hidden_size=draw(st.integers(4, 24)),
        ffn_hidden_size=draw(st.integers(4, 40)),
        attention_heads=groups * draw(st.integers(1, 4)),
        query_groups=groups,
        head_dim=4,
        vocabulary_size=draw(st.integers(1, 50)),
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
    )


@st.composite
def bounds(draw: st.DrawFn) -> dict[str, int]:
    least, most = sorted((draw(st.integers(1, 30)), draw(st.integers(1, 30))))
    found = {"min": least, "max": most, "divisor": draw(st.integers(1, 4))}
    return {name: value for name, value in found.items() if draw(st.booleans())}


@st.composite
def searches(draw: st.DrawFn) -> Search:
    teacher, axes = draw(teachers()), draw(st.lists(st.sampled_from(ALL), min_size=1, unique=True))
    share, memory = draw(st.floats(0.2, 0.99)), draw(st.booleans())
    tokens = draw(st.integers(1, 100))
    wanted: dict[str, Any] = (
        {"memory": str(round(served_bytes(teacher, tokens) * share)), "cached_tokens": tokens}
        if memory
        else draw(st.sampled_from([{"parameters": teacher.parameters * share}, {"ratio": 1 / share}]))
    )
    limits: dict[str, Any] = {
        field: draw(bounds())
        for field, axis in (("hidden_size", ALL[0]), ("ffn_hidden_size", ALL[1]), ("layers", ALL[3]))
        if axis in axes and draw(st.booleans())
    }
    target = TargetConfig(
        **wanted, **limits, axes=axes, tolerance=draw(st.floats(0, 0.5)), candidates=draw(st.integers(1, 10))
    )
    return Search(teacher, target, draw(st.integers(1, 4)))


def by_trying_all(search: Search) -> set[Shape]:
    """Every shape that meets the target, found without the arithmetic."""
    teacher, target = search.teacher, search.target

    def tried(axis: SearchedAxis, has: int, own: int) -> list[int]:
        if axis not in target.axes:
            return [has]
        limits = target.bounds(axis)
        least, most = limits.min or (has + 1) // 2, limits.max or has
        return [
            size
            for size in range(1, has + 1)
            if least <= size <= most and (size == has or (size % own == 0 and size % (limits.divisor or 1) == 0))
        ]

    sizes = product(
        tried(SearchedAxis.LAYERS, teacher.layers, 1),
        tried(SearchedAxis.HIDDEN_SIZE, teacher.hidden_size, search.divisor),
        tried(SearchedAxis.FFN_HIDDEN_SIZE, teacher.ffn_hidden_size, search.divisor),
        tried(SearchedAxis.ATTENTION_HEADS, teacher.attention_heads, teacher.query_groups),
    )
    least, most = search.window
    return {
        shape
        for one in sizes
        if (shape := Shape(*one)) != Shape.of(teacher) and least <= search.figure(shape.architecture(teacher)) <= most
    }


@given(searches())
def test_all_shapes_that_meet_a_target_are_found_once(search: Search) -> None:
    found = list(search.shapes())
    assert len(set(found)) == len(found) == search.found.count
    assert set(found) == by_trying_all(search)


@given(searches())
def test_a_candidate_is_a_student_of_the_teacher_that_meets_the_target(search: Search) -> None:
    meeting, best = set(search.shapes()), [Shape.of(one) for one in search.found.best]
    lines = {(shape.layers, shape.hidden_size, shape.attention_heads) for shape in meeting}
    assert len(best) == min(search.target.candidates, len(lines)) == len(set(best)) and meeting.issuperset(best)
    for shape in search.found.best:
        prune = PruneConfig(target=search.target, divisor=search.divisor).of_shape(search.teacher, shape)
        assert list(student_faults(search.teacher, prune)) == []
        assert student_architecture(search.teacher, prune) == shape


@given(searches())
def test_a_target_that_no_shape_meets_is_told_with_the_nearest_shapes(search: Search) -> None:
    fault = search.fault()
    assert (fault is None) == bool(search.found.count)
    if fault and "the nearest are" in fault[1]:
        least, most = search.window
        figures = [search.figure(one) for one in search.around]
        assert figures == sorted(figures) and not any(least <= figure <= most for figure in figures)
        assert all(str(Shape.of(one)) in fault[1] for one in search.around)


def test_shapes_of_published_sizes() -> None:
    """Those of the published students are among them, and only a few of thousands are worth a measurement."""
    search = Search(LLAMA_8B, TargetConfig(parameters=4_512_746_496), 64)
    assert search.found.count == 7237 and len(search.found.best) == 8
    assert Shape.of(search.found.best[0]) == (31, 2816, 11072, 32)
    assert Shape(32, 3072, 9216, 32) in set(search.shapes())
    assert all(abs(one.parameters / 4_512_746_496 - 1) < 0.002 for one in search.found.best[:3])
    qwen = Search(QWEN_8B, TargetConfig(parameters=5_988_774_912), 64)
    assert {Shape(30, 3584, 11776, 32), Shape(36, 3584, 9216, 32), Shape(24, 4096, 12288, 32)} <= set(qwen.shapes())


def test_a_ratio_and_a_memory_are_targets_too() -> None:
    half = Search(LLAMA_8B, TargetConfig(ratio=2), 64)
    assert half.window == (-(-4_015_130_624 * 95 // 100), 4_015_130_624 * 105 // 100)
    # 32 layers x 2 x 8 heads x 128 channels x 2 bytes are 128 KiB a token.
    assert served_bytes(LLAMA_8B, 8192) == 2 * 8_030_261_248 + 8192 * 128 * 1024
    small = Search(LLAMA_8B, TargetConfig(memory="9Gi", cached_tokens=16_384), 64)
    assert small.found.best and all(served_bytes(one, 16_384) <= 9 * 1024**3 for one in small.found.best)


def test_heads_are_cut_in_whole_groups_where_that_is_asked() -> None:
    target = TargetConfig(parameters=4.19e9, axes=ALL, ffn_hidden_size=SizeBounds(min=8192))
    search = Search(NEMOTRON_15B, target, 64)
    assert search.sizes(SearchedAxis.ATTENTION_HEADS) == range(24, 49, 8)
    assert {one.attention_heads % 8 for one in search.found.best} == {0}
    assert Shape(32, 3072, 9216, 24) in set(search.shapes())


@pytest.mark.parametrize(
    ("target", "field", "words"),
    [
        (
            {"parameters": 1e9},
            "target",
            "no shape has 1,000,000,000 parameters (within 5 %); the nearest are 16 layers, hidden 2048, FFN 7168, 32 "
            "heads: 1,565,591,552 parameters; 16 layers, hidden 2112, FFN 7168, 32 heads: 1,614,516,288 parameters; "
            "change the target, its tolerance or its bounds",
        ),
        (
            {"parameters": 4.6e9, "axes": ["layers"], "tolerance": 0.001},
            "target",
            "no shape has 4,600,000,000 parameters (within 0.1 %); the nearest are 16 layers, hidden 4096, FFN 14336, "
            "32 heads: 4,540,469,248 parameters; 17 layers, hidden 4096, FFN 14336, 32 heads: 4,758,581,248 "
            "parameters; 18 layers, hidden 4096, FFN 14336, 32 heads: 4,976,693,248 parameters; change the target, its "
            "tolerance or its bounds",
        ),
        (
            {"ratio": 2, "layers": {"min": 40}},
            "target.layers.min",
            "40 is more than the teacher's 32; pruning only makes it smaller",
        ),
        (
            {"ratio": 2, "layers": {"min": 20, "max": 23, "divisor": 16}},
            "target.layers",
            "leaves no size to try; widen the bounds, or lower a divisor",
        ),
        (
            {"ratio": 1.1, "axes": ["layers"], "layers": {"min": 32}},
            "target",
            "allows the teacher's own shape alone; lower a min, or add to axes",
        ),
    ],
    ids=["too-small", "between-two", "above-the-teacher", "no-size", "nothing-to-cut"],
)
def test_what_no_shape_meets(target: dict[str, Any], field: str, words: str) -> None:
    prune = PruneConfig(target=TargetConfig(**target))
    assert list(student_faults(LLAMA_8B, prune)) == [(field, words)]


SIZES_OF_405B = {"layers": 126, "hidden_size": 16_384, "ffn_hidden_size": 53_248, "attention_heads": 128}


def test_the_largest_teachers_are_searched_along_all_axes() -> None:
    prune = PruneConfig(target=TargetConfig(ratio=2, axes=ALL), divisor=64)
    teacher = LLAMA_8B.model_copy(update=SIZES_OF_405B)
    assert list(student_faults(teacher, prune)) == []
    found = Search(teacher, prune.target or TargetConfig(), 64).found
    assert found.count == 3_157_296 and Shape.of(found.best[0]) == (121, 11_008, 39_168, 120)


def test_a_target_that_would_try_too_many_shapes_is_refused_before_they_are_tried() -> None:
    prune = PruneConfig(target=TargetConfig(ratio=2, axes=ALL), divisor=8)
    [(field, words)] = student_faults(LLAMA_8B.model_copy(update=SIZES_OF_405B), prune)
    assert field == "target" and words.startswith("tries 590,400 combinations of layers, attentionHeads and ")


def test_the_searches_of_many_runs_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator asks in every pass."""
    asked, lines = list[Search](), Search.lines

    def counted(search: Search, least: int, most: float) -> Iterator[Any]:
        asked.append(search)
        return lines(search, least, most)

    monkeypatch.setattr(Search, "lines", counted)
    targets = [
        TargetConfig(parameters=4.2e9 + n, axes=[SearchedAxis.LAYERS, SearchedAxis.HIDDEN_SIZE]) for n in range(500)
    ]
    prunes = [PruneConfig(target=target, divisor=512) for target in targets]
    for prune in [*prunes, *prunes]:
        assert not list(student_faults(LLAMA_8B, prune))
    assert len(asked) == len(prunes)


@given(searches())
def test_the_candidates_are_those_that_ranking_all_shapes_gives(search: Search) -> None:
    """The search looks at few of them."""
    nearest: dict[tuple[int, int, int], tuple[tuple[float, float], Shape]] = {}
    for shape in search.shapes():
        ratios = zip((3, 1, 1, 1), Shape.of(search.teacher), shape, strict=True)
        cut = round(sum((weight * math.log(before / after)) ** 2 for weight, before, after in ratios), 9)
        off = abs(search.figure(shape.architecture(search.teacher)) - search.wanted)
        line = shape.layers, shape.hidden_size, shape.attention_heads
        known = nearest.get(line)
        if known is None or (off, -shape.ffn_hidden_size) < (known[0][1], -known[1].ffn_hidden_size):
            nearest[line] = ((cut, off), shape)
    apart: list[Any] = []
    alike: list[Any] = []
    for one in sorted(nearest.values()):
        near = [
            all(abs(math.log(a / b)) < math.log(10 / 9) for a, b in zip(one[1], other, strict=True))
            for _, other in apart
        ]
        (alike if any(near) else apart).append(one)
    most = search.target.candidates
    kept = sorted(apart[:most] + alike[: max(0, most - len(apart))])
    assert [Shape.of(one) for one in search.found.best] == [shape for _, shape in kept]


def test_the_cost_of_a_search_has_a_sweep_for_each_number_of_layers_that_needs_its_own() -> None:
    students = [LLAMA_8B.model_copy(update={"layers": layers}) for layers in (31, 30, 29)]

    def cost(depth: str) -> float:
        importance = ImportanceConfig(depth=depth, depth_samples=2)
        prune = PruneConfig(target=TargetConfig(ratio=2), importance=importance)
        validation = ValidationConfig(samples=3)
        return search_flops(LLAMA_8B, students, prune, sequence_length=128, validation=validation, distill=None)

    # Blocks of n of 32 layers leave 0 to 32 - n layers behind them; those of 3 are measured beside the powers of two.
    alone, with_three = (1 + sum((32 - n) * (33 - n) / 2 for n in (1, 2, 4, 8, 16, *own)) / 32 for own in ((), (3,)))
    swept = 2 * 128 * (alone + with_three) * forward_flops(LLAMA_8B, 128)
    assert cost("LMLoss") - cost("BlockInfluence") == pytest.approx(swept)
