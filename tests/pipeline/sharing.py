"""Phases of jobs whose ranks share matrices, run by real ranks that share one interpreter's imports."""

import json
from contextlib import ExitStack, closing
from typing import Any

from engine_models import python
from meeting import Meeting

CODE = """
    import json, os, sys, traceback
    from pathlib import Path
    from engine_models import finetune_job
    from stores import DATA, TEACHER, common, context
    from compression_pipeline.artifact import Store
    from compression_pipeline.config import PHASES, JobConfig, Phase
    from compression_pipeline.context import LAUNCH_VARIABLE
    from compression_pipeline.megatron import engine
    from compression_pipeline.phases import distill, finetune

    engine.preload()

    def run(rank, told):
        for one in told:
            if rank >= one["ranks"]:
                continue
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(one["ranks"]), "MASTER_PORT": str(one["port"])}
            job = PHASES[Phase(one["phase"])].job.model_validate(one["job"])
            place, _ = context(Store(Path(job.store)), job.fingerprint, job.attempt)
            {"finetune": finetune, "distill": distill}[one["phase"]].run(job, place)

    told, children = json.loads(sys.stdin.read()), []
    for rank in range(max(one["ranks"] for one in told)):  # each import of Megatron takes 8 s, a fork none
        if (pid := os.fork()) == 0:
            try:
                run(rank, told)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(pid)
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    sys.exit(any(ended))
    """


def run_phases(runs: list[dict[str, Any]]) -> None:
    """Run these phases one after another, each by so many `ranks`: {phase, ranks, job}."""
    with ExitStack() as stack:
        # Each has a port of its own: one that begins must not meet the store of one that ends.
        meetings = [stack.enter_context(closing(Meeting(one["ranks"]))) for one in runs]
        told = [{**one, "port": meeting.port} for one, meeting in zip(runs, meetings, strict=True)]
        child = python(CODE, **meetings[0].environment)
        _, errors = child.communicate(json.dumps(told), timeout=540)
    assert child.returncode == 0, errors
