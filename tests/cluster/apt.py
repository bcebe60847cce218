"""Debian's packages, also while somebody else holds apt's locks (a fresh machine does), or a mirror stumbles."""

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

_PATIENCE_SECONDS = 300.0
_PAUSE_SECONDS = 2.0


def install(packages: list[str], environment: Mapping[str, str] | None = None) -> str | None:
    """Install them, with new package lists where the old ones will not do; None, or apt's words on what is wrong."""
    command = ("install", "--yes", "--no-install-recommends", *packages)
    if call(*command, environment=environment) is None:
        return None
    call("update")
    return call(*command, environment=environment)


def call(*arguments: str, environment: Mapping[str, str] | None = None, folder: Path | None = None) -> str | None:
    """Run apt-get; None, or its words where it failed. Locks are waited for; those of the lists no option waits for."""
    command = ["apt-get", "--quiet=2", "--option=Acquire::Retries=3", *arguments]
    given = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"} | dict(environment or {})
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        done = subprocess.run(command, env=given, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return None
        if "Could not get lock" not in done.stderr or time.monotonic() > end:
            return done.stderr.strip()[-500:]
        time.sleep(_PAUSE_SECONDS)
