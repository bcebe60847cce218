"""`compression report`: rebuild the HTML report and say where it is."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from compression_operator.local.workdir import Workdir
from compression_pipeline.config.schemes import offline_variables, passed_variables

from .common import Code, complain, find_workdir

COMMAND = (sys.executable, "-m", "compression_pipeline.report")


def report(arguments: argparse.Namespace) -> int:
    """Build the report of a work directory. Raises WorkdirError."""
    workdir, _ = find_workdir(arguments.workdir)
    try:
        path = build_report(workdir, anew=True)
    except subprocess.CalledProcessError as error:
        complain("the report could not be built:", error.stderr.strip())
        return Code.FAILED
    print(path)
    return Code.SUCCEEDED


def build_report(workdir: Workdir, *, anew: bool = False) -> Path:
    """Build the report where it is older than the run, or `anew`; returns its path.

    It is a program of its own, since it imports what the command has no use for. Raises CalledProcessError.
    """
    path = workdir.report / "index.html"
    if not anew and path.exists() and path.stat().st_mtime >= workdir.run_file.stat().st_mtime:
        return path
    arguments = ("--run", workdir.run_file, "--store", workdir.store, "--output", workdir.report)
    subprocess.run(  # noqa: S603 - a command of our own
        [*COMMAND, *(str(argument) for argument in arguments)],
        check=True,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k not in passed_variables()} | offline_variables(),
    )
    return path
