"""/metrics over TLS: a real client, a real certificate that is renewed, and an API server that is asked who asks."""

import asyncio
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import pytest
from http_server import Answer, Server, served

from compression_operator.cluster.health import Probes
from compression_operator.cluster.secure_metrics import (
    ALLOWED_SECONDS,
    REFUSED_SECONDS,
    REMEMBERED,
    Certificate,
    Gate,
    NoCertificate,
    SecureMetrics,
    listen,
    serve_metrics,
)
from compression_operator.kube.client import Kube

PROBES = Probes(lambda: None, lambda: None, lambda: b"x 1\n")
GET = {"path": "/metrics", "verb": "get"}


def issue(folder: Path, name: str) -> None:
    """A certificate for 127.0.0.1 that is its own authority, as tls.crt and tls.key."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True)


class Reviewer(Server):
    """Knows some tokens, and allows the reader alone to read."""

    tokens = {"reader": "prometheus", "stranger": "somebody"}  # noqa: RUF012 - never changed
    away = False

    def reply(self, method: str, path: str, body: Any) -> Answer:
        if self.away:
            return 500, {"kind": "Status", "message": "etcd is away"}, {}
        if path == "/apis/authentication.k8s.io/v1/tokenreviews":
            name = self.tokens.get(body["spec"]["token"])
            user = {"username": name, "uid": "u", "groups": ["g"], "extra": {"e": ["1"]}}
            return 201, {"status": {"authenticated": True, "user": user} if name else {"error": "unknown"}}, {}
        assert path == "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        spec = body["spec"]
        asked = {"user": spec["user"], "uid": "u", "groups": ["g"], "extra": {"e": ["1"]}, "nonResourceAttributes": GET}
        assert spec == asked
        return 201, {"status": {"allowed": spec["user"] == "prometheus"}}, {}


def kube(url: str) -> Kube:
    return Kube(lambda: kopf.ConnectionInfo(server=url))


def test_who_is_known_and_allowed_gets_them_and_nobody_else(tmp_path: Path) -> None:
    issue(tmp_path, "first")

    async def scenario(url: str) -> dict[str, tuple[int, str, str | None]]:
        runner = await serve_metrics(PROBES, Gate(kube(url)), Certificate(tmp_path), "127.0.0.1", 0)
        trusted = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
        address = f"https://127.0.0.1:{runner.addresses[0][1]}/metrics"
        told = {}
        async with aiohttp.ClientSession() as session:
            for header in ("", "Basic reader", "Bearer ", "Bearer guess", "Bearer stranger", "bearer reader"):
                headers = {"Authorization": header} if header else {}
                async with session.get(address, ssl=trusted, headers=headers) as answer:
                    told[header] = answer.status, await answer.text(), answer.headers.get("WWW-Authenticate")
            with pytest.raises(aiohttp.ClientError):
                await session.get(address.replace("https", "http"))
        await runner.cleanup()
        return told

    with served(Reviewer()) as (_, url):
        told = asyncio.run(scenario(url))
    assert {header: answer[0] for header, answer in told.items()} == {
        "": 401,
        "Basic reader": 401,
        "Bearer ": 401,
        "Bearer guess": 401,
        "Bearer stranger": 403,
        "bearer reader": 200,
    }
    assert told["bearer reader"][1] == "x 1\n"
    assert {answer[2] for answer in told.values() if answer[0] == 401} == {"Bearer"}
    assert told["Bearer stranger"][1].startswith("somebody may not get /metrics: ")


def test_answers_are_remembered_for_a_while_and_not_without_end() -> None:
    async def scenario(reviewer: Reviewer, url: str) -> None:
        clock = [0.0]
        client = kube(url)
        gate = Gate(client, lambda: clock[0])

        async def asks(token: str) -> tuple[int, int]:
            before = len(reviewer.asked)
            verdict = await gate.judge(f"Bearer {token}")
            return verdict.status, len(reviewer.asked) - before

        assert await asks("reader") == (200, 2)
        assert await asks("reader") == (200, 0)
        assert await asks("guess") == (401, 1)
        assert await asks("guess") == (401, 0)
        clock[0] += REFUSED_SECONDS + 1
        assert await asks("guess") == (401, 1)
        assert await asks("reader") == (200, 0)
        clock[0] += ALLOWED_SECONDS
        assert await asks("reader") == (200, 2)
        reviewer.away = True
        assert await asks("reader") == (200, 0), "it may stay away for a while"
        assert (await asks("stranger"))[0] == 503
        reviewer.away = False
        assert await asks("stranger") == (403, 2), "that it was away is not remembered"
        for number in range(REMEMBERED):
            await gate.judge(f"Bearer guess-{number}")
        assert await asks("guess-1") == (401, 0)
        assert await asks("reader") == (200, 2)
        await client.close()

    with served(Reviewer()) as (reviewer, url):
        assert isinstance(reviewer, Reviewer)
        asyncio.run(scenario(reviewer, url))


def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(tmp_path: Path) -> None:
    issue(tmp_path, "first")
    certificate = Certificate(tmp_path)

    async def scenario(url: str) -> None:
        runner = await serve_metrics(PROBES, Gate(kube(url)), certificate, "127.0.0.1", 0)

        async def shown() -> str:
            """The common name of the certificate that a new connection is shown."""
            port = runner.addresses[0][1]
            tls = ssl.create_default_context()
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
            found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.close()
            command = ["openssl", "x509", "-inform", "DER", "-noout", "-subject"]
            told = subprocess.run(command, input=found, capture_output=True, check=True).stdout.decode()
            return told.rpartition("=")[2].strip()

        assert await shown() == "first"
        issue(tmp_path, "second")
        assert await shown() == "second"
        (tmp_path / "tls.crt").write_text("half written")
        assert await shown() == "second"
        (tmp_path / "tls.crt").unlink()
        assert await shown() == "second"
        issue(tmp_path, "third")
        assert await shown() == "third"
        await runner.cleanup()

    with served(Reviewer()) as (_, url):
        asyncio.run(scenario(url))


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoCertificate, match=r"holds no certificate for /metrics \(tls.crt and tls.key"):
        Certificate(tmp_path)


def test_where_a_port_is_taken_the_other_one_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issue(tmp_path, "first")
    monkeypatch.setattr("compression_operator.cluster.secure_metrics.connect", lambda: kopf.ConnectionInfo(server=""))
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.close()
        secure = SecureMetrics(taken.getsockname()[1], tmp_path)

        async def scenario() -> None:
            with pytest.raises(OSError, match="address already in use"):
                await listen(PROBES, "127.0.0.1", port, secure, lambda verb, code, seconds: None)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)

        asyncio.run(scenario())
