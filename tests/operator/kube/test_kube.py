"""The one client of the API server: pages, refusals, faults and the fence, against a real HTTP server."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import pytest
from http_server import Answer, served
from tests.support.waiting import until_async, within

from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.kube.client import LEASES, PODS, RUNS, ApiError, Kube, NotLeading
from compression_operator.kube.login import NoCluster, connect


def ask(url: str, what: Callable[[Kube], Any], **options: Any) -> Any:
    async def scenario() -> Any:
        kube = Kube(lambda: kopf.ConnectionInfo(server=url), **options)
        try:
            return await what(kube)
        finally:
            await kube.close()

    return asyncio.run(scenario())


def refused(url: str, what: Callable[[Kube], Any], **options: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(url, what, **options)
    return caught.value


def item(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}}


def test_a_list_comes_in_pages_and_has_one_version() -> None:
    with served() as (server, url):
        server.answer = lambda _, path: (
            (200, {"metadata": {"resourceVersion": "7"}, "items": [item("b")]}, {})
            if "continue=next" in path
            else (200, {"metadata": {"resourceVersion": "7", "continue": "next"}, "items": [item("a")]}, {})
        )
        found = ask(url, lambda kube: kube.list(RUNS, "ns", selector="a=b"))
    assert [body["metadata"]["name"] for body in found.items] == ["a", "b"] and found.version == 7
    assert all("labelSelector=a%3Db" in path and "/namespaces/ns/" in path for _, path, _, _ in server.asked)


def test_a_list_that_expires_between_pages_starts_over() -> None:
    pages = iter(
        [
            (200, {"metadata": {"resourceVersion": "7", "continue": "next"}, "items": [item("old")]}, {}),
            (410, {"kind": "Status", "reason": "Expired", "message": "too old"}, {}),
            (200, {"metadata": {"resourceVersion": "9"}, "items": [item("new")]}, {}),
        ]
    )
    with served() as (server, url):
        server.answer = lambda *_: next(pages)
        found = ask(url, lambda kube: kube.list(RUNS))
    assert [body["metadata"]["name"] for body in found.items] == ["new"] and found.version == 9


def test_whether_a_watch_is_allowed_is_asked_without_watching() -> None:
    verbs: list[tuple[str, int]] = []
    with served() as (server, url):
        # A stream of which nothing may be waited for: it goes on, and its next chunk never comes.
        server.answer = lambda *_: (200, "1\r\n{\r\n", {"Transfer-Encoding": "chunked"})
        noted: dict[str, Any] = {"on_request": lambda verb, code, _: verbs.append((verb, code))}
        ask(url, lambda kube: kube.watchable(RUNS, "ns", selector="a=b"), **noted)
        server.answer = lambda *_: (403, {"reason": "Forbidden", "message": "no"}, {})
        assert refused(url, lambda kube: kube.watchable(RUNS), **noted).denied
    assert verbs == [("watch", 200), ("watch", 403)]
    assert all("watch=true" in path and "timeoutSeconds=1" in path for _, path, _, _ in server.asked)


def test_of_a_log_the_end_is_kept() -> None:
    """limitBytes keeps the first bytes of the last lines, so it is not asked for."""
    with served() as (server, url):
        server.answer = lambda *_: (200, "".join(f"{n:01999}\n" for n in range(500)) + "newest", {})
        text = ask(url, lambda kube: kube.log("ns", "pod", container="pytorch", tail_lines=500, last_bytes=65_536))
        server.answer = lambda *_: (200, "short", {})
        whole = ask(url, lambda kube: kube.log("ns", "pod", container="pytorch", tail_lines=500, last_bytes=65_536))
    assert len(text) == 65_536 and text.endswith(f"{499:01999}\nnewest") and whole == "short"
    assert "tailLines=500" in server.asked[0][1] and "limitBytes" not in server.asked[0][1]


def test_refusals_are_understood() -> None:
    terminating = {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]}
    cases: list[tuple[Answer, dict[str, Any]]] = [
        (
            (429, {"reason": "TooManyRequests", "message": "slow"}, {"Retry-After": "3"}),
            {"retry_after": 3.0, "transient": True},
        ),
        ((503, "<html>upstream is away</html>", {}), {"transient": True, "reason": ""}),
        ((403, {"reason": "Forbidden", "message": "no"}, {}), {"transient": False, "namespace_gone": False}),
        ((403, {"reason": "Forbidden", "details": terminating}, {}), {"namespace_gone": True}),
        ((404, {"reason": "NotFound", "details": {"kind": "namespaces"}}, {}), {"namespace_gone": True}),
        ((404, "404 page not found", {}), {"namespace_gone": False, "transient": False}),
        ((422, {"reason": "Invalid"}, {}), {"transient": False}),
        ((409, {"reason": "AlreadyExists"}, {}), {"reason": "AlreadyExists", "transient": True}),
        ((500, [1], {}), {"transient": True}),
        ((0, "", {}), {"transient": True, "reason": "Unreachable"}),
    ]
    with served() as (server, url):
        for answer, expected in cases:
            server.answer = lambda *_, answer=answer: answer
            error = refused(url, lambda kube: kube.create(PYTORCHJOBS, "ns", {}))
            assert {name: getattr(error, name) for name in expected} == expected and error.code == answer[0]
            assert str(error)


def test_a_refusal_says_what_was_asked_for() -> None:
    with served() as (server, url):
        for resource, name in (
            (RUNS, "compressionruns.modelcompression.io"),
            (PODS, "pods"),
            (LEASES, "leases.coordination.k8s.io"),
        ):
            for answer in ("404 page not found\n", {"reason": "NotFound", "message": "no"}):
                server.answer = lambda *_, answer=answer: (404, answer, {})
                for what in (
                    lambda kube, resource=resource: kube.list(resource),
                    lambda kube, resource=resource: kube.list(resource, "ns"),
                    lambda kube, resource=resource: kube.watchable(resource, "ns"),
                    lambda kube, resource=resource: kube.replace(resource, "ns", "x", {}, subresource="status"),
                ):
                    assert refused(url, what).resource == name
        log = refused(url, lambda kube: kube.log("ns", "x", container="c", tail_lines=1, last_bytes=1))
        assert log.resource == "pods"


@pytest.mark.parametrize("page", ["<html>sign in</html>", "", "[]", '"yes"'])
def test_a_page_in_place_of_an_answer_is_no_answer(page: str) -> None:
    """A load balancer's or a portal's, with a code that says that all is well."""
    with served() as (server, url):
        server.answer = lambda *_: (200, page, {})
        for what in (
            lambda kube: kube.get(RUNS, "ns", "x"),
            lambda kube: kube.list(RUNS),
            lambda kube: kube.create(RUNS, "ns", {}),
            lambda kube: kube.delete(RUNS, "ns", "x"),
        ):
            error = refused(url, what)
            assert error.transient and str(error).startswith(
                "what answered is not the Kubernetes API, because its answer"
            )
            assert str(error).endswith(f"The answer begins with {page!r}")


def test_an_api_server_that_does_not_answer_is_given_up() -> None:
    with served() as (server, url):
        hold = threading.Event()
        server.answer = lambda *_: (hold.wait(300), (200, {}, {}))[1]
        error = refused(url, lambda kube: kube.get(RUNS, "ns", "x"), timeout_seconds=0.2)
        hold.set()
    assert error.code == 0 and error.transient


def test_a_lease_is_renewed_whatever_else_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log readers at a lost node, and workers at a webhook that does not answer."""
    hold = threading.Event()

    async def scenario(url: str) -> None:
        kube = Kube(lambda: kopf.ConnectionInfo(server=url))
        hanging = [asyncio.create_task(kube.create(PYTORCHJOBS, "ns", {})) for _ in range(20)]
        await until_async(lambda: len(server.asked) >= 8, "eight requests to hang")
        try:
            assert await within(kube.replace(LEASES, "ns", "x", {}), "the lease to be written") == {}
        finally:
            for task in hanging:
                task.cancel()
            await kube.close()

    with served() as (server, url):
        server.answer = lambda _, path: (200, {}, {}) if "leases" in path or hold.wait(300) else (500, {}, {})
        asyncio.run(scenario(url))
        # A log is soon given up: it will be looked at again.
        monkeypatch.setattr("compression_operator.kube.client.LOG_TIMEOUT", aiohttp.ClientTimeout(total=0.1))
        error = refused(url, lambda kube: kube.log("ns", "pod", container="c", tail_lines=1, last_bytes=1))
        hold.set()
    assert "none within 0.1 s" in str(error) and error.transient


