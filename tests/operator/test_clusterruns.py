"""Runs as the controller wants them: what is remembered of them."""

import asyncio
import gc
from typing import Any

import kopf
from http_server import served
from local_jobs import a_run

from compression_operator.cache import Cache
from compression_operator.clusterruns import ClusterRuns
from compression_operator.kube import Kube


def test_of_the_answer_to_a_write_nothing_is_kept_that_is_not_read() -> None:
    """managedFields are the larger half of a run."""
    body: dict[str, Any] = a_run().to_json()
    body["metadata"] |= {"uid": "u", "resourceVersion": "1", "generation": 1}
    fields = [{"manager": "compression-operator", "fieldsV1": {"f:marker": {}}}]
    answer = body | {"metadata": body["metadata"] | {"resourceVersion": "2", "managedFields": fields}}
    key = f"{body['metadata']['namespace']}/{body['metadata']['name']}"

    async def scenario(url: str) -> None:
        kube, cache = Kube(lambda: kopf.ConnectionInfo(server=url)), Cache(lambda _: None)
        runs = ClusterRuns(kube, cache, image="an-image")
        cache.put(body)
        run = await runs.get(key)
        assert run is not None
        written = await runs.write_status(run, run.status)
        assert written.metadata.resource_version == "2" and await runs.get(key) is written
        fields.clear()
        gc.collect()
        assert not [found for found in gc.get_objects() if isinstance(found, dict) and "f:marker" in found]
        await kube.close()

    with served() as (server, url):
        server.answer = lambda *_: (200, answer, {})
        asyncio.run(scenario(url))
