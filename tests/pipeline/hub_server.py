"""A small server that speaks the Hugging Face Hub's HTTP endpoints as huggingface_hub uses them, on loopback.

GET  /api/{models,datasets}/<repo>[/revision/<revision>]      what the repository is: its commit
GET  /api/{models,datasets}/<repo>/tree/<revision>            its files, in pages, with sizes and digests
HEAD, GET  /[datasets/]<repo>/resolve/<revision>/<file>       a file, with ETag, X-Repo-Commit and ranges
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 10_000
"""Bytes from which a file is kept as LFS: known by its SHA-256 instead of git's SHA-1."""

PAGE = 4
"""Files in one page of a listing."""


@dataclass
class Repository:
    """A repository: files of each revision."""

    files: dict[str, bytes]
    private: bool = False  # 401 RepoNotFound without the token
    gated: bool = False  # known, but 403 without access
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def revision(self, name: str) -> dict[str, bytes] | None:
        known = {"main": self.files, **self.branches}
        return known.get(name) or next((files for files in known.values() if commit(files) == name), None)


@dataclass
class Hub:
    """What the server serves, and what it has seen."""

    repositories: dict[str, Repository] = field(default_factory=dict)  # "models/owner/name", "datasets/owner/name"
    token: str = "hf_good"  # noqa: S105 (of this server alone)
    drops: int = 0  # connections that still break in the middle of a large file
    failures: list[int] = field(default_factory=list)  # statuses that the next requests are answered with
    announced: dict[str, int] = field(default_factory=dict)  # file -> the size that listings give, if another one
    before_large: Callable[[], None] = lambda: None  # what is waited for before the content of a large file is sent
    damage: bool = False  # the content of large files is not what was announced
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    url: str = ""

    def downloads(self) -> list[tuple[str, str | None]]:
        """File and range of every GET of a file."""
        found = [(path.split("/resolve/")[1].partition("/")[2], span) for method, path, span in self.requests
                 if method == "GET" and "/resolve/" in path]  # fmt: skip
        return sorted(found, key=str)


def commit(files: dict[str, bytes]) -> str:
    """A commit's name, 40 hex digits, which follows the content."""
    content = b"".join(name.encode() + data for name, data in sorted(files.items()))
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends; `hub.url` is where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if hub.failures:
                self._send(hub.failures.pop(0), b"{}")
                return
            api = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
            file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/((?:refs/[^/]+/)?[^/]+)/(.+)", path)
            if api:
                files = self._files(api[1], api[2], api[4] or "main")
                if files is not None:
                    self._tree(api[1], api[2], api[4], files, url.query) if api[3] == "tree" else self._info(
                        api[2], files
                    )
            elif file:
                files = self._files("datasets" if file[1] else "models", file[2], file[3])
                if files is not None:
                    self._file(files, file[4])
            else:
                self._refuse(404, "RepoNotFound")

        def _files(self, kind: str, name: str, revision: str) -> dict[str, bytes] | None:
            """The files of a revision, or None after an answer that says why not."""
            repository = hub.repositories.get(f"{kind}/{name}")
            told = self.headers.get("Authorization")
            if told is not None and told != f"Bearer {hub.token}":
                return self._refuse(401, None, "Invalid credentials in Authorization header")
            if repository is None or (repository.private and told is None):
                return self._refuse(404 if told else 401, "RepoNotFound" if told else None)
            if repository.gated and "/resolve/" in self.path:
                return self._refuse(403 if told else 401, "GatedRepo")
            files = repository.revision(revision)
            return self._refuse(404, "RevisionNotFound") if files is None else files

        def _info(self, name: str, files: dict[str, bytes]) -> None:
            siblings = [{"rfilename": file} for file in files]
            self._json(
                {"_id": "1", "id": name, "sha": commit(files), "private": False, "tags": [], "siblings": siblings}
            )

        def _tree(self, kind: str, name: str, revision: str, files: dict[str, bytes], query: str) -> None:
            start = int(parse_qs(query).get("cursor", ["0"])[0])
            entries: list[dict[str, object]] = []
            for file, data in sorted(files.items())[start : start + PAGE]:
                size = hub.announced.get(file, len(data))
                entry: dict[str, object] = {"type": "file", "path": file, "size": size, "oid": git_digest(data)}
                if len(data) >= LARGE:
                    entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 130}
                entries.append(entry)
            headers = {}
            if start + PAGE < len(files):
                here = f"{hub.url}/api/{kind}/{name}/tree/{revision}?recursive=true&cursor={start + PAGE}"
                headers["Link"] = f'<{here}>; rel="next"'
            self._json(entries, headers)

        def _file(self, files: dict[str, bytes], name: str) -> None:
            data = files.get(name)
            if data is None:
                self._refuse(404, "EntryNotFound")
                return
            large = len(data) >= LARGE
            if large and self.command == "GET":
                hub.before_large()
            digest = hashlib.sha256(data).hexdigest() if large else git_digest(data)
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit(files), "Accept-Ranges": "bytes"}
            sent = bytes(len(data)) if hub.damage and large else data
            status = 200
            span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if span:
                status, start = 206, int(span[1])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                sent = sent[start:]
            if large and hub.drops > 0 and self.command == "GET":
                hub.drops -= 1
                self._send(status, sent, headers, cut=len(sent) // 2)
            else:
                self._send(status, sent, headers)

        def _json(self, content: object, headers: dict[str, str] | None = None) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

        def _refuse(self, status: int, code: str | None, message: str = "") -> None:
            headers = {"X-Error-Code": code} if code else {}
            self._send(status, b"{}", headers | ({"X-Error-Message": message} if message else {}))

        def _send(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

    return Handler
