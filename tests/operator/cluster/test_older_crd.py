"""A CRD that is older than the operator: the API server drops what it does not know, so nothing is made, and that is
told.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_world import RUN, ApiWorld, Body, Operator, run_in_world
from hypothesis import given
from hypothesis import strategies as st
from looks import condition
from tests.support.matchers import has_condition
from tests.support.waiting import until_async

from compression_operator import __version__
from compression_operator.api.run import CompressionRun
from compression_operator.api.schema import structural_schema
from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.cluster.served_schema import DOCUMENT, decisive, lacking, sentence

OWN = structural_schema(CompressionRun)


def without(field: str) -> Body:
    """The schema as it was before there was this field."""
    schema = copy.deepcopy(OWN)
    *parents, last = field.removesuffix("[]").split(".")
    node = schema
    for name in parents:
        node = node["properties"][name.removesuffix("[]")]
        node = node["items"] if name.endswith("[]") else node
    del node["properties"][last]
    return schema


def fields(schema: Body, path: str = "") -> Iterator[str]:
    for name, child in schema.get("properties", {}).items():
        where = f"{path}.{name}" if path else name
        yield where
        yield from fields(child, where)
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")


FIELDS = [path for path in fields(OWN) if path.startswith(("spec.", "status."))]


@given(st.sampled_from(FIELDS))
def test_every_field_that_an_older_crd_lacks_is_found(field: str) -> None:
    assert list(lacking(OWN, without(field))) == [field]
    assert list(lacking(without(field), OWN)) == [], "a newer CRD lacks nothing"


def test_what_has_no_schema_lacks_nothing() -> None:
    assert list(lacking(OWN, {"x-kubernetes-preserve-unknown-fields": True})) == []


def test_runs_wait_for_what_is_decided_by_alone() -> None:
    found = ("status.managedBy", "status.steps[].remakes", "status.steps[].progress.time", "status.resolved")
    found += ("status.teacher", "status.teacher.ropeScaling")
    shown = ("status.students[].sample", "status.conditions", "status.teacher.validationLoss", "spec.distill.seed")
    assert set(found) <= set(FIELDS) and decisive((*found, *shown)) == found


def test_a_sentence_names_a_few_fields_and_what_to_do() -> None:
    told = sentence([f"status.f{number}" for number in range(7)])
    assert told.startswith("the CRD in this cluster is older than this operator: it has no status.f0, status.f1, ")
    assert f"status.f4 and 2 more; apply crds/ of version {__version__}" in told


def pruning(api: ApiWorld, *dropped: str) -> None:
    """Have the API server drop these fields of every status that it is given."""
    put = api.put

    def pruned(path: str, body: Body) -> Body:
        status = {name: value for name, value in body.get("status", {}).items() if name not in dropped}
        return put(path, body | ({"status": status} if "status" in body else {}))

    api.put = pruned  # type: ignore[method-assign]


def serve(api: ApiWorld, schema: Body) -> None:
    api.objects[DOCUMENT] = {"components": {"schemas": {"io.modelcompression.v1alpha1.CompressionRun": schema}}}


def message(api: ApiWorld) -> str:
    return condition(api, "Degraded").message


def test_nothing_is_made_for_a_run_that_cannot_be_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may see the schema here: what the API server stores of the claim tells."""

    async def scenario(api: ApiWorld) -> None:
        put = api.put
        pruning(api, "managedBy")
        async with Operator(lease_name="one"), Operator(lease_name="two"):
            await until_async(lambda: has_condition(api, "Degraded", "True", reason="CRDOutdated"), "it to be told")
            await until_async(lambda: "CRDOutdated" in api.events, "the Event")
            assert has_condition(api, "Ready", "False", reason="CRDOutdated") and not has_condition(api, "Stalled")
            assert message(api).endswith(f"apply crds/ of version {__version__} (kubectl apply --server-side -f crds/)")
            assert "it has no status.managedBy" in message(api) and not api.names(PYTORCHJOBS)
            api.put = put  # type: ignore[method-assign]
            await until_async(lambda: api.names(PYTORCHJOBS), "its job")
            await until_async(lambda: has_condition(api, "Degraded", "False", reason="AsExpected"), "it to heal")
        assert len(api.names(PYTORCHJOBS)) == 1 and api.objects[RUN]["status"]["managedBy"]

    run_in_world(scenario, tmp_path, monkeypatch)


def test_a_claim_is_stored_before_a_job_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(api: ApiWorld) -> None:
        async with Operator():
            await until_async(lambda: api.names(PYTORCHJOBS), "the job")
        asked = [(method, path) for method, path, *_ in api.asked]
        assert asked.index(("PUT", f"{RUN}/status")) < asked.index(("POST", PYTORCHJOBS.path("default")))

    run_in_world(scenario, tmp_path, monkeypatch)


def test_what_the_schema_lacks_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a field that only a later write would miss: how often an artifact was made again."""

    async def scenario(api: ApiWorld) -> None:
        serve(api, without("status.steps[].remakes"))
        operator = Operator(resync_seconds=0.2)
        async with operator as service:
            await until_async(lambda: has_condition(api, "Degraded", "True", reason="CRDOutdated"), "it to be told")
            assert "it has no status.steps[].remakes;" in message(api) and not api.names(PYTORCHJOBS)
            assert "it has no status.steps[].remakes;" in (service._ready() or "")  # what /readyz says
            assert b"compression_crd_outdated 1.0" in service._metrics.exposition()
            serve(api, OWN)
            await until_async(lambda: api.names(PYTORCHJOBS), "the job")
            assert b"compression_crd_outdated 0.0" in service._metrics.exposition()

    run_in_world(scenario, tmp_path, monkeypatch)


def test_a_schema_that_lacks_what_is_only_shown_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(api: ApiWorld) -> None:
        serve(api, without("status.students[].sample"))
        async with Operator() as service:
            await until_async(lambda: api.names(PYTORCHJOBS), "the job")
            assert b"compression_crd_outdated 1.0" in service._metrics.exposition()

    run_in_world(scenario, tmp_path, monkeypatch)


def test_a_run_that_is_being_deleted_is_nobodys_to_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(api: ApiWorld) -> None:
        api.objects[RUN]["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}
        async with Operator() as service:
            none = b"compression_reconcile_duration_seconds_count 0.0"
            await until_async(lambda: none not in service._metrics.exposition(), "a pass over it")
        assert not api.requests("PUT", RUN)

    run_in_world(scenario, tmp_path, monkeypatch)
