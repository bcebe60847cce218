"""How a run was started, for the command that goes on with it."""

import argparse
import shlex
from pathlib import Path

from pydantic import ValidationError

from compression_operator.local.jobfiles import write_atomically
from compression_operator.local.workdir import Workdir
from compression_pipeline.config import Record


class Invocation(Record):
    """What the user said to `compression run` beside the work directory; absolute paths."""

    file: str
    store: str | None = None
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Invocation":
        store: Path | None = arguments.store
        return cls(
            file=str(arguments.file.absolute()),
            store=None if store is None else str(store.absolute()),
            overrides=tuple(arguments.set),
        )

    @classmethod
    def read(cls, workdir: Workdir) -> "Invocation | None":
        """That of the last command that worked on the directory; None where it left none."""
        try:
            return cls.model_validate_json(workdir.invocation.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, workdir: Workdir) -> None:
        """Keep it for whoever asks how to go on. Raises OSError."""
        write_atomically(workdir.invocation, self.model_dump_json(indent=2) + "\n")

    def resume_command(self, workdir: Workdir) -> str:
        """The command that goes on where this one stopped, ready to be pasted."""
        words = ["compression", "run", _shown(self.file), "--workdir", str(workdir.root)]
        if self.store is not None:
            words += ["--store", _shown(self.store)]
        for override in self.overrides:
            words += ["--set", override]
        return shlex.join(words)


def resume_command(workdir: Workdir) -> str:
    """The command that goes on with the run of this directory."""
    known = Invocation.read(workdir)
    if known is not None:
        return known.resume_command(workdir)
    return f"compression run FILE --workdir {shlex.quote(str(workdir.root))}"


def _shown(path: str) -> str:
    """The path as one would type it here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
