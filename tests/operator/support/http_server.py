"""A real HTTP server in the place of the API server, which answers as it is told."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any, dict[str, str]]


class Server:
    """Answers as it is told; notes what it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str], Answer] = lambda method, path: (200, {}, {})
        self.asked: list[tuple[str, str, Any, str]] = []
        self.headers: list[Mapping[str, str]] = []

    def reply(self, method: str, path: str, body: Any) -> Answer:
        """The answer to one request; `body` is None where it has none."""
        return self.answer(method, path)


@contextmanager
def served(given: Server | None = None) -> Iterator[tuple[Server, str]]:
    told = given or Server()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            told.asked.append((self.command, self.path, body, self.headers.get("User-Agent", "")))
            told.headers.append(dict(self.headers))
            code, answer, headers = told.reply(self.command, self.path, body)
            if code == 0:
                self.connection.close()
                return
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(code)
            # An answer in chunks has no length.
            length_told = {} if "Transfer-Encoding" in headers else {"Content-Length": str(len(data))}
            for name, value in {**headers, **length_told}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = respond  # noqa: N815 - names of the standard library's

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield told, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
