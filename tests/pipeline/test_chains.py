"""Chains of shapes, along which the least cut one that is fast enough is found by a few measurements."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import LLAMA_8B

from compression_pipeline.config import (
    Architecture,
    Search,
    SearchedAxis,
    Shape,
    SizeBounds,
    TargetConfig,
    chains,
    fast_enough,
    timed_at_most,
)

ALL = list(SearchedAxis)


def search(**target: Any) -> Search:
    return Search(LLAMA_8B, TargetConfig(tokens_per_second=60, **target), 64)


@st.composite
def searches(draw: st.DrawFn) -> Search:
    axes = draw(st.lists(st.sampled_from(ALL), min_size=1, unique=True))
    bounds = {"layers": SizeBounds(min=draw(st.integers(1, 32)))} if SearchedAxis.LAYERS in axes else {}
    return search(axes=axes, candidates=draw(st.integers(1, 10)), **bounds)


def speed(model: Architecture, latency: float = 1.0) -> float:
    """A made-up machine: each layer takes a time of its own, and each parameter some more."""
    return 1e10 / (1e8 * latency * model.layers + model.parameters)


@given(searches())
def test_a_chain_holds_students_that_only_get_smaller(search: Search) -> None:
    found = chains(search)
    assert 1 <= len(found) <= search.target.candidates or not any(found)
    for chain in found:
        shapes = [Shape.of(one) for one in chain]
        assert len(set(shapes)) == len(shapes) > 0 and Shape.of(search.teacher) not in shapes
        assert all(a <= b for before, after in itertools.pairwise(shapes) for a, b in zip(after, before, strict=False))
        tried = {axis: set(search.sizes(axis)) for axis in ALL}
        assert all(one.layers in tried[SearchedAxis.LAYERS] for one in shapes)
        assert all(one.hidden_size in tried[SearchedAxis.HIDDEN_SIZE] for one in shapes)


@given(searches(), st.floats(0.5, 6), st.floats(0, 3))
def test_the_least_cut_of_each_chain_is_found_by_few_measurements(
    search: Search, faster: float, latency: float
) -> None:
    found, least, asked = chains(search), speed(search.teacher, latency) * faster, set[Shape]()

    def measured(model: Architecture) -> float:
        asked.add(Shape.of(model))
        return speed(model, latency)

    fast = fast_enough(found, least, measured)
    assert len(asked) <= timed_at_most(found)
    first = [next((one for one in chain if speed(one, latency) >= least), None) for chain in found]
    assert set(map(Shape.of, fast)) <= {Shape.of(one) for one in first if one is not None}
    assert all(speed(one, latency) >= least for one in fast)
    for one in first:  # each is there, or one that is cut less
        shape = one and Shape.of(one)
        assert shape is None or any(all(a <= b for a, b in zip(shape, Shape.of(other), strict=False)) for other in fast)


def test_the_chains_of_an_8b_model() -> None:
    """Eight numbers of layers, and 48 measurements at most for 63,392 shapes."""
    one = search()
    found = chains(one)
    assert [chain[0].layers for chain in found] == [32, 30, 27, 25, 23, 21, 18, 16]
    assert one.found.count == 63_392 and timed_at_most(found) == 48
    assert Shape.of(found[0][0]) == (32, 3968, 13888, 32) and Shape.of(found[-1][-1]) == (16, 2048, 7168, 32)


def test_without_layers_widths_shrink_at_different_rates_and_without_widths_layers_alone() -> None:
    found = chains(search(axes=[SearchedAxis.HIDDEN_SIZE, SearchedAxis.FFN_HIDDEN_SIZE]))
    assert len(found) == 3 and len({Shape.of(chain[5]) for chain in found}) == 3
    assert all(one.layers == 32 for chain in found for one in chain)
    [layers] = chains(search(axes=[SearchedAxis.LAYERS]))
    assert [one.layers for one in layers] == list(range(31, 15, -1))


@pytest.mark.parametrize(("least", "expected"), [(0.0, 1), (1e9, 0)])
def test_what_all_or_none_reach(least: float, expected: int) -> None:
    assert len(fast_enough(chains(search(axes=[SearchedAxis.LAYERS])), least, speed)) == expected
