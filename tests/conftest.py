"""What all tests share: how far Hypothesis looks, that it judges no example by the clock, whose taste counts, how many
threads compute, and that CI leaves nothing out.
"""

import os
import sys
from collections.abc import Generator, Iterator

import pytest
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
    # Threads of OpenMP spin while they wait for each other, which costs what the tests beside this one compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """A job that runs in this process gives torch as many threads as there are processors: take them back after it."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that is skipped has failed: a cluster that cannot come up there would make all of them pass."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"CI (an environment variable) is set, and no test may be skipped there. {reason}"
    return report
