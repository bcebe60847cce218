"""A kind of job that this file alone knows of, taken from the manifest to the status of its run."""

import asyncio
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_world import ON_A_CLAIM, RUN, ApiWorld, Operator, world
from looks import condition
from tests.support.matchers import has_condition
from tests.support.schemas import schema_made_anew
from tests.support.waiting import until_async

from compression_operator.api import validate
from compression_operator.api.crd import custom_resource_definition
from compression_operator.api.job_kinds import JOB_KINDS, JobKindInfo
from compression_operator.api.rules import World
from compression_operator.api.run import CompressionRun
from compression_operator.api.templates import CONTAINER
from compression_operator.backends.kind import Condition, JobKind, JobView
from compression_operator.backends.kinds import KINDS
from compression_operator.backends.pods.fields import Json, mapping, when
from compression_operator.backends.pods.jobpods import job_metadata, pod_template
from compression_operator.backends.pods.platform_defaults import JobDefaults
from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.cli.inspect import render
from compression_operator.core.jobs import Job
from compression_operator.kube.client import PODS
from compression_operator.local.workdir import to_yaml
from compression_pipeline.config import ExitClass

Body = dict[str, Any]

# Its pods belong to what it makes and not to itself, have names that nobody foresees, and a rank as a label.
SET, RANK, OF = "example.org/set", "example.org/rank", "example.org/set-uid"
STORAGE = {"persistentVolumeClaim": {"claimName": "data"}}


def build(run: CompressionRun, job: Job, image: str, defaults: JobDefaults) -> Body:
    template = pod_template(run, job, image, defaults)
    return {
        "apiVersion": "example.org/v1",
        "kind": "TrainSet",
        "metadata": job_metadata(run, job, defaults),
        "spec": {"size": job.settings.nodes, "template": template},
    }


def view(body: Json) -> JobView:
    status = mapping(body, "status")
    told = Condition(True, when(status.get("since")), str(status.get("words", "")))
    state, never = status.get("state"), Condition()
    return JobView(
        pods=mapping(body, "spec").get("size", 0),
        suspend=bool(mapping(body, "spec").get("paused")),
        running=told if state == "Active" else never,
        succeeded=told if state == "Complete" else never,
        failed=told if state == "Broken" else never,
    )


def keep(body: Json) -> Body:
    spec = {name: value for name, value in mapping(body, "spec").items() if name in ("size", "paused")}
    return {"spec": spec, "status": dict(mapping(body, "status"))}


def label(pod: Json, name: str) -> str:
    return str(mapping(pod, "metadata", "labels").get(name))


TRAINSET = JobKind(
    info=JobKindInfo(
        name="TrainSet",
        group="example.org",
        plural="trainsets",
        install="install the crew of example.org",
        controller="the crew",
        webhook="trainset",
        labels="example.org",
    ),
    version="v1",
    job_label=SET,
    build=build,
    view=view,
    keep=keep,
    leads=lambda pod: label(pod, RANK) == "0",
    owns=lambda job, pod: label(pod, OF) == mapping(job, "metadata").get("uid"),
    slot=lambda pod: label(pod, RANK),
    event_fields=lambda name: f"regarding.name={name},reason=NoHands",
)
TRAINSETS = TRAINSET.resource


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(JOB_KINDS, "TrainSet", TRAINSET.info)
    monkeypatch.setitem(KINDS, "TrainSet", TRAINSET)
    with schema_made_anew():
        yield


def written(**spec: Any) -> str:
    """A manifest as a user writes it."""
    return to_yaml(ON_A_CLAIM.spec(**spec).body())


def pod(api: ApiWorld, job: str, name: str, **status: Any) -> Body:
    """A pod of the job, as what the crew has made makes it."""
    meta = api.objects[job]["metadata"]
    labels = meta["labels"] | {SET: meta["name"], OF: meta["uid"], RANK: "0"}
    owners = [{"kind": "Crew", "name": "c", "uid": "uid-crew", "controller": True}]
    body = {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "labels": labels,
            "ownerReferences": owners,
            "creationTimestamp": now(),
        },
        "spec": {"nodeName": "node-1"},
        "status": status,
    }
    return api.put(PODS.path("default", name), body)


def container(**state: Any) -> list[Body]:
    return [{"name": CONTAINER, "state": state}]


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def prepare_of(api: ApiWorld) -> Body:
    return next(iter(api.objects[RUN].get("status", {}).get("steps", [])), {})


def test_a_manifest_may_name_it_once_it_is_registered(request: pytest.FixtureRequest) -> None:
    text = written(backend="TrainSet")
    refused = validate.validate(text, "run.yaml", World.CLUSTER)
    assert isinstance(refused, list)
    assert [fault.message for fault in refused] == [f'"TrainSet" is not supported, supported: {", ".join(KINDS)}']
    request.getfixturevalue("registered")
    run = validate.validate(text, "run.yaml", World.CLUSTER)
    assert isinstance(run, CompressionRun) and run.spec.backend == "TrainSet"
    schema = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert schema["properties"]["spec"]["properties"]["backend"]["enum"] == [*KINDS]
    assert {"PyTorchJob", "TrainSet"} <= {*KINDS}


