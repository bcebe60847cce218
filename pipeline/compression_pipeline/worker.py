"""One rank: `python -m compression_pipeline.worker PHASE`, started by the launcher or by torchrun.

It builds the context, runs the phase, and writes how that went to its outcome file.
"""

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .config import CONFIG_VARIABLE, PHASES, ExitClass, Phase
from .context import Context, StopFlag
from .errors import MissingArtifact, PhaseError, port_taken
from .faults import classify
from .launcher import outcome
from .launcher.ranks import LAUNCHER_VARIABLE
from .machine import die_with_parent
from .redaction import Redactor


def main(arguments: Sequence[str]) -> int:
    """Run this rank of the phase; returns the exit class's code."""
    _silence_libraries()
    stop = StopFlag()
    stop.watch()
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    die_with_parent(int(launcher) if alone and launcher else None)
    rank = int(os.environ.get("RANK", "0"))
    told = os.environ.get(outcome.FOLDER_VARIABLE)
    folder = Path(told) if told else None
    if folder is not None:
        outcome.write(folder, rank)
    try:
        phase = Phase(arguments[0])
        job = PHASES[phase].job.model_validate_json(os.environ[CONFIG_VARIABLE])
        context = Context.of(job, stop=stop)
        program = importlib.import_module(f"compression_pipeline.phases.{PHASES[phase].program.value}")
        result = program.run(job, context).to_json()
        context.events.result(result)
    except BaseException as error:
        fault, redactor = classify(error), Redactor.of()
        message = redactor.text(str(fault))
        if not isinstance(error, PhaseError):
            sys.stderr.write(redactor.text(traceback.format_exc()))
        if not alone or folder is None:  # a single rank's sentence is the job's, which the launcher says
            sys.stderr.write(f"rank {rank}: {message}\n")
        if folder is not None:
            taken = port_taken(error)
            missing = [fault.artifact] if isinstance(fault, MissingArtifact) else []
            told = {"message": message, "port_taken": taken, "missing": missing}
            outcome.write(folder, rank, exit_class=fault.exit_class, **told)
        # Tearing down a process group whose peers are gone may hang; nothing is left to be done here.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(fault.exit_class.code)
    if folder is not None:
        outcome.write(folder, rank, exit_class=ExitClass.DONE, result=result if rank == 0 else {})
    return ExitClass.DONE.code


def _silence_libraries() -> None:
    """Keep out of the log what torch and Megatron say about each other, which nobody who reads it can act on."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|megatron)\.")
    warnings.filterwarnings(
        "ignore", message=r"The \.grad attribute of a Tensor that is not a leaf", module=r"megatron\."
    )


def work(arguments: Sequence[str]) -> NoReturn:
    """Run this rank, and end this process."""
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take torch and its libraries down in order takes more than a second, and nothing is left to do


if __name__ == "__main__":
    work(sys.argv[1:])
