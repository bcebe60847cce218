"""What this machine offers a job: GPUs, and the environment it is given."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from compression_pipeline.config import CONFIG_VARIABLE, PHASES, TERMINATION_VARIABLE, Phase
from compression_pipeline.config.schemes import offline_variables, passed_variables

EXIT_WITH_PARENT_VARIABLE = "COMPRESSION_EXIT_WITH_PARENT"
PASSED_ON = frozenset(
    {
        "CUDA_DEVICE_ORDER",  # which devices the numbers in CUDA_VISIBLE_DEVICES are
        "CUDA_HOME",
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "PATH",
        "PYTHONPATH",
        "TMPDIR",
        "TZ",
        "USER",
        "XDG_CACHE_HOME",
    }
)
PASSED_ON_PREFIXES = ("LC_", "NVIDIA_", "NCCL_", "GLOO_")
NETWORK = frozenset(
    name for lower in ("http_proxy", "https_proxy", "no_proxy", "all_proxy") for name in (lower, lower.upper())
) | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}


def environment(
    own: Mapping[str, str], phase: Phase, *, config: str, termination: Path, gpus: tuple[str, ...]
) -> dict[str, str]:
    """The environment of a job: what it needs of `own`, and nothing else.

    Only a phase that reads sources gets the network's settings and what opens sources; the others are told to stay
    offline. `gpus` are the devices that the job may use, none of the others.
    """
    kept = {k: v for k, v in own.items() if k in PASSED_ON or k.startswith(PASSED_ON_PREFIXES)}
    if PHASES[phase].reads_sources:
        kept |= {k: v for k, v in own.items() if k in passed_variables() or k in NETWORK}
    else:
        kept |= offline_variables()
    return kept | {
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        CONFIG_VARIABLE: config,
        TERMINATION_VARIABLE: str(termination),
        EXIT_WITH_PARENT_VARIABLE: "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # what jobs write is UTF-8, whatever the user's locale
    }


def visible_gpus(own: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the GPUs that a job may use, as CUDA_VISIBLE_DEVICES takes them; empty where there are none."""
    installed = _installed_gpus()
    if installed and "CUDA_VISIBLE_DEVICES" in own:
        names = (name.strip() for name in own["CUDA_VISIBLE_DEVICES"].split(","))
        return tuple(name for name in names if name and name != "-1")
    return tuple(str(number) for number in range(installed))


def _installed_gpus() -> int:
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        try:
            listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - fixed arguments
        except (OSError, subprocess.TimeoutExpired):
            listed = None
        if listed is not None and listed.returncode == 0:
            return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
