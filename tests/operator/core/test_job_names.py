"""Names of jobs."""

import re

from hypothesis import given
from hypothesis import strategies as st

from compression_operator.core.names import NAME_LIMIT, job_name
from compression_pipeline.config import Phase

FP = "0123456789abcdef" * 2
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
runs = st.lists(labels, min_size=1, max_size=10).map(".".join)
dashed = st.from_regex(r"[a-z]{1,6}", fullmatch=True) | st.sampled_from(list(Phase))
students = st.none() | st.from_regex(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True)


@given(runs, students, st.sampled_from(list(Phase)), st.integers(1, 99_999))
def test_a_name_is_a_label_with_room_for_its_pods(run: str, of: str | None, phase: Phase, attempt: int) -> None:
    name = job_name(run, of, phase, FP, attempt)
    assert DNS_1035.fullmatch(name)
    assert len(name) <= NAME_LIMIT
    assert len(f"{name}-worker-1022") <= 63
    assert name.endswith(f"-{phase}-012345-{attempt}")


@given(runs, st.lists(st.tuples(students, st.sampled_from(list(Phase))), min_size=2, max_size=2, unique=True))
def test_names_differ_within_a_run(run: str, two: list[tuple[str | None, Phase]]) -> None:
    names = {job_name(run, of, phase, FP, attempt) for of, phase in two for attempt in (1, 2)}
    assert len(names) == 4


@given(st.lists(runs, min_size=2, max_size=2, unique=True))
def test_runs_whose_names_are_cut_or_changed_do_not_meet(two: list[str]) -> None:
    one, other = (job_name(run, None, Phase.PREPARE, FP, 1) for run in two)
    assert one != other


def test_names_read_well() -> None:
    assert re.fullmatch(r"demo-width-[0-9a-f]{6}-distill-012345-2", job_name("demo", "width", "distill", FP, 2))
    assert re.fullmatch(r"demo-[0-9a-f]{6}-prepare-012345-1", job_name("demo", None, "prepare", FP, 1))
    long = job_name("llama-3.1-8b-" + "x" * 100, "width", "distill", FP, 2)
    assert re.fullmatch(r"llama-3-1-8b-x+-[0-9a-f]{6}-distill-012345-2", long)


@given(st.lists(dashed, min_size=3, max_size=5), st.sampled_from(list(Phase)))
def test_runs_whose_names_go_on_as_a_students_do_not_meet(parts: list[str], phase: Phase) -> None:
    """`llama` with a student `b-width`, `llama-b` with `width`, and `llama-b-width` with none."""
    cuts = [("-".join(parts[:n]), "-".join(parts[n:]) or None) for n in range(1, len(parts) + 1)]
    assert len({job_name(run, of, phase, FP, 1) for run, of in cuts}) == len(cuts)
