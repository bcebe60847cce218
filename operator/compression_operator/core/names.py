"""Deterministic names of jobs: the same attempt at the same step always has the same name."""

import hashlib
import re

NAME_LIMIT = 63 - len("-worker-1022")
"""Longest name of a job: the pods of its 1,023 workers at most fit a DNS label."""

HASH_LENGTH = 6


def job_name(run: str, student: str | None, phase: str, fingerprint: str, attempt: int) -> str:
    """`<run>-<student>-<hash6>-<phase>-<fp6>-<attempt>` as a DNS-1035 label of at most `NAME_LIMIT` characters.

    The hash is of run and student: written one after the other, `llama` with `b-width` reads as `llama-b` with `width`.
    A run's name may be too long, hold dots or begin with a digit, too.
    """
    mark = hashlib.sha256(f"{run}/{student or ''}".encode()).hexdigest()[:HASH_LENGTH]
    tail = f"-{mark}-{phase}-{fingerprint[:6]}-{attempt}"
    head = re.sub(r"[^a-z0-9-]", "-", f"{run}-{student}" if student else run)
    head = head if head[0].isalpha() else f"r{head}"
    return head[: NAME_LIMIT - len(tail)].rstrip("-") + tail
