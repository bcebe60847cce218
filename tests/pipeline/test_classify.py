"""What every kind of exception means: the real ones, raised by those who raise them, wherever that can be had here."""

import concurrent.futures
import copy
import errno
import gzip
import importlib
import io
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import yaml
from pydantic import BaseModel
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented, but not in __all__

from compression_pipeline.config import ExitClass, FinetuneConfig
from compression_pipeline.errors import Interrupted, MissingArtifact, PhaseError, TransientError, UserError
from compression_pipeline.faults import classify

USER, PASSING = ExitClass.USER_ERROR, ExitClass.TRANSIENT


class AcceleratorError(RuntimeError):
    """As torch names what CUDA reports; without a GPU only its words can be had."""


AcceleratorError.__module__ = "torch"
CUDA_HINT = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call.\nFor debugging consider passing"
)


def cuda(said: str) -> Callable[[], None]:
    def fail() -> None:
        raise AcceleratorError(f"CUDA error: {said}{CUDA_HINT}")

    return fail


def says(kind: type[BaseException], *arguments: Any) -> Callable[[], None]:
    def fail() -> None:
        raise kind(*arguments)

    return fail


def number(code: int, file: str | None = None) -> Callable[[], None]:
    return says(OSError, code, os.strerror(code), file) if file else says(OSError, code, os.strerror(code))


def refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    socket.create_connection(("127.0.0.1", port))


def taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        TCPStore("127.0.0.1", listener.getsockname()[1], 1, True)


def nobody_there() -> None:
    from datetime import timedelta

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    TCPStore("127.0.0.1", port, 2, False, timeout=timedelta(milliseconds=300))


def closed_store() -> None:
    from datetime import timedelta

    store = TCPStore("127.0.0.1", 0, 1, True)
    store.set_timeout(timedelta(milliseconds=200))
    store.get("nobody sets this")


def killed_worker() -> None:
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        pool.submit(signal.raise_signal, signal.SIGKILL).result()


def killed_command() -> None:
    subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], check=True)


def slow_command() -> None:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.05, check=True)


def too_much_memory() -> None:
    torch.empty(2**50, dtype=torch.float32)


def bytearray_of_everything() -> None:
    bytearray(2**62)


def safetensors_on_a_bad_volume() -> None:
    raise safetensors.SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)")


def no_safetensors() -> None:
    safetensors.torch.load(struct.pack("<Q", 4) + b"{}xx")


def no_parquet() -> None:
    pyarrow.parquet.read_table(io.BytesIO(b"PAR1" + b"x" * 30 + b"PAR1"))


def bad_utf8() -> None:
    pyarrow.array([b"\xff\xfe"]).cast(pyarrow.string()).to_pylist()


def huge_integer() -> None:
    pyarrow.array([10**30], pyarrow.int64())


def embedding() -> None:
    torch.nn.functional.embedding(torch.tensor([9]), torch.zeros(4, 2))


def shapes() -> None:
    torch.matmul(torch.zeros(2, 3), torch.zeros(2, 3))


def no_such_module() -> None:
    importlib.import_module("megatron.core.nothing_of_that_name")


def old_package() -> None:
    from torch import a_name_that_no_version_has  # pyright: ignore[reportAttributeAccessIssue, reportUnusedImport, reportUnknownVariableType]  # noqa: F401


def a_model_that_another_version_wrote() -> None:
    FinetuneConfig.model_validate({"steps": 3, "tomorrow": 1})


def strict() -> None:
    class Row(BaseModel):
        text: str

    Row.model_validate({"text": 3})


def asserted() -> None:
    raise AssertionError("(RMSNorm) is not supported in FusedLayerNorm")


def asserted_while_the_net_was_down() -> None:
    try:
        number(errno.ECONNRESET)()
    except OSError:
        asserted()


def in_a_lost_peer_s_name() -> None:
    try:
        number(errno.ECONNRESET)()
    except OSError as lost:
        raise RuntimeError("the step failed") from lost


