"""What the operator and a fork server (`launcher.forkserver`) say to each other: its command, requests and replies."""

import sys
from collections.abc import Mapping
from typing import TypedDict

from .jobs import CONFIG_VARIABLE, TERMINATION_VARIABLE

COMMAND = (sys.executable, "-m", "compression_pipeline.launcher.forkserver")
REQUEST = b"j"
"""Sent with three descriptors: of a file with the `Request` as JSON, of the job's standard input, and of its log."""

ROOM = 4096
"""Bytes that the server's own environment keeps for the value of the variable that tells a job's processes."""

_WITHOUT_THREADS = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""OpenBLAS starts its threads when it is imported, and pyarrow that of its allocator."""


class Request(TypedDict):
    """A job to start."""

    phase: str
    environment: dict[str, str]


class Reply(TypedDict, total=False):
    """Of a request, in their order: `pid`, or why there is none (`refused`). Of a job that ended: `pid` and `code`
    (negative: the signal).
    """

    pid: int
    code: int
    refused: str


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """What to start a server with: the environment of its jobs (`own`), with room for what tells their processes."""
    return {**own, **_WITHOUT_THREADS, CONFIG_VARIABLE: "", TERMINATION_VARIABLE: "-" * ROOM}
