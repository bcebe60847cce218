"""The chart's CronJob for gc, run on a cluster: it says what it would remove, and removes that once it is told to."""

import os
from pathlib import Path
from typing import Any

from api import Api, Body
from operators import RBAC, Namespace
from tests.packaging.helm import only, render
from tests.packaging.image import OPERATOR
from tests.support.waiting import until

USED, UNUSED = (f"prepare-{digit * 32}" for digit in "12")
PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Role": RBAC + "/namespaces/{}/roles",
    "RoleBinding": RBAC + "/namespaces/{}/rolebindings",
    "CronJob": "/apis/batch/v1/namespaces/{}/cronjobs",
}


def artifacts(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "artifacts").iterdir())


def installed(api: Api, namespace: str, **gc: Any) -> Body:
    """The parts of the chart that clean the store of this namespace; gives the CronJob as the API server keeps it."""
    repository, tag = OPERATOR.rsplit(":", 1)
    values = {"gc": {"stores": [{"namespace": namespace, "claimName": "store"}], **gc}}
    bodies = render(values | {"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}})
    mine = [body for body in bodies if body["metadata"]["labels"]["app.kubernetes.io/component"] == "gc"]
    for body in mine:
        path = PATHS[body["kind"]].format(namespace)
        name = body["metadata"]["name"]
        if api.get(f"{path}/{name}") is None:
            api.create(path, body)
        else:
            api.merge(f"{path}/{name}", body)
    cron = only(mine, "CronJob")
    return api.call("GET", f"{PATHS['CronJob'].format(namespace)}/{cron['metadata']['name']}")


def run_now(namespace: Namespace, cron: Body, name: str) -> str:
    """`kubectl create job --from=cronjob/...`: what it says until it has succeeded."""
    api, jobs = namespace.api, f"/apis/batch/v1/namespaces/{namespace.name}/jobs"
    made = cron["spec"]["jobTemplate"]
    api.create(jobs, {"metadata": {"name": name}, "spec": made["spec"]})

    def ended() -> Body | None:
        status = api.call("GET", f"{jobs}/{name}").get("status", {})
        return status if status.get("succeeded") or status.get("failed") else None

    status = until(ended, f"the job {name} to end")
    pods = f"/api/v1/namespaces/{namespace.name}/pods"
    (pod,) = api.items(pods, labelSelector=f"batch.kubernetes.io/job-name={name}")
    said = api.call("GET", f"{pods}/{pod['metadata']['name']}/log", accept="*/*")["text"]
    assert status.get("succeeded"), said
    return said


def test_it_says_what_it_would_remove_and_then_removes_it(
    namespace: Namespace, api: Api, pods: str, installable: None
) -> None:
    for name in (USED, UNUSED):
        folder = namespace.store / "artifacts" / name
        folder.mkdir(parents=True)
        (folder / "weights").write_text("x" * 2000)
        for path in (folder / "weights", folder):
            path.chmod(0o777)
            os.utime(path, (0, 0))
    (namespace.store / "artifacts").chmod(0o777)
    namespace.submit(suspend=True)
    step = {"name": "prepare", "phase": "prepare", "state": "Succeeded", "artifact": USED}
    status = {"status": {"steps": [step]}}
    api.call("PATCH", f"{namespace.run_path()}/status", status, kind="application/merge-patch+json")

    said = run_now(namespace, installed(api, namespace.name), "first")
    assert f"would remove artifacts/{UNUSED}" in said and USED not in said
    assert artifacts(namespace.store) == [USED, UNUSED]

    said = run_now(namespace, installed(api, namespace.name, dryRun=False), "then")
    assert f"removed artifacts/{UNUSED}" in said and USED not in said
    assert artifacts(namespace.store) == [USED]
