"""A pod that has its place while another of its job has none: it waits, and gives it up, and that is no fault."""

import signal
import socket
from contextlib import closing

import pytest
from launching import PUBLISH, Launch
from meeting import Meeting
from tests.support.waiting import until


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("told_to_stop", [False, True])
def test_a_pod_whose_peers_do_not_come_is_interrupted(launch: Launch, told_to_stop: bool) -> None:
    with closing(Meeting(2)) as meeting:
        place = meeting.of_pods | {"PET_NODE_RANK": "0"}
        alone = launch(PUBLISH, environment=place, rendezvousTimeoutSeconds=600 if told_to_stop else 1)
        if told_to_stop:
            until(lambda: listens(meeting.port), "it waits for the other pod")
            alone.process.send_signal(signal.SIGTERM)
        assert alone.wait() == 143, alone.errors
    said = alone.termination["message"]
    assert said == "was told to stop (SIGTERM)" if told_to_stop else "rendezvousTimeoutSeconds (1)" in said
