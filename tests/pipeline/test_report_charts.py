"""Geometry of the report's charts: numbers in, path data and labels out."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression_pipeline.report.charts import (
    LABEL_HEIGHTS,
    SPAN,
    Label,
    Level,
    Series,
    line_chart,
    ranked_area,
    spread,
    texts,
    thin,
    ticks,
)


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 20)), min_size=1, max_size=1500, unique_by=lambda p: p[0])
)
def test_chart_stays_in_its_field(points: list[tuple[int, float]]) -> None:
    chart = line_chart("t", [Series("s", sorted(points), 0, dots=True)], levels=[Level("l", 3.0)])
    assert chart is not None
    numbers = [float(n) for line in chart.lines for n in re.findall(r"-?\d+\.\d+", line.path)]
    assert numbers
    assert all(0 <= n <= SPAN for n in numbers)
    assert all(-0.01 <= tick.at <= 100.01 for tick in [*chart.x_ticks, *chart.y_ticks])


def test_chart_of_nothing_is_none() -> None:
    assert line_chart("t", [Series("s", [], 0), Series("n", [(0, float("nan"))], 0)], levels=[Level("l", 1)]) is None


@given(st.lists(st.floats(0, 20), min_size=1, max_size=9), st.sampled_from(list(LABEL_HEIGHTS)))
def test_labels_never_cover_each_other_in_a_plot_of_any_size(values: list[float], size: str) -> None:
    chart = line_chart("t", [Series(f"{n}", [(0, value)], 0) for n, value in enumerate(values)])
    assert chart
    moved = [label.at for label in chart.names(size)]
    assert all(b - a >= LABEL_HEIGHTS[size] - 0.01 for a, b in pairwise(moved))
    assert max(moved) <= 100


def test_the_ticks_of_an_axis_have_one_unit_and_one_number_of_decimals() -> None:
    assert texts([0.28, 0.3, 0.32]) == ["0.28", "0.30", "0.32"]
    assert texts([3.75, 4, 4.25]) == ["3.75", "4.00", "4.25"]
    assert texts([1.09e6, 1.1e6]) == ["1.09M", "1.10M"]
    assert texts([0, 5000, 10_000]) == ["0", "5k", "10k"]
    assert texts([0, 2, 4]) == ["0", "2", "4"]


def test_labels_move_as_little_as_they_can() -> None:
    def moved(*places: float) -> list[float]:
        return [label.at for label in spread([Label(place, "x", None) for place in places], height=8)]

    assert moved(50, 20) == [20, 50]
    assert moved(50, 50) == [46, 54]
    assert moved(50, 53, 80) == pytest.approx([47.5, 55.5, 80])
    assert moved(1, 0) == [0, 8]


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6))
def test_ticks_are_few_and_inside(low: float, extent: float) -> None:
    found = ticks(low, low + extent)
    assert 1 <= len(found) <= 7
    slack = extent * 1e-6 + abs(low) * 1e-9
    assert all(low - slack <= tick <= low + extent + slack for tick in found)


@given(st.lists(st.floats(0, 1e3), max_size=3000), st.integers(1, 400))
def test_thinning_keeps_the_mean(values: list[float], most: int) -> None:
    kept = thin(list(enumerate(values)), most)
    assert len(kept) <= max(most, 0) or len(values) <= most
    assert (not kept) == (not values)
    if values:
        assert min(values) - 1e-9 <= min(y for _, y in kept)
        assert max(y for _, y in kept) <= max(values) + 1e-9


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=600), st.data())
def test_ranked_area_says_how_much_importance_was_kept(scores: list[float], data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, len(scores)))
    area = ranked_area("t", scores, kept, "channels")
    total = sum(scores)
    share = sum(sorted(scores, reverse=True)[:kept]) / (total or 1.0)
    assert area.description.endswith(f"they hold {share:.0%} of the importance")
    assert area.cut_at == pytest.approx(kept / len(scores) * 100)
    assert bool(area.cut) == (kept < len(scores))