CASES: list[tuple[str, Callable[[], Any], ExitClass, str]] = [
    # Volumes.
    ("a bad disk", number(errno.EIO, "store/model"), PASSING, "Input/output error"),
    ("a stale handle", number(errno.ESTALE, "store/model"), PASSING, "store/model"),
    ("an unmounted volume", number(errno.ENOTCONN), PASSING, "Transport endpoint"),
    ("a file that is gone", lambda: Path("/nonexistent/file").read_bytes(), PASSING, "/nonexistent/file"),
    ("a full disk", number(errno.ENOSPC, "store/model"), USER, "the disk is full"),
    ("a quota", number(errno.EDQUOT), USER, "the disk is full"),
    ("a full disk in Rust", says(safetensors.SafetensorError, "I/O error: (os error 28)"), USER, "the disk is full"),
    ("a bad disk in Rust", safetensors_on_a_bad_volume, PASSING, "os error 5"),
    ("a bad disk in Arrow", says(OSError, "Error reading bytes from file. Detail: [errno 5]"), PASSING, "errno 5"),
    ("a volume that may not be written", number(errno.EROFS, "/store"), USER, "mounted writable"),
    ("a file that is a folder", number(errno.EISDIR, "/store"), USER, "/store"),
    # Networks and peers.
    ("nobody listens", refused, PASSING, "Connection refused"),
    ("a peer that went away", says(BrokenPipeError), PASSING, "BrokenPipeError"),
    ("a name that isn't known", says(socket.gaierror, -2, "Name or service not known"), PASSING, "not known"),
    ("a port that is taken", taken, PASSING, "EADDRINUSE"),
    ("a master that never comes", nobody_there, PASSING, "Dist"),
    ("a key that never comes", closed_store, PASSING, "Dist"),
    (
        "gloo",
        says(
            RuntimeError,
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3",
        ),
        PASSING,
        "Connection closed",
    ),
    (
        "gloo's wait",
        says(RuntimeError, "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 600000ms for recv"),
        PASSING,
        "Timed out",
    ),
    (
        "NCCL",
        says(
            torch.distributed.DistBackendError,
            "NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited\nncclRemoteError: A call failed",
        ),
        PASSING,
        "ncclRemoteError",
    ),
    ("NCCL's watchdog", says(RuntimeError, "NCCL communicator was aborted on rank 3."), PASSING, "aborted"),
    ("what came from a lost peer", in_a_lost_peer_s_name, PASSING, "the step failed"),
    ("a busy server", says(OSError, "503 Server Error: Service Unavailable for url: https://hub"), PASSING, "503"),
    ("another authority", says(ssl.SSLCertVerificationError, 1, "[SSL: CERTIFICATE_VERIFY_FAILED]"), USER, "VERIFY"),
    # The GPU.
    ("a GPU that is gone", cuda("no CUDA-capable device is detected"), PASSING, "CUDA"),
    ("an ECC error", cuda("uncorrectable ECC error encountered"), PASSING, "CUDA"),
    ("a launch failure", cuda("unspecified launch failure"), PASSING, "CUDA"),
    ("NVLink", cuda("uncorrectable NVLink error detected during the execution"), PASSING, "CUDA"),
    ("a GPU that somebody has", cuda("CUDA-capable device(s) is/are busy or unavailable"), PASSING, "CUDA"),
    (
        "a failed kernel of cuBLAS",
        says(RuntimeError, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"),
        PASSING,
        "CUBLAS",
    ),
    ("a device-side assert", cuda("device-side assert triggered"), USER, "beyond the embedding"),
    (
        "an assert that NCCL tells of",
        says(torch.distributed.DistBackendError, "NCCL error: unhandled cuda error 'device-side assert triggered'"),
        USER,
        "beyond the embedding",
    ),
    (
        "CUDA out of memory",
        says(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 20 GiB."),
        USER,
        "microBatchSize",
    ),
    ("out of memory without its class", cuda("out of memory"), USER, "microBatchSize"),
    (
        "another GPU than torch was built for",
        cuda("no kernel image is available for execution on the device"),
        USER,
        "don't fit",
    ),
    (
        "an old driver",
        says(RuntimeError, "The NVIDIA driver on your system is too old (found version 11040)."),
        USER,
        "don't fit",
    ),
    ("an illegal address", cuda("an illegal memory access was encountered"), USER, "bug"),
    # The host.
    ("no memory for torch", too_much_memory, PASSING, "allocate memory"),
    ("no memory for Python", bytearray_of_everything, PASSING, "memory limit"),
    ("no memory for anybody", number(errno.ENOMEM), PASSING, "Cannot allocate"),
    ("a killed worker", killed_worker, PASSING, "terminated abruptly"),
    (
        "a killed loader",
        says(RuntimeError, "DataLoader worker (pid 7) is killed by signal: Killed. "),
        PASSING,
        "killed",
    ),
    ("a killed command", killed_command, PASSING, "SIGKILL"),
    ("a command that doesn't end", slow_command, PASSING, "timed out"),
    ("too many files", number(errno.EMFILE), PASSING, "Too many"),
    # The data.
    ("a text in another encoding", lambda: b"\xe9t\xe9".decode(), USER, "not UTF-8"),
    ("half a character", lambda: "\ud800".encode(), USER, "not UTF-8"),
    ("Arrow's text", bad_utf8, USER, "replace it"),
    ("a number beyond 64 bits", huge_integer, USER, "too large"),
    ("a number beyond 64 bits in torch", lambda: torch.tensor([10**30]), USER, "too large"),
    ("a token beyond the embedding", embedding, USER, "a token is beyond the embedding"),
    ("no parquet", no_parquet, USER, "replace it"),
    ("no JSON", lambda: json.loads("{"), USER, "replace it"),
    ("no gzip", lambda: gzip.decompress(b"no gzip"), USER, "replace it"),
    ("half a gzip", lambda: gzip.decompress(gzip.compress(b"x" * 999)[:20]), USER, "replace it"),
    ("no zlib", lambda: zlib.decompress(b"xxxx"), USER, "replace it"),
    ("no safetensors", no_safetensors, USER, "safetensors"),
    # The image, and what we did wrong.
    ("a module that is not there", no_such_module, USER, "megatron 0.15"),
    ("a package that is not there", lambda: importlib.import_module("no_such_package"), USER, "it is not there"),
    ("a package of another version", old_package, USER, f"torch {torch.__version__.split('+')[0]}"),
    (
        "a library that is not there",
        says(OSError, "libcudart.so.12: cannot open shared object file: No such file"),
        USER,
        "the image lacks a library",
    ),
    ("a configuration of another version", a_model_that_another_version_wrote, USER, "operator's version"),
    ("a record that is none", strict, USER, "operator's version"),
    ("an assertion", asserted, USER, "please report"),
    ("an assertion after a lost connection", asserted_while_the_net_was_down, USER, "please report"),
    ("a wrong type", lambda: len(3), USER, "please report"),  # pyright: ignore[reportArgumentType]
    ("a missing attribute", lambda: torch.nothing, USER, "please report"),  # pyright: ignore
    ("a missing key", lambda: {}["Connection reset by peer"], USER, "please report"),
    ("wrong shapes", shapes, USER, "please report"),
    ("a wrong value", says(ValueError, "timed out waiting for Godot"), USER, "please report"),
    ("bad YAML", lambda: yaml.safe_load("{"), USER, "please report"),
    ("what ends a program", says(SystemExit, 3), USER, "please report"),
]


@pytest.mark.parametrize(("fail", "expected", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_a_fault_means(fail: Callable[[], Any], expected: ExitClass, said: str) -> None:
    with pytest.raises(BaseException) as raised:
        fail()
    fault = classify(raised.value)
    assert fault.exit_class is expected, str(fault)
    assert said in str(fault)
    assert "\n" not in str(fault)


def test_a_bug_says_where_it_is_and_what_it_ran_on() -> None:
    with pytest.raises(AssertionError) as raised:
        asserted()
    said = str(classify(raised.value))
    assert said.startswith("AssertionError: (RMSNorm) is not supported in FusedLayerNorm")
    assert " at test_classify.py:" in said
    assert f"(torch {torch.__version__.split('+')[0]}" in said
    assert "megatron-core 0.15" in said


def test_what_was_noted_on_the_way_is_told() -> None:
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    error.add_note("texts/b.jsonl, row 7")
    assert "(texts/b.jsonl, row 7)" in str(classify(error))


@pytest.mark.parametrize("error", [UserError("u"), TransientError("t"), Interrupted("i")])
def test_what_knows_its_class_keeps_it(error: Any) -> None:
    assert classify(error) is error


def test_a_path_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        (tmp_path / "gone").read_text()
    assert str(classify(raised.value)).count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    "fault", [UserError("why"), TransientError("why"), Interrupted("why"), MissingArtifact("prune-1", "why")]
)
def test_a_fault_reaches_other_ranks_as_it_is(fault: PhaseError) -> None:
    there = copy.copy(fault)  # made anew of the same parts as by pickle, with which torch gathers objects
    assert type(there) is type(fault) and str(there) == "why"
    assert vars(there) == vars(fault)
