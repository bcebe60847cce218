"""What a fault means: any exception as one sentence with its exit class."""

import errno
import re
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .errors import Interrupted, PhaseError, TransientError, UserError, disk_full, last_line, no_space, not_whole
from .transient import is_transient

_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_GPU_MEMORY_TEXT = re.compile(
    r"(CUDA|HIP|GPU)\b.*out of memory|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)", re.DOTALL
)
_GPU_ASSERT_TEXT = re.compile(r"device-side assert", re.IGNORECASE)
_GPU_UNFIT_TEXT = re.compile(
    r"no kernel image is available|driver version is insufficient|driver on your system is too old"
    r"|forward compatibility|not compiled with CUDA|found no NVIDIA driver|invalid device ordinal|PTX was compiled",
    re.IGNORECASE,
)
_LIBRARY_TEXT = re.compile(r"cannot open shared object file|undefined symbol|GLIBC", re.IGNORECASE)
_DATA_MODULES = re.compile(
    r"(pyarrow\.lib\.|json\.decoder\.|zlib\.|lzma\.|gzip\.|zstandard|backend_c\.|_?zstd|builtins\.EOFError)"
)
_DISTRIBUTIONS = {"megatron": "megatron-core", "modelopt": "nvidia-modelopt", "yaml": "PyYAML", "PIL": "pillow"}
"""Packages whose distribution has another name."""


def classify(error: BaseException) -> PhaseError:
    """The fault as one sentence with its exit class; a `PhaseError` is what it is already.

    What is not known to pass does not: a bug that is tried four times holds its GPUs four times as long.
    """
    if isinstance(error, PhaseError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("was told to stop (SIGINT)")
    return _of_the_disk(error) or _of_the_gpu(error) or _of_the_host(error) or _of_the_user(error)


def _of_the_disk(error: BaseException) -> PhaseError | None:
    if disk_full(error):
        return no_space(error.filename if isinstance(error, OSError) else None)
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return not_whole(error.filename or "a file", str(error.strerror))
    if isinstance(error, OSError) and error.errno in _READ_ONLY and error.filename:
        return UserError(f"{error.filename} may not be written or read ({error.strerror}); check the permissions "
                         f"and that its volume is mounted writable")  # fmt: skip
    return None


def _of_the_gpu(error: BaseException) -> PhaseError | None:
    text, said = str(error), last_line(error)
    of_torch = type(error).__module__.partition(".")[0] == "torch"
    if (of_torch and type(error).__name__ == "OutOfMemoryError") or _GPU_MEMORY_TEXT.search(text):
        return UserError(
            f"the GPU is out of memory ({said}); lower microBatchSize or sequenceLength, or use more GPUs; where it "
            "scored by tasks (distill.taskInterval, target.rank: Task), which takes a second copy of the student, "
            "lower evaluate.batchSize"
        )
    if _GPU_ASSERT_TEXT.search(text):
        return UserError(
            "a kernel's assertion failed on the GPU, most likely for a token beyond the embedding; check that the "
            "tokenizer and the text belong to this teacher"
        )
    if _GPU_UNFIT_TEXT.search(text):
        return UserError(
            f"the image's torch ({_version('torch')}) and this node's GPU or driver don't fit each other ({said}); use "
            "an image whose CUDA the driver knows, or another node"
        )
    return None


def _of_the_host(error: BaseException) -> PhaseError | None:
    if isinstance(error, MemoryError):
        return TransientError("out of memory; raise the job's memory limit")
    return TransientError(_described(error)) if is_transient(error) else None


def _of_the_user(error: BaseException) -> UserError:
    said = _described(error)
    if isinstance(error, ImportError):
        return _of_the_image(error)
    if isinstance(error, OSError) and _LIBRARY_TEXT.search(str(error)):
        return UserError(f"the image lacks a library ({said}); use an image that images/pipeline builds")
    if isinstance(error, IndexError) and "index out of range in self" in str(error):
        return UserError(
            "a token is beyond the embedding; check that the tokenizer and the text belong to this teacher"
        )
    if isinstance(error, UnicodeError):
        return UserError(f"a text is not UTF-8 ({said}); convert it, or remove what is damaged")
    if isinstance(error, OverflowError) or "Overflow when unpacking" in str(error):
        return UserError(
            f"a number is too large to be computed with ({said}); look for it in the data and the manifest"
        )
    if _DATA_MODULES.match(f"{type(error).__module__}.{type(error).__name__}"):
        return UserError(f"a file can't be read ({said}); look whether it is damaged, and replace it")
    if type(error).__name__ == "ValidationError":
        return UserError(
            f"a configuration or a record is not what this image knows ({said}); use the image of the operator's "
            "version"
        )
    if type(error).__name__ == "SafetensorError":
        return UserError(f"a safetensors file can't be read ({said}); look whether it is damaged, and replace it")
    return UserError(
        f"{said}{_place(error)}; this is a bug of the pipeline or of its image (torch {_version('torch')}, "
        f"megatron-core {_version('megatron-core')}): please report it with this log"
    )


def _of_the_image(error: ImportError) -> UserError:
    package = (error.name or "").partition(".")[0]
    found = f"{package} {_version(package)} was found" if package and _version(package) != "none" else "it is not there"
    return UserError(
        f"the image lacks what is needed ({_described(error)}; {found}); use an image that images/pipeline builds"
    )


def _version(package: str) -> str:
    for name in (package, _DISTRIBUTIONS.get(package, package)):
        try:
            return version(name)
        except (PackageNotFoundError, ValueError):
            continue
    return "none"


def _described(error: BaseException) -> str:
    """What it says, and what was noted on the way (a file, a row)."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    return f"{type(error).__name__}: {last_line(error)}{where if where.strip(' ()') not in str(error) else ''}{notes}"


def _place(error: BaseException) -> str:
    """The line of the program that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
