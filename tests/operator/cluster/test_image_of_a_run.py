"""Which image the jobs of a run on a cluster have, as its status tells."""

from pathlib import Path

import pytest
from api_world import RUN, ApiWorld, Operator, run_in_world
from local_jobs import a_run
from tests.support.matchers import has_condition
from tests.support.waiting import until_async

from compression_operator.api.run import CompressionRun
from compression_operator.api.templates import TemplatePolicy
from compression_operator.backends.pods.platform_defaults import JobDefaults
from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.cluster.runs import with_image


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


def test_an_image_that_is_refused_is_not_remembered() -> None:
    policy = TemplatePolicy(images=("good:*",))
    refused = with_image(run("evil:1", None), "operator:2", policy)
    assert refused.status.image == "operator:2", "what it would have once it names the image no longer"
    assert with_image(run("evil:1", "good:1"), "operator:2", policy).status.image == "good:1"
    assert with_image(run("good:2", "good:1"), "operator:2", policy).status.image == "good:2"


@pytest.mark.parametrize(
    ("so_far", "made"),
    [
        ("evil:1", False),  # from before there was the policy
        ("good/x:1", True),
        ("r.example:5000/pipeline:2", True),
        ("r.example:5000/pipeline:1", True),  # the operator's own, before it was upgraded
        (f"r.example:5000/pipeline@sha256:{'0' * 64}", True),
        ("r.example:5000/pipelines:2", False),
    ],
)
def test_no_job_has_an_image_that_is_not_allowed(
    so_far: str, made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run names no image: what it has had so far is looked at as well."""

    async def scenario(api: ApiWorld) -> None:
        api.objects[RUN]["status"] = {"image": so_far}
        async with Operator(image="r.example:5000/pipeline:2", jobs=JobDefaults(allowed_images=("good/*",))):
            if made:
                await until_async(lambda: api.names(PYTORCHJOBS), "the job")
            else:
                await until_async(
                    lambda: has_condition(api, "Degraded", "True", reason="PodTemplateRefused"),
                    "the image to be refused",
                )
                assert not api.names(PYTORCHJOBS)

    run_in_world(scenario, tmp_path, monkeypatch)
