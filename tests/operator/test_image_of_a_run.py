"""Which image the jobs of a run on a cluster have, as its status tells."""

import pytest
from local_jobs import a_run

from compression_operator.api.run import CompressionRun
from compression_operator.clusterruns import with_image


def run(named: str | None, so_far: str | None) -> CompressionRun:
    found = a_run()
    template = found.spec.job_template.model_copy(update={"image": named})
    return found.model_copy(
        update={
            "spec": found.spec.model_copy(update={"job_template": template}),
            "status": found.status.model_copy(update={"image": so_far}),
        }
    )


@pytest.mark.parametrize(
    ("named", "so_far", "image"),
    [
        (None, None, "operator:2"),
        (None, "operator:1", "operator:1"),  # kept through an upgrade
        ("mine:1", None, "mine:1"),
        ("mine:2", "mine:1", "mine:2"),  # the user names another
        ("mine:1", "operator:1", "mine:1"),
    ],
)
def test_the_users_image_then_the_one_so_far_then_the_operators(
    named: str | None, so_far: str | None, image: str
) -> None:
    before = run(named, so_far)
    after = with_image(before, "operator:2")
    assert after.status.image == image
    assert after.spec == before.spec and with_image(after, "operator:3").status.image == image
