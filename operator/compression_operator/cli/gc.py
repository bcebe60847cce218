"""`compression gc`: remove from a store what no run refers to any more."""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import yaml

from compression_operator.api.run import CompressionRun, cluster_run
from compression_operator.local.store_gc import Unused, in_use, remove, unused, working
from compression_operator.local.workdir import Workdir, WorkdirError
from compression_pipeline.config import human_bytes

from .common import OUT, Code, complain, now


def gc(arguments: argparse.Namespace) -> int:
    """Remove what is unused, or say what would be. Raises WorkdirError."""
    store = _store(arguments)
    with contextlib.ExitStack() as stack:
        runs = [run for file in arguments.runs for run in _listed(file)]
        if arguments.namespace:
            from .cluster_runs import runs_of

            runs += runs_of(arguments.namespace, arguments.context)
        for workdir in _workdirs(store, arguments.workdir):
            stack.enter_context(workdir.locked())  # no run begins to refer to anything meanwhile
            if (run := workdir.read()) is not None:
                runs.append(run)
        if not runs:
            raise WorkdirError(
                f"no run is known that uses {store}; name its work directory (--workdir), runs (--runs) or namespace "
                "(--namespace)"
            )
        used = in_use(store, runs)
        strangers = [job for folder, job in working(store, now()) if folder not in used]
        if strangers:
            raise WorkdirError(
                f"{strangers[0]} works in {store}, or has lately, and belongs to no known run; name its work directory "
                "(--workdir), its run (--runs) or its namespace (--namespace), or wait for an hour"
            )
        found = unused(store, used, now=now(), older_than=arguments.older_than)
        return _remove(store, found, dry_run=arguments.dry_run)


def _listed(file: Path) -> list[CompressionRun]:
    """The runs of a file as `kubectl get compressionruns -o yaml` writes it. Raises WorkdirError."""
    try:
        documents: list[Any] = [found for found in yaml.safe_load_all(file.read_bytes()) if found is not None]
        lists: list[Any] = [found["items"] if "items" in found else [found] for found in documents]  # noqa: SIM401 (any type)
        return [cluster_run(item) for items in lists for item in items]
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise WorkdirError(
            f"{file}: cannot be read ({_why(error)}); give what kubectl get compressionruns -A -o yaml prints"
        ) from error


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, yaml.YAMLError):
        return f"it is not YAML: {str(error).partition(chr(10))[0]}"
    return "it contains something other than CompressionRuns"


def _remove(store: Path, found: list[Unused], *, dry_run: bool) -> int:
    done, code = 0, Code.SUCCEEDED
    for one in found:
        if not dry_run:
            try:
                if not remove(one):
                    continue
            except OSError as error:
                complain(f"cannot remove {one.path}: {error.strerror or error}")
                code = Code.FAILED
                continue
        done += one.size
        what = f"{one.path.relative_to(store)}: {human_bytes(one.size)}, last changed {one.changed:%Y-%m-%d %H:%M}"
        print("would remove" if dry_run else "removed", what)
    print(f"{human_bytes(done)} {'would be' if dry_run else 'are'} free" if found else "nothing to remove")
    return code


def _store(arguments: argparse.Namespace) -> Path:
    if arguments.store is not None:
        store: Path = arguments.store
    else:
        given = arguments.workdir or sorted(file.parent for file in OUT.glob("*/run.yaml"))
        stores = {Workdir(root).store.resolve() for root in given}
        if len(stores) != 1:
            which = f"one of {', '.join(map(str, sorted(stores)))}" if stores else "there is none in out/"
            raise WorkdirError(f"name a store with --workdir or --store: {which}")
        store = stores.pop()
    if not (store / "artifacts").is_dir():
        raise WorkdirError(f"{store} is not a store; name the folder that contains artifacts/")
    return store.resolve()


def _workdirs(store: Path, given: list[Path]) -> list[Workdir]:
    """The work directories whose runs may refer to the store: its own, those that registered, and those given."""
    own = [store.parent] if store.name == "store" else []
    registered = Workdir.registered(store)
    for root in registered:
        if not root.exists():
            print(f"{root} no longer exists, so what only its run referred to counts as unused")
    roots = {root.resolve() for root in (*own, *registered, *given)}
    # A store may well lie beside a manifest called run.yaml.
    found = [w for w in map(Workdir, sorted(roots)) if w.run_file.exists() and not w.holds_manifest]
    for missing in sorted({root.resolve() for root in given} - {workdir.root for workdir in found}):
        raise WorkdirError(f"{missing} contains no run; correct --workdir")
    return [workdir for workdir in found if workdir.store.resolve() == store]
