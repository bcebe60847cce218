"""What is published is taken only where it holds what was published."""

import time
from collections.abc import Callable

from .artifact import Artifact, Store
from .events import Events
from .launcher.heartbeat import BEAT_SECONDS
from .store import verified


class Adoption:
    """How one process looks at published artifacts: each is verified, and a damaged one put out of the way."""

    def __init__(
        self, store: Store, events: Events, *, owns: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """`owns`: whether the step is ours, for only who makes it anew sets a damaged artifact aside. `meanwhile`:
        called now and then while files are read.
        """
        self._store = store
        self._events = events
        self._owns = owns
        self._meanwhile = meanwhile
        self._damaged: set[str] = set()

    def sound(self, artifact: Artifact | None) -> Artifact | None:
        """The artifact, where it holds what was published; else None, and it is set aside if the step is ours."""
        if artifact is None:
            return None
        if artifact.digest not in self._damaged:
            try:
                file = self.fault(artifact)
            except FileNotFoundError:  # another job has just set it aside
                return None
            if file is None:
                return artifact
            self._damaged.add(artifact.digest)
            self._events.warning(f"{artifact.path / file} is not what was published; it is set aside and made again")
        if self._owns():
            self._store.set_aside(artifact)
        return None

    def fault(self, artifact: Artifact) -> str | None:
        """The first of its files that doesn't hold what was published. Raises OSError."""
        said = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said >= BEAT_SECONDS:
                said = time.monotonic()
                self._meanwhile()
                self._events.progress(done, total, unit="bytes", doing=f"verify {artifact.name}")

        digests = {name: record.sha256 for name, record in artifact.manifest.files.items()}
        return verified.fault(self._store.root, artifact.name, digests, progress, anew=self._store.trust.known_only)
