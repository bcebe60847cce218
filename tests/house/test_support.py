"""What the tests themselves stand on."""

import ast
import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.matchers import has_condition, has_step
from tests.support.runs import a_run
from tests.support.waiting import until, until_async, within

TESTS = Path(__file__).parents[1]

LEFT_OUT = """
import pytest

@pytest.fixture
def cluster():
    pytest.skip("no pods here: not root")

def test_in_a_pod(cluster):
    pass

@pytest.mark.skipif(True, reason="not today")
def test_of_another_day():
    pass

@pytest.mark.xfail
def test_that_is_known_to_fail():
    assert False
"""


def test_what_does_not_come_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"^waited 0\.02 s for the end$"):
        until(list, "the end", seconds=0.02)
    with pytest.raises(TimeoutError, match="for 3 to be 4"):
        until(lambda: False, lambda: f"{1 + 2} to be 4", seconds=0)
    with pytest.raises(TimeoutError, match="for a loop's end"):
        asyncio.run(until_async(lambda: None, "a loop's end", seconds=0.02))
    with pytest.raises(TimeoutError, match="for ever") as raised:
        asyncio.run(within(asyncio.sleep(600), "ever", seconds=0.01))
    assert isinstance(raised.value.__cause__, TimeoutError)


STATUS = {
    "conditions": [{"type": "Ready", "status": "False", "reason": "Pruning", "message": "prune-width runs"}],
    "steps": [{"name": "prune-width", "state": "Running", "attempt": 2, "jobName": "job-2"}],
}


def test_a_matcher_tells_what_there_is() -> None:
    assert has_condition(STATUS, "Ready", "False", reason="Pruning", message="prune-width runs", says="runs")
    assert has_condition({"status": STATUS}, "Ready") and has_step({"status": STATUS}, "prune-width", job_name="job-2")
    for missing in (
        has_condition(STATUS, "Ready", "True"),
        has_condition(STATUS, "Ready", says="walks"),
        has_condition(STATUS, "Ready", message="runs"),
        has_condition(STATUS, "Stalled"),
    ):
        assert not missing and "there is Ready False (Pruning: prune-width runs)" in repr(missing)
    assert "'state': 'Running'" in repr(has_step(STATUS, "prune-width", state="Pending"))
    assert repr(has_step(STATUS, "prepare")) == "step prepare of any kind; there is step prune-width"
    assert not has_step({"spec": {}}, "prepare"), "of a run without a status"
    with pytest.raises(TimeoutError, match="for it: condition Ready with status 'True'; there is Ready False"):
        until(lambda: has_condition(STATUS, "Ready", "True"), "it", seconds=0)


def test_a_builder_leaves_what_it_was_made_of_alone() -> None:
    one = a_run().student("width", hiddenSize=64).distill(steps=3)
    two = one.student("depth", distill={"steps": 5}, layers=2).claim("models")
    assert [student.name for student in one.model().spec.students] == ["width"] and one.model().spec.storage is None
    assert [student.name for student in two.model().spec.students] == ["width", "depth"]
    assert two.body()["spec"]["students"][1] == {"name": "depth", "prune": {"layers": 2}, "distill": {"steps": 5}}


def test_what_comes_is_returned() -> None:
    asked = iter([None, 0, "there"])
    assert until(lambda: next(asked), "it") == "there"

    async def slowly() -> object:
        await asyncio.sleep(0)
        return next(asked)

    asked = iter([None, "", "here"])
    assert asyncio.run(until_async(slowly, "it")) == "here"
    assert asyncio.run(within(slowly_done(), "it")) == 7


async def slowly_done() -> int:
    await asyncio.sleep(0)
    return 7


def test_nothing_fails_with_a_timeout_that_names_nothing() -> None:
    """Such a failure in CI tells neither what was waited for nor what was there instead."""
    bare = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in sorted(TESTS.rglob("*.py"))
        if path != TESTS / "support" / "waiting.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("asyncio.timeout", "asyncio.wait_for")
    ]
    assert not bare, "until, until_async and within (tests/support) say what is waited for"


def test_in_ci_a_skipped_test_has_failed(tmp_path: Path) -> None:
    (tmp_path / "test_left_out.py").write_text(LEFT_OUT)

    def outcome(**more: str) -> tuple[int, str]:
        environment = {name: value for name, value in os.environ.items() if name != "CI"} | more
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--numprocesses=1",
            "-p",
            "tests.conftest",
            "-c",
            os.devnull,
        ]
        ended = subprocess.run(
            [*command, f"--rootdir={tmp_path}", tmp_path],
            capture_output=True,
            text=True,
            check=False,
            cwd=TESTS.parent,
            env=environment,
        )
        return ended.returncode, ended.stdout

    code, said = outcome()
    assert code == 0 and "2 skipped, 1 xfailed" in said
    code, said = outcome(CI="true")
    assert code == 1 and "1 xfailed, 2 errors" in said
    assert "no test may be skipped there. Skipped: no pods here: not root" in said and "not today" in said


CLUSTER_TESTS = ("tests/benchmarks", "tests/cluster_tests", "tests/packaging")

GIVEN = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "WORKERS", "TESTS", "NICE")
"""What a `make test` that runs this test tells other ones."""


def test_what_needs_a_cluster_runs_beside_the_rest_which_has_all_cores() -> None:
    """`nproc` tells OMP_NUM_THREADS, which the Makefile sets, instead of the number of cores."""
    planned = subprocess.run(
        ["make", "--dry-run", "test"],
        capture_output=True,
        text=True,
        check=True,
        cwd=TESTS.parent,
        env={name: value for name, value in os.environ.items() if name not in GIVEN} | {"OMP_NUM_THREADS": "1"},
    ).stdout
    workers = min(4, len(os.sched_getaffinity(0)))
    assert f'--durations=20 --numprocesses={workers} --dist=worksteal -m "not cluster and not slow"' in planned
    for which in ("not own_cluster", "own_cluster"):
        assert f'--durations=20 -m "cluster and {which}" {" ".join(CLUSTER_TESTS)}\n' in planned


def test_all_that_needs_a_cluster_is_where_make_looks_for_it() -> None:
    mark = "pytest.mark." + "cluster"
    marked = {path.relative_to(TESTS.parent) for path in TESTS.rglob("*.py") if mark in path.read_text()}
    assert {"/".join(path.parts[:2]) for path in marked} == set(CLUSTER_TESTS)
