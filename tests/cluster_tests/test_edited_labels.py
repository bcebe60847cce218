"""PyTorchJobs whose labels somebody edits: out of the watches' sight they are still the run's, and are not lost."""

from api import JOBS, Api
from kubelets import NOWHERE, kubelet
from operators import FINAL, Namespace
from proxy import proxy
from tests.support.matchers import has_step
from tests.support.waiting import until

MANAGED_BY = "app.kubernetes.io/managed-by"
LABELS = {"back": MANAGED_BY, "lost": MANAGED_BY, "moved": "modelcompression.io/run"}
"""By name of the run: which label of its job is edited."""


def test_a_job_whose_labels_are_edited_is_not_lost(namespace: Namespace, api: Api) -> None:
    one = [{"name": "width", "prune": {"hiddenSize": 64}}]

    def label(job: str, **labels: str | None) -> None:
        path = f"{JOBS}/namespaces/{namespace.name}/pytorchjobs/{job}"
        api.merge(path, {"metadata": {"labels": labels}})

    with proxy(api) as before, namespace.operator(server=before.url):
        for run in LABELS:
            namespace.submit(run, jobTemplate=NOWHERE, finetune=None, students=one)
        jobs = {run: namespace.wait_step("prepare", "Starting", name=run)["jobName"] for run in LABELS}
        until(lambda: len(namespace.jobs()) == len(namespace.pods()) == len(LABELS), "the pods of all jobs")
        label(jobs["moved"], **{LABELS["moved"]: "other"})
        for run in ("back", "lost"):
            label(jobs[run], **{MANAGED_BY: None})
            until(
                lambda job=jobs[run]: job in [asked.name for asked in before.answered("get", "pytorchjobs", 200)],
                f"the job of {run} to be asked for by its name",
            )
        label(jobs["back"], **{MANAGED_BY: "compression-operator"})
        with kubelet(namespace):
            for run in LABELS:
                assert namespace.wait_phase(*FINAL, name=run)["phase"] == "Succeeded"
        for run in LABELS:
            assert has_step(namespace.status(run), "prepare", attempt=1, job_name=jobs[run], interruptions=0)


def test_a_job_that_ran_on_without_its_label_is_stopped_with_the_run(namespace: Namespace, api: Api) -> None:
    with namespace.operator():
        namespace.submit(jobTemplate=NOWHERE)
        job = namespace.wait_step("prepare", "Starting")["jobName"]
        until(namespace.pods, "its pod")
        path = f"{JOBS}/namespaces/{namespace.name}/pytorchjobs/{job}"
        api.merge(path, {"metadata": {"labels": {MANAGED_BY: None}}})
        namespace.edit(suspend=True)
        until(lambda: not namespace.jobs(), "the job to be deleted")
        namespace.wait_phase("Suspended")


def test_no_second_job_begins_beside_one_whose_owner_somebody_removed(namespace: Namespace, api: Api) -> None:
    one = [{"name": "width", "prune": {"hiddenSize": 64}}]

    with namespace.operator():
        namespace.submit(jobTemplate=NOWHERE, finetune=None, students=one)
        job = namespace.wait_step("prepare", "Starting")["jobName"]
        until(namespace.pods, "its pod")
        path = f"{JOBS}/namespaces/{namespace.name}/pytorchjobs/{job}"
        owners = api.call("GET", path)["metadata"]["ownerReferences"]
        api.merge(path, {"metadata": {"ownerReferences": None}})
        until(lambda: has_step(namespace.status(), "prepare", says="restore them as they were"), "it to be told")
        assert [found["metadata"]["name"] for found in namespace.jobs()] == [job]
        api.merge(path, {"metadata": {"ownerReferences": owners}})
        with kubelet(namespace):
            assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
        assert has_step(namespace.status(), "prepare", attempt=1)
