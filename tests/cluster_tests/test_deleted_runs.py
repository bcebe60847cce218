"""Runs that are being deleted while somebody's finalizer keeps them."""

from api import JOBS, Body
from kubelets import NOWHERE
from operators import Namespace
from tests.support.waiting import until

FINALIZER = "example.com/mine"


def test_a_run_that_a_finalizer_keeps_gives_its_gpus_back(namespace: Namespace) -> None:
    def kept(body: Body) -> None:
        body["metadata"]["finalizers"] = [FINALIZER]

    with namespace.operator():
        namespace.submit(edit=kept, jobTemplate=NOWHERE)
        (job,) = until(namespace.jobs, "the job")
        namespace.wait_step("prepare", "Starting")  # told a moment after the job is made; never, once the run goes
        until(namespace.pods, "its pod")
        namespace.api.delete(namespace.run_path(), propagationPolicy="Background")
        try:
            until(lambda: not namespace.jobs() and not namespace.pods(), "all that runs to go")
            run = namespace.run()
            assert run["metadata"]["finalizers"] == [FINALIZER] and "deletionTimestamp" in run["metadata"]
            assert job["metadata"]["name"] == run["status"]["steps"][0]["jobName"], "nothing is told any more"
        finally:
            namespace.api.merge(namespace.run_path(), {"metadata": {"finalizers": []}})
        until(lambda: namespace.api.get(namespace.run_path()) is None, "the run to go")
    assert namespace.api.items(f"{JOBS}/namespaces/{namespace.name}/pytorchjobs") == [], "no other job was made"


def wait_until_collector_knows_pods(place: Namespace) -> None:
    """The garbage collector takes note of pods in their order, so it knows all that there are once one that is made now
    has gone with its owner. A job whose pod it doesn't know yet it has not wait for the pod.
    """
    core = f"/api/v1/namespaces/{place.name}"
    owner = place.api.create(f"{core}/configmaps", {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    like = place.pods()[0]["spec"]
    place.api.create(f"{core}/pods", {"metadata": {"name": "last", "ownerReferences": [reference]}, "spec": like})
    place.api.delete(f"{core}/configmaps/owner")
    until(lambda: place.api.get(f"{core}/pods/last") is None, "the garbage collector to take the pod of an owner gone")


def test_a_foreground_deletion_of_a_run_waits_for_its_jobs(namespace: Namespace) -> None:
    """As `kubectl delete --cascade=foreground` asks for it; what a job waits for itself, its finalizer stands for."""
    with namespace.operator():
        namespace.submit(jobTemplate=NOWHERE)
        (job,) = until(namespace.jobs, "the job")
        until(namespace.pods, "its pod")
        wait_until_collector_knows_pods(namespace)
        path = f"{JOBS}/namespaces/{namespace.name}/pytorchjobs/{job['metadata']['name']}"
        namespace.api.merge(path, {"metadata": {"finalizers": [FINALIZER]}})
        namespace.api.delete(namespace.run_path(), propagationPolicy="Foreground")

        def left() -> list[str]:
            """What keeps the job, once all else of it is gone."""
            body = namespace.api.get(path) or {"metadata": {}}
            return body["metadata"]["finalizers"] if "deletionTimestamp" in body["metadata"] else []

        until(
            lambda: left() == [FINALIZER] and not namespace.pods(),
            lambda: f"the job to be on its way; there is {namespace.api.get(path)}, and {len(namespace.pods())} pods",
        )
        assert namespace.run()["metadata"]["finalizers"] == ["foregroundDeletion"], "it goes last"
        namespace.api.merge(path, {"metadata": {"finalizers": []}})
        until(lambda: namespace.api.get(namespace.run_path()) is None, "the run to go")
        assert not namespace.jobs() and not namespace.pods()
