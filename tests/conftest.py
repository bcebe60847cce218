"""What all tests share: how far Hypothesis looks, that it judges no example by the clock, and whose taste counts."""

import os

from hypothesis import HealthCheck, settings

TASTE = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "HF_HUB_OFFLINE")
"""What a person or a CI sets for themselves, and what changes the words that tests look at, or whom they may ask."""


def pytest_configure() -> None:
    """By default the same examples each time: one commit, one verdict. `--hypothesis-profile=search` looks for others.

    Neither measures time: on a busy machine the slowest of 200 examples tells of the machine.
    """
    # Before Hypothesis' own hook, which loads the profile that the command line names.
    settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    settings.register_profile("same", settings.get_profile("search"), derandomize=True, database=None)
    settings.load_profile("same")
    for name in TASTE:
        os.environ.pop(name, None)
