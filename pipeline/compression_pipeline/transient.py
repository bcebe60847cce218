"""Faults that another attempt may well be spared: this list, and no other fault, is retried on its own."""

import errno
import re

_ERRNOS = frozenset(
    {
        # volumes
        *(errno.EIO, errno.ESTALE, errno.EBUSY, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO, errno.ENOMEDIUM),
        *(errno.ENOLCK, errno.EAGAIN, errno.EINTR, errno.EDEADLK, errno.ENOENT, errno.ENOTEMPTY, errno.EBADFD),
        errno.EUCLEAN,
        # networks
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN),
        *(errno.ETIMEDOUT, errno.ETIME, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
        *(errno.ENETRESET, errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENOLINK, errno.ECOMM, errno.EPROTO),
        # the machine's resources
        *(errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    }
)
_ERRNO_TEXT = re.compile(r"(?:os error|errno:?) (\d+)", re.IGNORECASE)
"""How libraries in Rust and C++ (safetensors, tokenizers, Arrow) name the errno of a failed call."""

_CLASSES = frozenset(
    {
        # torch.distributed (its general DistError too: it has no other cause)
        *("DistError", "DistBackendError", "DistNetworkError", "DistStoreError", "DistQueueEmptyError"),
        *("RendezvousConnectionError", "RendezvousTimeoutError"),
        # a process pool whose worker was killed
        *("BrokenProcessPool", "BrokenThreadPool", "TimeoutExpired"),
        # HTTP clients, whose errors are OSErrors without a number
        *("Timeout", "ReadTimeout", "ConnectTimeout", "ConnectTimeoutError", "ReadTimeoutError", "MaxRetryError"),
        *("NewConnectionError", "NameResolutionError", "ProtocolError", "ChunkedEncodingError", "IncompleteRead"),
        *(
            "ProxyError",
            "SSLError",
            "RemoteDisconnected",
            "TransportError",
            "NetworkError",
            "ReadError",
            "ConnectError",
        ),
        *("gaierror", "herror"),
    }
)
_TEXT = re.compile(
    "|".join(
        (
            # peers: NCCL, gloo, torch's store
            r"NCCL error(:| in:)|NCCL communicator (was aborted|encountered error)",
            r"NCCL operations? (has|have) (failed|timed out)",
            r"Watchdog caught collective operation timeout",
            r"NCCL watchdog (thread )?(timed out|terminated|caught|got stuck)",
            r"ncclRemoteError|ncclSystemError|ncclInProgress",
            r"gloo[\w/]*/transport",
            r"(^|[\]:('\"]) ?Connection (closed by|reset|refused|timed out|aborted)",
            r"\b(connection|socket) (was |has been )?(closed by|timed out|lost)\b",
            r"\btimed out (waiting|after|while)\b|\btimeout (waiting for|after) ",
            r"\b(wait|socket|read|recv|send|operation) (timed out|timeout\s*($|[.:,(\[]))",
            r"broken pipe|no route to host|network is (unreachable|down)",
            r"failure in name resolution|Name or service not known",
            r"address already in use|\bEADDRINUSE\b",
            r"failed to (recv|send)[,:]|failed to connect to|(recvValue|sendBytes|recvBytes) failed",
            r"failed to pass monitoredBarrier",
            r"\b(429|5\d\d) (Client|Server) Error: ",
            # the GPU, its links and its driver
            r"unspecified launch failure|(ECC|NVLink) error|\bXid\b\W*\d+|fallen off the bus|GPU is lost",
            r"devices?(\(s\))? (is/are|are|is) busy or unavailable|hardware stack error",
            r"system not yet initialized|the launch timed out|cudaErrorLaunchFailure",
            r"CUDA (unknown error|error: unknown error)|no CUDA-capable device is detected|No CUDA GPUs are available",
            r"CU(BLAS|DNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)",
            # memory, space, and who kills for them
            r"can't allocate memory|cannot allocate memory|not enough memory:|std::bad_alloc|unable to mmap \d+ bytes",
            r"no space left on device|disk quota exceeded|unable to (open|write) .*shared memory",
            r"^bus error|unexpected bus error|too many open files",
            r"is killed by signal|(process|worker)( \S+)? was killed|died with <Signals\.|was terminated abruptly",
            # volumes
            r"input/output error|stale file handle|transport endpoint is not connected|remote I/O error",
            r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+",
        )
    ),
    re.IGNORECASE,
)
"""Sentences, not topics: a bug may speak of a rendezvous, a timeout or NVLink, too."""
_NOT_TRANSIENT_TEXT = re.compile(
    r"device-side assert|ncclInvalidUsage|ncclInvalidArgument|CERTIFICATE_VERIFY_FAILED", re.IGNORECASE
)
_OF_THE_PROGRAM = (AssertionError, AttributeError, ImportError, NameError, NotImplementedError, TypeError)
"""Never passing, whatever they say or came from."""


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed without anybody doing anything: an I/O error of a volume or a network, a lost
    peer, port, GPU, or process, no memory or space on the host.
    """
    return any(_is_transient(cause) for cause in _with_causes(error))


def _with_causes(error: BaseException) -> list[BaseException]:
    """The fault and what it was raised from. What was being handled by chance when it was raised says nothing."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found and not isinstance(one, _OF_THE_PROGRAM):
        found.append(one)
        one = one.__cause__ or (one.__context__ if isinstance(one, OSError) else None)
    return found


def _is_transient(error: BaseException) -> bool:
    text = str(error)
    if isinstance(error, UnicodeError | LookupError | ArithmeticError) or _NOT_TRANSIENT_TEXT.search(text):
        return False
    if isinstance(error, MemoryError | ConnectionError | TimeoutError):
        return True
    if any(kind.__name__ in _CLASSES for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _ERRNOS
    numbers = [int(number) for number in _ERRNO_TEXT.findall(text)]
    if numbers:
        return any(number in _ERRNOS for number in numbers)
    foreign = type(error).__module__ != "builtins"
    return (foreign or isinstance(error, OSError | RuntimeError)) and _TEXT.search(text) is not None
