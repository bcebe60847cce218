"""What all tests share: how far Hypothesis looks, and that it judges no example by the clock."""

from hypothesis import HealthCheck, settings


def pytest_configure() -> None:
    """By default the same examples each time: one commit, one verdict. `--hypothesis-profile=search` looks for others.

    Neither measures time: on a busy machine the slowest of 200 examples tells of the machine.
    """
    # Before Hypothesis' own hook, which loads the profile that the command line names.
    settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    settings.register_profile("same", settings.get_profile("search"), derandomize=True, database=None)
    settings.load_profile("same")
