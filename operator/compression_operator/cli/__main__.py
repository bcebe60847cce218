"""The `compression` command."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from compression_operator import __version__

# Nothing else at the top: a command imports what it needs, so that --help and a typing error cost nothing.


def main(argv: Sequence[str] | None = None, *, job_command: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 well, 1 failed, 2 invalid, 130 interrupted.

    `job_command` starts a job of `run`, the phase appended; the pipeline of this Python by default.
    """
    arguments = parser().parse_args(argv)
    arguments.job_command = job_command
    from compression_operator.api.faults import InvalidManifest
    from compression_operator.local.workdir import WorkdirError

    from .common import Code, complain

    command: Callable[[argparse.Namespace], int] = _load(arguments.command_name)
    try:
        return int(command(arguments))
    except InvalidManifest as error:
        complain(*error.faults)
        return Code.INVALID
    except WorkdirError as error:
        complain(error)
        return Code.INVALID
    except KeyboardInterrupt:
        return Code.INTERRUPTED
    except BrokenPipeError:
        # `compression logs | head`: the reader has seen enough. Python would complain again when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.SUCCEEDED


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    root = argparse.ArgumentParser(
        prog="compression", description="Compress a language model: teacher correction, pruning, distillation."
    )
    root.add_argument("--version", action="version", version=f"compression {__version__}")
    commands = root.add_subparsers(dest="command_name", required=True, metavar="COMMAND")

    validate = commands.add_parser("validate", help="check whether manifests are valid")
    validate.add_argument("files", type=Path, nargs="+", metavar="FILE")
    _add_cluster(validate)
    _add_set(validate)

    plan = commands.add_parser(
        "plan", help="print the steps, and what they need: sizes, memory, operations, time, disk"
    )
    _add_file(plan)
    _add_cluster(plan)
    _add_workdir(plan)
    _add_output(plan)
    plan.add_argument(
        "--gpu", metavar="NAME", help="GPU to plan for, e.g. H100 (default: the one of the node selector)"
    )
    plan.add_argument(
        "--mfu",
        type=_share,
        default="0.4",
        metavar="SHARE",
        help="share of the GPU's peak that is reached (default: 0.4)",
    )
    plan.add_argument(
        "--teacher-config",
        type=Path,
        metavar="PATH",
        help="the teacher's config.json, if the source is out of reach",
    )
    plan.add_argument("--offline", action="store_true", help="do not ask the Hub for the teacher's config.json")

    render = commands.add_parser("render", help="print the jobs that a cluster would get")
    _add_file(render)
    render.add_argument("--image", default="compression-pipeline", help="image of runs that set no jobTemplate.image")

    render.add_argument(
        "--jobs",
        type=Path,
        metavar="FILE",
        help="file with the chart's value `jobs`, as the operator is configured with",
    )

    run = commands.add_parser("run", help="run a manifest on this machine, or resume a run that was interrupted")
    _add_file(run)
    _add_workdir(run)
    run.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="folder of the artifacts, which runs can share (default: WORKDIR/store)",
    )

    status = commands.add_parser("status", help="print the run of a work directory")
    _add_workdir(status)
    _add_output(status)

    logs = commands.add_parser("logs", help="print the log of a step")
    logs.add_argument("step", metavar="STEP", help="e.g. prepare or distill-width")
    logs.add_argument("-f", "--follow", action="store_true", help="keep printing new lines")
    logs.add_argument("--raw", action="store_true", help="print the lines unformatted")
    _add_workdir(logs)

    gc = commands.add_parser("gc", help="remove artifacts and work folders that no run refers to")
    gc.add_argument(
        "--workdir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="work directory of a run that uses the store; may be repeated",
    )
    gc.add_argument(
        "--store", type=Path, metavar="DIR", help="folder of the artifacts (default: the store of the work directory)"
    )
    gc.add_argument(
        "--runs",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a cluster's runs, from kubectl get compressionruns -A -o yaml; may be repeated",
    )
    gc.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NS",
        help="namespace whose runs are listed from the cluster; may be repeated",
    )
    gc.add_argument(
        "--context",
        default="",
        metavar="NAME",
        help="context of the kubeconfig for --namespace (default: the current one)",
    )
    gc.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    gc.add_argument(
        "--older-than", type=_duration, default="7d", metavar="AGE", help="minimum age, e.g. 12h or 0 (default: 7d)"
    )

    report = commands.add_parser("report", help="rebuild the HTML report")
    _add_workdir(report)
    return root


def _load(name: str) -> Callable[[argparse.Namespace], int]:
    if name == "run":
        from .run import run

        return run
    if name == "logs":
        from .logs import logs

        return logs
    if name == "gc":
        from .gc import gc

        return gc
    if name == "report":
        from .report import report

        return report
    if name == "plan":
        from .plan import show_plan

        return show_plan
    from . import inspect

    return {
        "validate": inspect.validate,
        "render": inspect.render,
        "status": inspect.status,
    }[name]


def _share(text: str) -> float:
    """A share of a whole: above 0 and up to 1."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share of the GPU's peak; write a number like 0.4")
    return found


def _duration(text: str) -> timedelta:
    """`7d`, `12h`, `30m` or `0`."""
    found = re.fullmatch(r"(\d+)([dhm])|0", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is not an age; write 7d, 12h, 30m or 0")
    unit = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1), None: timedelta(0)}[found[2]]
    return int(found[1] or 0) * unit


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cluster", action="store_true", help="apply the rules of clusters instead of local runs")


def _add_file(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, metavar="FILE", help="the CompressionRun manifest")
    _add_set(command)


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change a field of the manifest, e.g. spec.distill.steps=200; may be repeated",
    )


def _add_workdir(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=Path, metavar="DIR", help="work directory of the run (default: out/NAME)")


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", choices=("yaml", "json"), help="print YAML or JSON instead of a table")


if __name__ == "__main__":
    sys.exit(main())
