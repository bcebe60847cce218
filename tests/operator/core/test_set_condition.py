"""Conditions are set as meta.SetStatusCondition sets them."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from compression_operator.api.status import Condition
from compression_operator.core.conditions import condition_of, set_condition

THEN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = THEN + timedelta(hours=1)
kinds = st.sampled_from(["Ready", "Degraded", "Others"])


def a_condition(kind: str, holds: bool, time: datetime) -> Condition:
    return condition_of(kind, holds, "AsExpected", "", generation=1, now=time)


conditions = st.dictionaries(kinds, st.booleans()).map(
    lambda found: [a_condition(kind, holds, THEN) for kind, holds in found.items()]
)


@given(before=conditions, kind=kinds, holds=st.booleans())
def test_the_time_of_transition_moves_with_the_status_alone(before: list[Condition], kind: str, holds: bool) -> None:
    after = {one.type: one for one in set_condition(before, a_condition(kind, holds, NOW))}
    known = {one.type: one for one in before}
    same = kind in known and known[kind].status == str(holds)
    assert after[kind].last_transition_time == (THEN if same else NOW) and after[kind].status == str(holds)
    assert {**after, kind: None} == {**known, kind: None}, "the others are left alone"
    assert [*after][: len(known)] == [*known], "and in their order"


@given(stored=conditions, holds=st.booleans())
def test_it_moves_with_what_is_stored_if_another_condition_stands_there_meanwhile(
    stored: list[Condition], holds: bool
) -> None:
    between = [a_condition("Ready", not holds, NOW)]
    [found] = set_condition(between, a_condition("Ready", holds, NOW), stored=stored)
    same = any(one.type == "Ready" and one.status == str(holds) for one in stored)
    assert found.last_transition_time == (THEN if same else NOW)
