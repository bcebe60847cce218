"""Which published artifacts a job takes for what they say they are.

Whoever may write the volume can write any manifest, and everybody can compute a fingerprint. So what stands there says
nothing of who made it. That is told in the statuses of runs, which no job can write: each job says the digest of the
manifest that it published or adopted, and later ones are given the digests that they may meet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from compression_pipeline.config import Cache, JobConfig


@dataclass(frozen=True)
class Trust:
    """What a job was told of artifacts, by the SHA-256 of their manifests."""

    cache: Cache = Cache.STORE
    expected: Mapping[str, str] = field(default_factory=dict[str, str])  # of its inputs, by their names
    known: frozenset[str] = frozenset()  # of what it may adopt, where that is not everything

    @classmethod
    def of(cls, job: JobConfig) -> "Trust":
        """What this job was told."""
        return cls(job.cache, dict(job.expected), frozenset(job.known))

    @property
    def known_only(self) -> bool:
        """Whether only what is known may be adopted. No note on the volume is believed then."""
        return self.cache is not Cache.STORE

    def admits(self, name: str, digest: str) -> bool:
        """Whether the artifact of this name may have a manifest of this digest."""
        told = self.expected.get(name)
        return digest == told if told is not None else not self.known_only or digest in self.known

    def refusal(self, name: str) -> str:
        """Why an artifact of this name is not taken, though it is whole."""
        if name in self.expected:
            return "is not the one that this run has seen made: another has taken its place since"
        return f"was not made by this run, which takes only its own artifacts (cache: {self.cache.value})"
