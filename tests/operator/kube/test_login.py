"""Kubeconfigs as people have them: exec plugins, proxies, several files and contexts; for the operator and commands."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from http_server import served

from compression_operator.cli.cluster_runs import runs_of
from compression_operator.kube.login import NoCluster, connect, read_kubeconfig
from compression_operator.local.workdir import WorkdirError

PLUGIN = """#!{python}
import json, os
print(json.dumps({{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {{"token":
    os.environ["PREFIX"] + json.loads(os.environ["KUBERNETES_EXEC_INFO"])["kind"]}}}}))
"""


@pytest.fixture(autouse=True)
def no_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))


def kubeconfig(
    file: Path,
    server: str,
    user: dict[str, Any] | None = None,
    context: str = "here",
    more: dict[str, str] | None = None,
) -> None:
    named = {"name": context, "context": {"cluster": context, "user": context}}
    body = {
        "current-context": context,
        "contexts": [named],
        "clusters": [{"name": context, "cluster": {"server": server, **(more or {})}}],
        "users": [{"name": context, "user": user or {"token": "t"}}],
    }
    file.write_text(yaml.safe_dump(body))


def a_plugin(command: str, **more: Any) -> dict[str, Any]:
    environment = [{"name": "PREFIX", "value": "an-"}]
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": command,
            "env": environment,
            "interactiveMode": "Never",
            **more,
        }
    }


def script(file: Path, text: str) -> str:
    file.write_text(text)
    file.chmod(0o755)
    return str(file)


def test_an_exec_plugin_says_who_we_are(tmp_path: Path) -> None:
    plugin = script(tmp_path / "plugin", PLUGIN.format(python=sys.executable))
    with served() as (server, url):
        server.answer = lambda *_: (200, {"metadata": {}, "items": []}, {})
        kubeconfig(tmp_path / "config", url, a_plugin(plugin))
        assert runs_of(["research"]) == []
        assert {"Bearer an-ExecCredential"} <= set(server.headers[0].values())
    assert connect().as_http_headers() == {"Authorization": "Bearer an-ExecCredential"}


@pytest.mark.parametrize(
    ("text", "more", "sentence"),
    [
        (None, {"installHint": "Get it\n from the cloud."}, "it is not installed. Get it from the cloud."),
        (None, {}, "it is not installed. Install it, or correct its command."),
        ("#!/bin/sh\necho the session has expired >&2\nexit 1\n", {}, "process returned 1. the session has expired"),
        ("#!/bin/sh\necho no JSON\n", {}, "failed to decode process output"),
        ('#!/bin/sh\necho \'{"apiVersion": "v9", "kind": "x", "status": {}}\'\n', {}, "does not match"),
    ],
)
def test_an_exec_plugin_that_gives_nothing_is_named(
    text: str | None, more: dict[str, Any], sentence: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client itself only logs that, and asks as nobody."""
    command = script(tmp_path / "plugin", text) if text else "cloud-login-plugin"
    kubeconfig(tmp_path / "config", "http://127.0.0.1:1", a_plugin(command, **more))
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(NoCluster, match=f"the exec plugin {command} of the kubeconfig's user here gives no") as caught:
        connect()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not caplog.records and logging.getLogger().handlers == handlers
    with pytest.raises(WorkdirError, match="gives no credentials"):
        runs_of(["research"])


def test_a_proxy_is_asked_in_the_api_servers_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as (proxy, proxy_url):
        proxy.answer = lambda *_: (200, {"metadata": {}, "items": []}, {})
        kubeconfig(tmp_path / "config", "http://api.invalid:6443", more={"proxy-url": proxy_url})
        assert runs_of(["research"]) == []
        assert proxy.asked[0][1].startswith("http://api.invalid:6443/apis/modelcompression.io/")
    assert (connect().server, connect().proxy_url) == ("http://api.invalid:6443", proxy_url)
    monkeypatch.setenv("no_proxy", ".invalid")
    assert connect().proxy_url is None
    kubeconfig(tmp_path / "config", "http://api.invalid:6443", more={"proxy-url": "socks5://127.0.0.1:1"})
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(NoCluster, match="give it one that speaks HTTP"):
        connect()


def test_of_several_files_the_first_one_says_which_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig(tmp_path / "a", "http://a.invalid", context="a")
    kubeconfig(tmp_path / "b", "http://b.invalid", context="b")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'a'}:{tmp_path / 'none'}:{tmp_path / 'b'}")
    assert connect().server == "http://a.invalid"
    assert read_kubeconfig("b").host == "http://b.invalid"
    with pytest.raises(NoCluster, match="has no context c; it has a, b"):
        read_kubeconfig("c")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "there is no kubeconfig .*config. Set KUBECONFIG, or run in a pod."),
        ("", "config cannot be used: Invalid kube-config"),
        ("[", "config cannot be used: while parsing"),
        ("nonsense", "config is no kubeconfig; write one as `kubectl config view` prints it"),
        ("- 1", "config is no kubeconfig; write one as `kubectl config view` prints it"),
        ("{}", "has no current context; choose one with kubectl config use-context"),
        ("{current-context: x}", "has no context x; it has none"),
    ],
)
def test_a_kubeconfig_that_names_no_cluster_is_refused(text: str | None, sentence: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config").write_text(text)
    with pytest.raises(NoCluster, match=sentence):
        connect()


def test_a_password_is_sent_as_one(tmp_path: Path) -> None:
    kubeconfig(tmp_path / "config", "http://x.invalid", {"username": "me", "password": "p"})
    assert connect().as_http_headers() == {"Authorization": "Basic bWU6cA=="}


@pytest.mark.parametrize(
    ("code", "body", "sentence"),
    [
        (
            401,
            {"message": "Unauthorized"},
            "the API server does not accept your credentials (Unauthorized); log in again",
        ),
        (403, {"message": "runs is forbidden"}, "cannot be listed: runs is forbidden"),
        (404, {"message": "no such resource"}, "the cluster has no CompressionRuns (no such resource)"),
        (200, "<html>", "something other than the API server answers"),
        (503, "", "cannot be listed: Service Unavailable"),
    ],
)
def test_a_refusal_is_one_sentence(code: int, body: Any, sentence: str, tmp_path: Path) -> None:
    with served() as (server, url):
        server.answer = lambda *_: (code, body, {"Content-Type": "application/json"})
        kubeconfig(tmp_path / "config", url)
        with pytest.raises(WorkdirError) as caught:
            runs_of(["research"])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert len(server.asked) == 1


def test_nobody_answers(tmp_path: Path) -> None:
    kubeconfig(tmp_path / "config", "http://127.0.0.1:1")
    with pytest.raises(WorkdirError, match=r"no answer from http://127.0.0.1:1: .*Connection refused"):
        runs_of(["research"])


def test_all_pages_are_read(tmp_path: Path) -> None:
    run = yaml.safe_load((Path(__file__).parents[1] / "valid" / "minimal.yaml").read_text())
    with served() as (server, url):

        def answer(_: str, path: str) -> Any:
            last = "continue=more" in path
            meta = {"name": "b" if last else "a", "namespace": "research"}
            return 200, {"metadata": {} if last else {"continue": "more"}, "items": [run | {"metadata": meta}]}, {}

        server.answer = answer
        kubeconfig(tmp_path / "config", url)
        assert [found.metadata.name for found in runs_of(["research"])] == ["a", "b"]


def test_a_command_that_asks_no_cluster_does_not_wait_for_the_client() -> None:
    code = (
        "import sys, compression_operator.cli.__main__, compression_operator.cli.gc, compression_operator.cli.inspect; "
        "print('kubernetes' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
