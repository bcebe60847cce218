"""Command line: `python -m tests.cluster up|down|status|build|import [--state FOLDER]`, run at the repository's root.

Only what a shell shall evaluate goes to standard output: `eval "$(python -m tests.cluster up)"`.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from . import build, images
from .down import down
from .errors import ClusterError
from .paths import State
from .up import Cluster, find, up


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


def _show(cluster: Cluster) -> None:
    for part in cluster.left_out:
        _say(f"Left out: {part}.")
    sys.stdout.write(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}\n")
    if cluster.bin is not None:
        # The machine's own kubectl may be of another version.
        sys.stdout.write(f"export PATH={shlex.quote(str(cluster.bin))}:$PATH\n")
    proxies = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    if cluster.address and any(os.environ.get(name) for name in proxies):
        sys.stdout.write(f"export NO_PROXY=${{NO_PROXY:+$NO_PROXY,}}{cluster.address}\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real cluster on this machine.")
    parser.add_argument("command", choices=["up", "down", "status", "build", "import"])
    parser.add_argument("archive", nargs="*", type=Path, help="import: docker-archive or OCI archive files")
    parser.add_argument("--state", type=Path, help="folder of the cluster's state (default: in the cache)")
    given = parser.parse_intermixed_args()
    try:
        # Who names a state folder wants that cluster.
        return _run(given.command, State.at(given.state), given.archive, honour_kubeconfig=given.state is None)
    except ClusterError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say("Interrupted.")
        return 130


def _run(command: str, state: State, archives: list[Path], *, honour_kubeconfig: bool) -> int:
    if command == "up":
        cluster = up(state, _say, honour_kubeconfig=honour_kubeconfig)
        if cluster.already:
            _say("The cluster is up already.")
        _show(cluster)
    elif command == "down":
        down(state, _say)
    elif command == "status":
        cluster = find(state)
        if cluster is None:
            _say("The cluster is down.")
            return 1
        _say("The cluster is up.")
        _show(cluster)
    elif command == "build":
        build.build(build.EVERYTHING, _say)
    else:
        for archive in archives:
            for name in images.import_archive(state, archive):
                _say(f"imported {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
