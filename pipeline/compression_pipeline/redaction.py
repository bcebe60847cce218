"""Secrets of a job's environment, and how they are kept out of everything that it says.

One `Redactor` knows every secret. The launcher passes its own output and that of its ranks through it (`guarded`), so
that no library, traceback or crash can tell one; sentences that leave by other ways (termination message, events of a
phase that runs without a launcher) pass through `text`.
"""

import base64
import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast
from urllib.parse import quote, quote_plus

from compression_pipeline.config.schemes import secret_variables

SHORTEST_TOKEN = 4
"""Characters of the shortest token that is one. To hide a shorter one would make every other word unreadable."""

HIDDEN = "***"

_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY)$", re.I
)
_SHORTEST_OTHER = 8
"""Of variables that only sound like a secret, shorter values (true, 1, none) are no such thing."""

_CREDENTIALS = re.compile(r"(?<=://)([^\s/?#@'\"]+)@")
"""User and password in a URL."""

_SEPARATORS = re.compile(r"[\s\x00-\x1f\x7f]+")
_LONGEST_LINE = 1 << 16
_JSON_LINE = re.compile(rb"^(\{.*\})(?=\r?$)", re.MULTILINE)


class Redactor:
    """Replaces secrets by asterisks, in whichever usual way they are written."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        self._longest = max(map(len, forms), default=0)
        # The longest first: a secret may begin with another one.
        ordered = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile(b"|".join(map(re.escape, ordered)), re.IGNORECASE) if ordered else None

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Redactor":
        """What hides the secrets of this environment."""
        return cls(_secrets(environment))

    @property
    def needed(self) -> bool:
        """Whether there is any secret."""
        return self._pattern is not None

    @property
    def longest(self) -> int:
        """Bytes of the longest form of a secret."""
        return self._longest

    def data(self, content: bytes) -> bytes:
        return content if self._pattern is None else self._pattern.sub(HIDDEN.encode(), content)

    def lines(self, content: bytes) -> bytes:
        """`data` of whole lines, where one that is a JSON object stays one."""
        if self._pattern is None or not self._pattern.search(content):
            return content
        parts = _JSON_LINE.split(content)  # every second one is an object
        return b"".join(self._object(part) if number % 2 else self.data(part) for number, part in enumerate(parts))

    def value(self, content: Any) -> Any:
        """JSON without secrets. A number that holds one becomes a string of asterisks."""
        if isinstance(content, str):
            return self.text(content)
        if isinstance(content, Mapping):
            told = cast("Mapping[str, Any]", content)
            return {self.text(str(key)): self.value(one) for key, one in told.items()}
        if isinstance(content, list | tuple):
            return [self.value(one) for one in cast("Iterable[Any]", content)]
        written = json.dumps(content)
        return content if self.text(written) == written else HIDDEN

    def _object(self, line: bytes) -> bytes:
        try:
            left = json.dumps(self.value(json.loads(line)), ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            return self.data(line)
        return self.data(left)  # where a secret lies across what JSON needs, it is the secret that counts

    def text(self, content: str) -> str:
        return without_credentials(self.data(content.encode(errors="surrogateescape")).decode(errors="replace"))


def without_credentials(content: str) -> str:
    """The text with no user and password in its URLs."""
    return _CREDENTIALS.sub(f"{HIDDEN}@", content)


def _secrets(environment: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    of_sources = secret_variables()
    for name, value in environment.items():
        if name in of_sources:
            found |= _pieces(value, SHORTEST_TOKEN)
        elif _SECRET_NAME.search(name) and not _is_path(value):
            found |= _pieces(value, _SHORTEST_OTHER)
        for credentials in _CREDENTIALS.findall(value):
            found |= _pieces(credentials, SHORTEST_TOKEN) | _pieces(credentials.partition(":")[2], _SHORTEST_OTHER)
    return found


def _is_path(value: str) -> bool:
    """Whether the value names a file that holds the secret; many a key begins with a slash, too."""
    return value.startswith("/") and os.path.exists(value)  # noqa: PTH110 (Path raises for what can be no name)


def _pieces(value: str, shortest: int) -> set[str]:
    """A secret that holds a line break is written in pieces: each is one."""
    whole = {value.strip()} | set(_SEPARATORS.split(value))
    return {piece for piece in whole if len(piece) >= shortest}


def _forms(secret: str) -> set[bytes]:
    """How a secret may be written: as it is, in a URL, in a literal, in a header of basic authentication."""
    raw = secret.encode(errors="surrogateescape")
    escaped = secret.encode("unicode_escape", errors="replace").decode()
    texts = {quote(raw, safe=""), quote(raw), quote_plus(raw), escaped, json.dumps(secret)[1:-1], repr(raw)[2:-1]}
    forms = {raw, *(text.encode() for text in texts)}
    for shift in range(3):  # base64 writes three bytes as four characters: where a secret begins decides how it looks
        encoded = base64.b64encode(bytes(shift) + raw)
        inner = encoded[(0, 2, 3)[shift] :].rstrip(b"=")
        inner = inner if len(bytes(shift) + raw) % 3 == 0 else inner[:-1]
        if len(inner) >= _SHORTEST_OTHER:
            forms |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return forms


@contextmanager
def guarded(redactor: Redactor) -> Iterator[None]:
    """What this process and those that it starts write to stdout and stderr passes through the redactor until the end
    of the block: whoever writes it, in whichever language.
    """
    if not redactor.needed:
        yield
        return
    streams = [_Guard(redactor, number) for number in (1, 2)]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        for guard in streams:
            guard.end()


class _Guard:
    """A pipe in the place of one file descriptor, and the thread that empties it."""

    def __init__(self, redactor: Redactor, number: int) -> None:
        self._redactor = redactor
        self._number = number
        self._real = os.dup(number)
        self._source, sink = os.pipe()
        os.dup2(sink, number)
        os.close(sink)
        self._thread = threading.Thread(target=self._pump, name=f"redact-{number}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Returns once everything is written. A stray process that still holds the pipe is not waited for."""
        os.dup2(self._real, self._number)
        self._thread.join(timeout=5)

    def _pump(self) -> None:
        kept = b""
        while chunk := os.read(self._source, _LONGEST_LINE):
            # Only whole lines: the rest of a secret may come with the next piece.
            lines, newline, kept = (kept + chunk).rpartition(b"\n")
            self._write(lines + newline)
            if len(kept) > _LONGEST_LINE + self._redactor.longest:
                kept = self._redactor.data(kept)
                self._write(kept[: -self._redactor.longest])
                kept = kept[-self._redactor.longest :]
        self._write(kept)
        os.close(self._source)

    def _write(self, content: bytes) -> None:
        left = self._redactor.lines(content)
        # Whoever read the log is gone, or its disk is full. The pipe is emptied all the same, or its writers stall.
        with suppress(OSError):
            while left:
                left = left[os.write(self._real, left) :]
