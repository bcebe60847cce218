"""Watches that end for good, each for a reason that passes: they are started anew, and nothing else ends with them."""

import functools
from pathlib import Path

import pytest
from api import CRD, Api
from bare import bare
from kubelets import NOWHERE, kubelet
from operators import FINAL, Namespace, Operator
from proxy import GONE, NO_LEADER, Answer, Asked, Fault, proxy
from tests.support.waiting import until

DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/compressionruns.modelcompression.io"

PAGE = Answer(200, headers={"Content-Type": "text/html"}, text="<html>maintenance</html>")
OTHER_KEYS = Answer(401, "Unauthorized")


@pytest.mark.parametrize(
    ("end", "then"), [(NO_LEADER, None), (GONE, OTHER_KEYS), (GONE, PAGE)], ids=["no leader", "401", "a page"]
)
def test_a_watch_that_ends_for_good_is_started_anew_and_ends_nothing_else(
    namespace: Namespace, api: Api, end: str, then: Answer | None
) -> None:
    left = [then] * 3

    def fault(asked: Asked) -> Fault:
        if asked.resource != "pods":
            return None
        over = before.answered("watch", "pods", 410) or before.answered("watch", "pods", 500)
        if asked.verb == "watch" and not over:
            return end
        return left.pop() if asked.verb == "list" and over and left else None

    with (
        proxy(api) as before,
        # Only a watch tells of anything.
        namespace.operator("localhost/none:1", "--resync-seconds", "3600", server=before.url) as operator,
    ):
        operator.wait_leads()
        before.fault = fault
        namespace.submit(jobTemplate=NOWHERE)  # its pod is an event of that watch
        operator.wait_line("the watches ended and restart")
        with kubelet(namespace):
            status = namespace.wait_phase(*FINAL)
        assert status["phase"] == "Succeeded", status
        assert {step["attempt"] for step in status["steps"]} == {1}, (status["steps"], operator.output())
        assert operator.process.poll() is None and operator.leads()
        assert not [line for line in operator.lines() if "traceback" in line or line["level"] == "critical"]


def test_a_crd_that_is_missing_is_waited_for_and_so_is_one_that_goes(tmp_path: Path) -> None:
    folder = tmp_path / "namespace"
    folder.mkdir()
    words = "install the CRD with `kubectl apply -f crds/`, or with the chart (crds.install)"

    def unready(operator: Operator) -> bool:
        assert operator.process.poll() is None, operator.output()
        code, said = operator.ask("/readyz")
        return code == 503 and words in said

    def has_job(namespace: Namespace, run: str) -> bool:
        return any(job["metadata"]["labels"]["modelcompression.io/run"] == run for job in namespace.jobs())

    with bare(tmp_path) as cluster, proxy(cluster.api) as before:
        namespace = Namespace.create(cluster.api, "waits", folder)
        operator = namespace.start("localhost/none:1", "--resync-seconds", "2", server=before.url)
        try:
            for name in ("first", "second"):
                until(lambda: unready(operator), "/readyz to tell what is missing")
                assert operator.ask("/healthz")[0] == 200
                before.asked.clear()
                cluster.api.apply_crd(CRD)
                operator.wait_ready()
                namespace.submit(name, jobTemplate=NOWHERE)
                until(functools.partial(has_job, namespace, name), "its job")
                until(functools.partial(before.watched, namespace.name), "all to be watched")
                cluster.api.delete(DEFINITION)
        finally:
            operator.kill()
