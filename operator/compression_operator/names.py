"""Deterministic names of jobs: the same attempt at the same step always has the same name."""

import hashlib
import re

NAME_LIMIT = 63 - len("-worker-1022")
"""Longest name of a job: the pods of its 1,023 workers at most fit a DNS label."""

HASH_LENGTH = 6


def job_name(run: str, student: str | None, phase: str, fingerprint: str, attempt: int) -> str:
    """`<run>-<student>-<phase>-<fp6>-<attempt>` as a DNS-1035 label of at most `NAME_LIMIT` characters.

    A run's name may be longer than that, hold dots or begin with a digit; then a hash of it keeps the name unique.
    """
    tail = f"-{phase}-{fingerprint[:6]}-{attempt}"
    full = f"{run}-{student}" if student else run
    head = re.sub(r"[^a-z0-9-]", "-", full)
    head = head if head[0].isalpha() else f"r{head}"
    room = NAME_LIMIT - len(tail)
    if head != full or len(head) > room:
        mark = hashlib.sha256(f"{run}/{student or ''}".encode()).hexdigest()[:HASH_LENGTH]
        head = f"{head[: room - HASH_LENGTH - 1].rstrip('-')}-{mark}"
    return head + tail
