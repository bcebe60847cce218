"""What is drawn by lot, and comes out the same on every rank, machine and attempt."""

import hashlib

import numpy


def permutation(count: int, *drawn_for: str | int) -> "numpy.ndarray[tuple[int], numpy.dtype[numpy.int64]]":
    """The numbers below `count` in an order that is a function of `count` and of `drawn_for` alone.

    What is drawn for different purposes is independent, whatever seeds a user gives. The stream of `RandomState` is
    the one of NumPy's that no release may change.
    """
    text = "\n".join(map(str, (*drawn_for, count)))
    seed = numpy.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4")
    return numpy.random.RandomState(seed).permutation(count)
