"""The API server takes some of what a run asks for and refuses the rest: what can be done is done, and all is told."""

from collections.abc import Callable

from api import JOBS, Api, Body
from kubelets import NOWHERE, end
from operators import Namespace
from proxy import Answer, Asked, Fault, proxy
from tests.support.matchers import has_condition, has_step
from tests.support.waiting import until


def pending(namespace: Namespace) -> list[Body]:
    return [pod for pod in namespace.pods() if pod["status"].get("phase") == "Pending"]


def with_problem(namespace: Namespace, reason: str) -> Body | None:
    """The status, where it tells of this problem."""
    status = namespace.status()
    return status if has_condition(status, "Degraded", reason=reason) else None


def pods_of(namespace: Namespace, number: int) -> list[Body]:
    def there() -> list[Body] | None:
        found = pending(namespace)
        return found if len(found) == number else None

    return until(there, f"{number} pods")


def test_a_quota_for_some_of_the_jobs_holds_up_the_others_alone(namespace: Namespace, api: Api) -> None:
    path = f"/api/v1/namespaces/{namespace.name}/resourcequotas"
    api.create(path, {"metadata": {"name": "three"}, "spec": {"hard": {"count/pytorchjobs.kubeflow.org": "3"}}})
    until(lambda: (api.get(f"{path}/three") or {}).get("status", {}).get("used"), "the quota to be in force")
    with namespace.operator():
        namespace.submit(jobTemplate=NOWHERE)
        for step in ("prepare", "finetune"):
            (pod,) = pods_of(namespace, 1)
            end(api, pod)
            namespace.wait_step(step, "Succeeded")
        until(lambda: len(namespace.jobs()) == 3, "the third job")
        status = until(lambda: with_problem(namespace, "QuotaExceeded"), "the problem")
        refused = next(
            step
            for step in status["steps"]
            if step.get("message", "").startswith("waits because its job cannot be made")
        )
        assert (refused["phase"], refused["state"], refused.get("attempt", 0)) == ("prune", "Pending", 0)
        assert has_condition(status, "Progressing", "True") and status["phase"] == "Pruning"
        (pod,) = pods_of(namespace, 1)
        other = pod["metadata"]["labels"]["modelcompression.io/step"]
        assert {other, refused["name"]} == {"prune-width", "prune-depth"}
        end(api, pod)
        namespace.wait_step(other, "Succeeded")
        until(lambda: has_condition(namespace.status(), "Ready", reason="QuotaExceeded"), "all to wait")
        # Jobs that have ended hold the quota, until they go: deletions are not held up either.
        namespace.edit(ttlSecondsAfterFinished=0)
        until(lambda: len(pending(namespace)) == 2, "the next jobs")
        until(lambda: has_condition(namespace.status(), "Degraded", "False"), "the problem to be over")


def stray(namespace: Namespace, api: Api) -> str:
    """A job that somebody made by hand, with labels like ours."""
    labels = {"app.kubernetes.io/managed-by": "compression-operator"}
    labels |= {f"modelcompression.io/{name}": value for name, value in (("run", "demo"), ("attempt", "first"))}
    template = {"spec": {"containers": [{"name": "pytorch", "image": "localhost/none:1"}], **NOWHERE}}
    replicas = {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}
    body = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "stray", "labels": labels}}
    api.create(f"{JOBS}/namespaces/{namespace.name}/pytorchjobs", body | {"spec": {"pytorchReplicaSpecs": replicas}})
    return "stray"


def test_a_job_with_labels_of_somebody_elses_making_is_left_alone(namespace: Namespace, api: Api) -> None:
    with namespace.operator() as operator:
        name = stray(namespace, api)
        namespace.submit(jobTemplate=NOWHERE)
        until(lambda: len(namespace.jobs()) == 2, "a job of ours")
        assert not [line for line in operator.lines() if line["level"] == "error"]
        assert name in [job["metadata"]["name"] for job in namespace.jobs()]


def nonsense(times: int) -> Callable[[Asked], Fault]:
    """Something answers a status in the API server's place, so many times, and well: nobody foresaw that."""
    left = [Answer(200)] * times

    def fault(asked: Asked) -> Fault:
        status = (asked.verb, asked.resource) == ("update", "compressionruns/status")
        return left.pop() if status and left else None

    return fault


def test_a_fault_of_the_operators_own_is_told(namespace: Namespace, api: Api) -> None:
    with proxy(api) as before, namespace.operator(server=before.url) as operator:
        before.fault = nonsense(3)
        namespace.submit(jobTemplate=NOWHERE, suspend=True)  # no job's events, so the pauses grow
        events = until(lambda: [e for e in namespace.events() if e["reason"] == "InternalError"], "the Event")
        assert "KeyError: 'metadata'" in events[0]["note"] and "report it" in events[0]["note"]
        failed = next(line for line in operator.lines() if line["message"].startswith("pass failed (3 in a row)"))
        assert "KeyError" in failed["traceback"] and failed["run"] == f"{namespace.name}/demo"
        until(lambda: has_condition(namespace.status(), "Suspended", "True"), "it to go on")
        until(lambda: has_condition(namespace.status(), "Degraded", "False"), "all to be well")


def test_what_cannot_be_told_does_not_silence_the_rest(namespace: Namespace, api: Api) -> None:
    with proxy(api) as before, namespace.operator(server=before.url) as operator:
        before.fault = nonsense(4)  # the last one where the problem is told
        namespace.submit(jobTemplate=NOWHERE, suspend=True)
        operator.wait_line("could not be told: KeyError: 'metadata'")
        namespace.edit(suspend=False)
        until(lambda: [e for e in namespace.events() if e["reason"] == "JobCreated"], "Events of what comes after")


def test_a_name_that_was_taken_and_has_come_free_is_asked_for_again(namespace: Namespace, api: Api) -> None:
    taken = [Answer(409, "AlreadyExists")]

    def gone_since(asked: Asked) -> Fault:
        return taken.pop() if (asked.verb, asked.resource) == ("create", "pytorchjobs") and taken else None

    with proxy(api) as before, namespace.operator(server=before.url) as operator:
        before.fault = gone_since
        namespace.submit(jobTemplate=NOWHERE)
        until(lambda: has_step(namespace.status(), "prepare", state="Starting") and namespace.jobs(), "the job")
        assert not taken and not [line for line in operator.lines() if line["level"] == "error"]