@pytest.mark.usefixtures("registered")
def test_it_is_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(written(backend="TrainSet"))
    render(Namespace(file=tmp_path / "run.yaml", set=[], image="pipeline:7", jobs=None))
    printed = capsys.readouterr().out
    assert printed.startswith("# TrainSets of run demo")
    made = list(yaml.safe_load_all(printed))
    assert {body["kind"] for body in made} == {"TrainSet"}
    assert made[0]["spec"]["template"]["spec"]["containers"][0]["image"] == "pipeline:7"


@pytest.mark.usefixtures("registered")
def test_it_is_created_and_observed_and_the_status_tells_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(api: ApiWorld) -> None:
        async with Operator(resync_seconds=0.1):
            await until_async(lambda: api.names(TRAINSETS), "the job")
            (job,) = api.names(TRAINSETS)
            assert not api.names(PYTORCHJOBS)
            started = now()
            pod(api, job, "x7f", phase="Running", containerStatuses=container(running={"startedAt": started}))
            api.put(job, api.objects[job] | {"status": {"state": "Active", "since": started}})
            await until_async(lambda: prepare_of(api).get("state") == "Running", "the step to run")
            # The pod vanishes, and another one with another name takes its place.
            api.objects.pop(PODS.path("default", "x7f"))
            pod(api, job, "q2z", phase="Running", containerStatuses=container(running={"startedAt": now()}))
            await until_async(lambda: "created again" in prepare_of(api).get("message", ""), "the attempt to be over")
            api.objects.pop(PODS.path("default", "q2z"))
            await until_async(lambda: {*api.names(TRAINSETS)} - {job}, "the next attempt")
            (again,) = {*api.names(TRAINSETS)} - {job}
            said = f'{{"class": "{ExitClass.USER_ERROR}", "message": "the teacher is no model"}}'
            ended = {"exitCode": ExitClass.USER_ERROR.code, "startedAt": started, "finishedAt": now(), "message": said}
            pod(api, again, "b9k", phase="Failed", containerStatuses=container(terminated=ended))
            await until_async(lambda: api.objects[RUN]["status"]["phase"] == "Failed", "the run to have failed")
            assert "the teacher is no model" in prepare_of(api)["message"]

    with world(tmp_path, ON_A_CLAIM.spec(backend="TrainSet")) as (api, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        asyncio.run(scenario(api))


@pytest.mark.usefixtures("registered")
def test_a_job_of_a_run_whose_backend_was_edited_is_still_looked_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(api: ApiWorld) -> None:
        async with Operator(resync_seconds=0.1):
            await until_async(lambda: api.names(PYTORCHJOBS), "the job")
            api.edit(RUN, backend="TrainSet")
            await until_async(
                lambda: api.objects[RUN]["status"]["observedGeneration"] == 2, "the edit to have been looked at"
            )
            assert len(api.names(PYTORCHJOBS)) == 1 and not api.names(TRAINSETS)
            api.edit(RUN, suspend=True)
            await until_async(lambda: not api.names(PYTORCHJOBS), "the job to be stopped")

    with world(tmp_path) as (api, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        asyncio.run(scenario(api))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("code", [404, 403])
def test_a_cluster_without_it_is_usable_for_runs_of_another_kind(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {404: "404 page not found", 403: 'User "x" cannot list resource "trainsets" in API group "example.org"'}

    async def scenario(api: ApiWorld) -> None:
        api.fault = lambda method, path: (
            (code, {"kind": "Status", "message": words[code]}, {}) if "/trainsets" in path else None
        )
        async with Operator(resync_seconds=0.1) as service:
            await until_async(lambda: api.names(PYTORCHJOBS), "the job of the other kind")
            await until_async(lambda: TRAINSETS not in service.watched()[None], "the watches to do without it")
            assert PYTORCHJOBS in service.watched()[None] and service.resources_returned.is_set()
            (job,) = api.names(PYTORCHJOBS)
            api.objects.pop(job)  # it is asked for under every kind that it may be of
            await until_async(lambda: "lastFailure" in prepare_of(api), "the job to be missed")
            assert has_condition(api, "Degraded", "False")
            service.resources_returned.clear()
            api.fault = lambda method, path: None
            await until_async(lambda: TRAINSETS in service.watched()[None], "the watches to look for it")
            assert service.resources_returned.is_set()

    with world(tmp_path) as (api, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        asyncio.run(scenario(api))


@pytest.mark.usefixtures("registered")
def test_a_run_of_it_tells_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(api: ApiWorld) -> None:
        missing = 404, "404 page not found", {}
        api.fault = lambda method, path: missing if "/trainsets" in path else None
        async with Operator(resync_seconds=0.1):
            await until_async(lambda: has_condition(api, "Degraded", "True", reason="Refused"), "the run to tell")
            told = condition(api, "Degraded").message
            assert told == "the API server does not know trainsets.example.org: install the crew of example.org"

    with world(tmp_path, ON_A_CLAIM.spec(backend="TrainSet")) as (api, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        asyncio.run(scenario(api))


def test_it_brings_its_right() -> None:
    verbs = ("get", "list", "watch", "create", "patch", "delete")
    right = TRAINSET.permission
    assert (right.group, right.resource, right.verbs) == ("example.org", "trainsets", verbs)


@pytest.mark.parametrize("name", KINDS)
def test_the_tables_agree(name: str) -> None:
    assert KINDS.keys() == JOB_KINDS.keys() and KINDS[name].info is JOB_KINDS[name]
