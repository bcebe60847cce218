"""Runs that are being deleted while somebody's finalizer keeps them."""

from api import JOBS, Body, wait_for
from kubelets import NOWHERE
from operators import Namespace

FINALIZER = "example.com/mine"


def test_a_run_that_a_finalizer_keeps_gives_its_gpus_back(namespace: Namespace) -> None:
    def kept(body: Body) -> None:
        body["metadata"]["finalizers"] = [FINALIZER]

    with namespace.operator():
        namespace.submit(edit=kept, jobTemplate=NOWHERE)
        (job,) = wait_for(namespace.jobs, "the job")
        namespace.wait_step("prepare", "Starting")  # told a moment after the job is made; never, once the run goes
        wait_for(namespace.pods, "its pod")
        namespace.api.delete(namespace.run_path(), propagationPolicy="Background")
        try:
            wait_for(lambda: not namespace.jobs() and not namespace.pods(), "all that runs to go")
            run = namespace.run()
            assert run["metadata"]["finalizers"] == [FINALIZER] and "deletionTimestamp" in run["metadata"]
            assert job["metadata"]["name"] == run["status"]["steps"][0]["jobName"], "nothing is told any more"
        finally:
            namespace.api.merge(namespace.run_path(), {"metadata": {"finalizers": []}})
        wait_for(lambda: namespace.api.get(namespace.run_path()) is None, "the run to go")
    assert namespace.api.items(f"{JOBS}/namespaces/{namespace.name}/pytorchjobs") == [], "no other job was made"
