"""Work of real ranks, which share one interpreter's imports, for tests of layouts."""

import json
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Any

from engine_models import python
from meeting import Meeting
from torch import Tensor

CODE = """
    import json, os, shutil, signal, sys, traceback, warnings
    from dataclasses import replace
    from importlib import import_module
    from pathlib import Path
    from finetuning import Stopping
    from stores import context
    from compression_pipeline.artifact import Store
    from compression_pipeline.config import PHASES, Phase
    from compression_pipeline.megatron import engine

    engine.preload()
    warnings.simplefilter("ignore")

    def phase(name, job, killed_at=None, first=0):
        job = PHASES[Phase(name)].job.model_validate(job)
        place, heard = context(Store(Path(job.store)), job.fingerprint, job.attempt)
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if killed_at is not None and last:
            place = replace(place, events=Stopping(killed_at, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        import_module(f"compression_pipeline.phases.{name}").run(job, place)
        assert not first or next(e["step"] for e in heard.seen if e["event"] == "progress") == first + 1

    def call(name):
        module, _, function = name.partition(":")
        getattr(import_module(module), function)()

    def work(told):
        return phase(**told["phase"]) if "phase" in told else call(told["call"])

    failed = []
    for number, told in enumerate(json.loads(sys.stdin.read())):
        if "copy" in told:
            shutil.copytree(*told["copy"], dirs_exist_ok=True)
            continue
        os.environ |= {"WORLD_SIZE": str(told["ranks"]), "MASTER_PORT": str(told["port"])}
        children = []
        for rank in range(told["ranks"]):  # each import of Megatron takes 8 s, a fork none
            if (pid := os.fork()) == 0:
                os.environ["RANK"] = str(rank)
                try:
                    work(told)
                    os._exit(0)
                except BaseException:
                    if not told.get("fails"):
                        traceback.print_exc()
                    os._exit(1)
            children.append(pid)
        ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        if any(ended) != bool(told.get("fails")):
            failed.append((number, ended))
    sys.exit(f"failed: {failed}" if failed else 0)
    """


def run(works: list[dict[str, Any]]) -> None:
    """Do these one after another: {"ranks": n, "phase": {name, job, killed_at}} or {"ranks": n, "call": "module:name"},
    with "fails" where the ranks must not end well; or {"copy": [from, to]} of folders.
    """
    with ExitStack() as stack:
        # Each has a port of its own: one that begins must not meet the store of one that ends.
        meetings = [stack.enter_context(closing(Meeting(one.get("ranks", 1)))) for one in works]
        told = [{**one, "port": meeting.port} for one, meeting in zip(works, meetings, strict=True)]
        child = python(CODE, **meetings[0].environment)
        _, errors = child.communicate(json.dumps(told))
    assert child.returncode == 0, errors


def assert_weights_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rate: float) -> None:
    """Weights after a few steps of AdamW at this rate differ by what float32 sums in another order make of them.

    AdamW makes a step of about the rate of any gradient, however small: where that is rounding alone, as now and then
    of a single weight, so is the step's sign. A gradient that is wrong moves many.
    """
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        apart = (found[name] - weight).abs()
        assert apart.max() <= rate, name
        # A bias of keys moves all scores of a row alike, so its gradient is rounding alone.
        assert name.endswith("k_proj.bias") or apart.mean() < 1e-5, name
