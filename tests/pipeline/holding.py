"""Trainings that are held at a step, so that what a test does to them happens there, however busy the machine is."""

import os
from pathlib import Path

# Python runs `sitecustomize` in every process that is started with its folder on PYTHONPATH.
_SITE = """
import time
from pathlib import Path

from compression_pipeline.context import StopFlag
from compression_pipeline.events import Events

write, stop = Events._write, StopFlag._raise


def held(self, event, **fields):
    write(self, event, **fields)
    if not self._silent and event == "progress" and fields.get("loss") is not None and fields["step"] == {step}:
        while not Path({go!r}).exists():
            time.sleep(0.005)


def told(self, *given):
    stop(self, *given)
    Path({told!r}).touch()


Events._write, StopFlag._raise = held, told
"""


class Hold:
    """Holds the rank that speaks (0) at step `step`, of which it has told; it still hears signals."""

    def __init__(self, folder: Path, step: int) -> None:
        """`folder`: a new one, for this alone."""
        folder.mkdir()
        self._go, self._told = folder / "go", folder / "told"
        site = _SITE.format(step=step, go=str(self._go), told=str(self._told))
        (folder / "sitecustomize.py").write_text(site)
        told = os.environ.get("PYTHONPATH")
        self.environment = {"PYTHONPATH": os.pathsep.join([str(folder), *([told] if told else [])])}

    @property
    def told_to_stop(self) -> bool:
        """Whether a rank has heard that it is to stop."""
        return self._told.exists()

    def release(self) -> None:
        """Let it go on."""
        self._go.touch()
