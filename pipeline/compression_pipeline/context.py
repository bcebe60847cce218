"""What a phase is given besides its configuration: where to write, whom to tell, when to stop."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from .adoption import Adoption
from .artifact import Artifact, Store
from .config import JobConfig
from .errors import Interrupted
from .events import Events
from .launcher import heartbeat
from .store.trust import Trust

LAUNCH_VARIABLE = "COMPRESSION_LAUNCH"
"""Names the launch of the job that a rank belongs to: what the heartbeat of its step holds, too."""


class StopFlag:
    """Set by SIGTERM. A signal only raises the flag; the phase looks at it where it can stop cleanly."""

    def __init__(self) -> None:
        self.raised = False

    def watch(self) -> None:
        """Take SIGTERM; ignore SIGINT, which a terminal sends to every process while the launcher decides for all."""
        signal.signal(signal.SIGTERM, self._raise)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True


@dataclass
class Context:
    """One rank's view of its job."""

    store: Store
    events: Events
    folder: Path  # this launch's own
    turn: Path | None = None  # where the heartbeat is; None: beside the folder
    launch: str | None = None
    stop: StopFlag = field(default_factory=StopFlag)

    @classmethod
    def of(cls, job: JobConfig, environment: Mapping[str, str] = os.environ, stop: StopFlag | None = None) -> "Context":
        """The context of this process, whose rank the launcher (or torchrun) has set.

        Raises UserError where the store can't be written.
        """
        root, rank = Path(job.store), int(environment.get("RANK", "0"))
        launch = environment.get(LAUNCH_VARIABLE)
        events = Events(silent=rank != 0)
        place = Store(root).attempt_folder if rank == 0 else Store(root).attempt_path
        folder = place(job.fingerprint, job.attempt, launch)
        return cls(
            store=Store(root, drafts=folder, trust=Trust.of(job), passed_over=events.warning),
            events=events,
            folder=folder,
            turn=Store(root).work_folder(job.artifact_key),
            launch=launch,
            stop=stop or StopFlag(),
        )

    def owns_step(self) -> bool:
        """Whether the step is still this launch's: what other launches left there may be removed then."""
        holder = heartbeat.holder(self.turn or self.folder.parent)
        return self.launch is None or (holder is not None and holder.token == self.launch)

    def sound(self, artifact: Artifact | None) -> Artifact | None:
        """The artifact, where it holds what was published; a damaged one is set aside. For rank 0."""
        return Adoption(self.store, self.events, owns=self.owns_step).sound(artifact)

    def stop_requested(self) -> bool:
        """Whether this process has seen SIGTERM; ranks that train together agree on it with a collective each step."""
        return self.stop.raised

    def stop_if_requested(self) -> None:
        """For phases of one process: raises Interrupted once SIGTERM was seen."""
        if self.stop.raised:
            raise Interrupted("was told to stop (SIGTERM)")
