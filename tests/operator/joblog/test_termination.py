"""Termination messages: whatever stands there is read, or is none."""

import copy
import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs_world import World
from looks import open_jobs, step
from recordings import UID, Seen
from recordings import states as recorded

from compression_operator.api.status import StepState
from compression_operator.backends.observe import observe_job
from compression_operator.backends.pytorchjob.kind import PYTORCHJOB
from compression_operator.core.jobs import JobState, ObservedJob
from compression_operator.joblog.termination import read_termination
from compression_operator.local.jobfiles import JobFolder
from compression_pipeline.config import ExitClass


def ended(case: str, message: str) -> ObservedJob:
    """A recorded job that has ended, had its container written this."""
    seen = Seen()
    for state in recorded(case):
        seen.take(state)
    (pod,) = copy.deepcopy(list(seen.pods.values()))
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = message
    assert seen.job is not None
    return observe_job(PYTORCHJOB, seen.job, [pod], run_uid=UID, now=seen.now + timedelta(minutes=5))


def test_a_name_that_is_no_utf_8_does_not_hide_why_a_job_failed() -> None:
    job = ended(
        "user-error", json.dumps({"class": "UserError", "message": "cannot read caf\udce9.txt \u2603 \U0001f600"})
    )
    assert job.termination is not None and job.ended_as is ExitClass.USER_ERROR
    assert job.termination.message == "cannot read caf\ufffd.txt \u2603 \U0001f600"


def test_a_result_that_holds_one_is_not_made_again() -> None:
    world = World()
    world.look()
    (name,) = open_jobs(world)
    world.start(name)
    world.succeed(name)
    said = world.jobs[name].seen.termination
    assert said is not None
    said = said.model_copy(update={"message": "caf\udce9", "result": {**said.result, "note\udce9": ["\ud800"]}})
    job = ended("done", json.dumps({"class": "Done", "message": said.message, "result": said.result}))
    assert job.state is JobState.SUCCEEDED and job.termination is not None
    assert job.termination.result["note\ufffd"] == ["\ufffd"]
    world.update(name, termination=job.termination)
    world.look()
    assert (step(world, "prepare").state, step(world, "prepare").attempt) == (StepState.SUCCEEDED, 1)


def test_what_a_local_job_wrote_is_read_alike(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    assert folder.termination() is None
    folder.termination_file.write_text(json.dumps({"class": "Transient", "message": "caf\udce9"}))
    told = folder.termination()
    assert told is not None and told.message == "caf\ufffd"


@pytest.mark.parametrize("text", ["", "Traceback: it broke", "[" * 4096, "[]", "{}", '{"class": "Else"}', "9" * 4096])
def test_anything_else_is_none(text: str) -> None:
    assert read_termination(text) is None


@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_whatever_it_says_an_api_server_takes_it(said: str) -> None:
    told = read_termination(json.dumps({"class": "Transient", "message": said, "result": {said: [{"a": said}]}}))
    assert told is not None and told.model_dump_json().encode()
    readable = not any("\ud800" <= character <= "\udfff" for character in said)
    assert not readable or (told.message, told.result) == (said, {said: [{"a": said}]})