def test_a_thing_that_is_gone_is_deleted() -> None:
    with served() as (server, url):
        for answer, result in (
            ((404, {"reason": "NotFound"}, {}), None),
            ((409, {"reason": "Conflict"}, {}), None),
            ((200, {"kind": "Status"}, {}), None),
            ((200, {"kind": "PyTorchJob", "metadata": {}}, {}), {"kind": "PyTorchJob", "metadata": {}}),
        ):
            server.answer = lambda *_, answer=answer: answer
            assert ask(url, lambda kube: kube.delete(PYTORCHJOBS, "ns", "x", uid="u")) == result
        assert server.asked[-1][2]["preconditions"] == {"uid": "u"}
        server.answer = lambda *_: (409, {"reason": "Conflict"}, {})
        assert refused(url, lambda kube: kube.delete(PYTORCHJOBS, "ns", "x")).code == 409


def test_who_no_longer_leads_writes_nothing_but_leases() -> None:
    with served() as (server, url):
        options = {"leads": lambda: False}
        ask(url, lambda kube: kube.get(RUNS, "ns", "x"), **options)
        ask(url, lambda kube: kube.replace(LEASES, "ns", "x", {}), **options)
        for what in (
            lambda kube: kube.create(PYTORCHJOBS, "ns", {}),
            lambda kube: kube.replace(RUNS, "ns", "x", {}, subresource="status"),
            lambda kube: kube.patch(RUNS, "ns", "x", {}),
            lambda kube: kube.delete(PYTORCHJOBS, "ns", "x"),
            # No name makes another resource of it, nor another group's resource of that name.
            lambda kube: kube.create(PYTORCHJOBS, "leases", {}),
            lambda kube: kube.replace(RUNS, "leases-of-ours", "leases", {}, subresource="status"),
            lambda kube: kube.delete(PYTORCHJOBS, "ns", "leases"),
            lambda kube: kube.create(replace(LEASES, group="example.com"), "ns", {}),
        ):
            with pytest.raises(NotLeading):
                ask(url, what, **options)
        assert [method for method, *_ in server.asked] == ["GET", "PUT"]


