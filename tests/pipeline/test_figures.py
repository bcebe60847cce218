"""Figures that jobs and the control plane say alike."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression_pipeline.config import PruneConfig, fingerprint, human_bytes, won_back
from compression_pipeline.config.base import nearest_multiples


@pytest.mark.parametrize(
    ("teacher", "pruned", "distilled", "share"),
    [
        (3.8, 4.8, 3.9, 0.9),
        (3.8, 4.8, 5.0, -0.2),  # worse than before
        (3.8, 4.8, 3.7, 1.1),  # better than the teacher
        (3.8, 4.8, None, None),
        (None, 4.8, 3.9, None),
        (4.0, 3.9, 3.8, None),  # pruning cost nothing
        (4.0, 4.0, 3.8, None),
        (4.0, math.nan, 3.8, None),
    ],
)
def test_the_share_that_was_won_back(
    teacher: float | None, pruned: float | None, distilled: float | None, share: float | None
) -> None:
    assert won_back(teacher, pruned, distilled) == (pytest.approx(share) if share else None)


def test_bytes_for_people() -> None:
    sizes = (0, 999, 1000, 12_345, 7 * 10**9, 10**15)
    assert [human_bytes(n) for n in sizes] == ["0 bytes", "999 bytes", "1.0 kB", "12.3 kB", "7.0 GB", "1000.0 TB"]


@given(st.integers(1, 5000), st.integers(1, 500))
def test_nearest_multiples_enclose(number: int, divisor: int) -> None:
    below, _, above = nearest_multiples(number, divisor).partition(" or ")
    assert int(below) % divisor == 0
    if above:
        assert int(below) <= number < int(above) == int(below) + divisor
    else:
        assert number < int(below) == divisor


def test_nearest_multiples_that_may_be_had() -> None:
    assert nearest_multiples(7, 4, most=8) == "4 or 8"
    assert nearest_multiples(9, 4, most=8) == "8"
    assert nearest_multiples(3, 4, most=8) == "4"


def test_what_widths_must_be_multiples_of_shapes_no_student() -> None:
    keys = {fingerprint("prune", {"prune": PruneConfig(hidden_size=128, divisor=n)}, {}) for n in (16, 64, 128)}
    assert len(keys) == 1
