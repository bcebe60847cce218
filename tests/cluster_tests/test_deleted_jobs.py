"""PyTorchJobs that somebody else deletes: a clean-up that never rests, and pods that are not told at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from api import JOBS
from kubelets import NOWHERE, kubelet
from operators import FINAL, Namespace, step_of
from tests.support.matchers import has_condition, has_step
from tests.support.waiting import until

from compression_operator.api.run import RETRY_ANNOTATION


@contextmanager
def clean_up(place: Namespace) -> Iterator[list[str]]:
    """Deletes every job as soon as it is there; the UIDs of those that it deleted."""
    deleted: list[str] = []
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.02):
            for job in place.api.items(f"{JOBS}/namespaces/{place.name}/pytorchjobs"):
                path = f"{JOBS}/namespaces/{place.name}/pytorchjobs/{job['metadata']['name']}"
                place.api.delete(path, propagationPolicy="Background")
                if job["metadata"]["uid"] not in deleted:
                    deleted.append(job["metadata"]["uid"])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield deleted
    finally:
        over.set()
        thread.join()


def test_a_clean_up_that_deletes_every_job_is_not_fought(namespace: Namespace) -> None:
    """One comes again at once, the next ones after pauses, which a restart of the operator does not end. Whoever has
    found what deletes them asks for a retry, and need not wait.
    """

    def prepare() -> dict[str, object]:
        return step_of(namespace.status(), "prepare")

    def notes() -> list[str]:
        return [event["note"] for event in namespace.events() if event["reason"] == "StepInterrupted"]

    words = "the job was deleted 2 times in a row, and not by the operator: look for what deletes jobs here"
    with clean_up(namespace) as deleted:
        with namespace.operator():
            namespace.submit(jobTemplate=NOWHERE)
            until(lambda: len(deleted) == 2, "the first job to come again")
            until(lambda: prepare().get("deletions") == 2, "the pause")
            until(lambda: any(words in note and "; again at" in note for note in notes()), "an Event of it")
        waits = prepare()
        assert len(deleted) == 2
        assert words in str(waits["message"]) and str(waits["message"]).startswith("tries again at")
        due = datetime.fromisoformat(str(waits["retryTime"]))
        with namespace.operator(identity="operator-1") as second:
            second.wait_line("this replica (operator-1) leads")
            until(lambda: len(deleted) == 3, "the next one")
            assert datetime.now(UTC) >= due
            until(lambda: prepare().get("deletions") == 3, "the next pause")
            told = {"reason": "Interrupted", "says": "deleted 3 times in a row"}
            assert has_condition(namespace.status(), "Degraded", "True", **told)
    assert len(deleted) == 3
    namespace.api.merge(namespace.run_path(), {"metadata": {"annotations": {RETRY_ANNOTATION: "1"}}})
    with namespace.operator(identity="operator-2"), kubelet(namespace):
        assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"


def test_the_pods_of_a_deleted_job_end_before_the_next_begins(namespace: Namespace, pods: str) -> None:
    behaviour = {"prepare": {"steps": 1000, "seconds": 0.2, "ignore_sigterm": True}}
    one = [{"name": "width", "prune": {"hiddenSize": 64}}]
    with namespace.operator(pods):
        namespace.submit(behaviour=behaviour, finetune=None, students=one)
        first = namespace.wait_step("prepare", "Running")["jobName"]
        path = f"{JOBS}/namespaces/{namespace.name}/pytorchjobs/{first}"
        until(namespace.starts, "the first one to have read how to behave, which comes after its container runs")
        namespace.behave({}, namespace.store)
        namespace.api.delete(path, propagationPolicy="Background")
        said = "the job was deleted, and not by the operator; waits for its pods to end"
        until(lambda: has_step(namespace.status(), "prepare", says=said), "the operator to say so")

        def next_job() -> list[str]:
            return [name for job in namespace.jobs() if (name := job["metadata"]["name"]) != first]

        assert not next_job()
        until(next_job, "the next attempt")
        # The kubelet tells that the containers have ended before it says so of the pod.
        states = [c["state"] for pod in namespace.pods(first) for c in pod["status"]["containerStatuses"]]
        assert all("terminated" in state for state in states), states
        status = namespace.wait_phase(*FINAL)
    assert status["phase"] == "Succeeded" and has_step(status, "prepare", attempt=2, failures=0)