def test_every_request_is_counted() -> None:
    counted: list[tuple[str, int]] = []
    with served() as (server, url):

        def on_request(verb: str, code: int, seconds: float) -> None:
            assert seconds >= 0
            counted.append((verb, code))

        ask(url, lambda kube: kube.get(RUNS, "ns", "x"), on_request=on_request)
        server.answer = lambda *_: (503, {}, {})
        refused(url, lambda kube: kube.create(RUNS, "ns", {}), on_request=on_request)
        server.answer = lambda *_: (0, "", {})
        refused(url, lambda kube: kube.replace(RUNS, "ns", "x", {}), on_request=on_request)
    assert counted == [("get", 200), ("create", 503), ("update", 0)]


def test_credentials_that_are_refused_are_read_again() -> None:
    tokens = iter(["old", "new"])
    with served() as (server, url):
        server.answer = lambda *_: (401, {"reason": "Unauthorized"}, {})

        async def scenario() -> list[str]:
            kube = Kube(lambda: kopf.ConnectionInfo(server=url, token=next(tokens)))
            for _ in range(2):
                with pytest.raises(ApiError):
                    await kube.get(RUNS, "ns", "x")
            await kube.close()
            return [headers["Authorization"] for headers in server.headers]

        assert asyncio.run(scenario()) == ["Bearer old", "Bearer new"]


def test_in_a_pod_the_api_server_is_found_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    # The files lie at a fixed place that belongs to the system, so kopf's reading of them is left out.
    mounted = kopf.ConnectionInfo(server="https://kubernetes.default.svc")
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: mounted)
    assert connect() == replace(mounted, server="https://[fd00::1]:6443")


def test_kubeconfig_comes_before_the_service_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://example.test"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: pytest.fail("it was asked"))
    found = connect()
    assert (found.server, found.token) == ("https://example.test", "t")


def test_where_there_is_no_cluster_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(NoCluster, match="Set KUBECONFIG, or run in a pod"):
        connect()
