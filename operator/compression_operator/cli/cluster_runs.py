"""The runs of a cluster, as its API server has them."""

import asyncio
from collections.abc import Sequence
from typing import Any

from compression_operator.api.run import CompressionRun, cluster_run
from compression_operator.kube.client import RUNS, ApiError, Kube, NoCluster, connect
from compression_operator.local.workdir import WorkdirError


def runs_of(namespaces: Sequence[str]) -> list[CompressionRun]:
    """Every run of these namespaces. Raises WorkdirError where one of them can't be listed, or a run can't be read: who
    does not know all runs does not know what is unused.
    """
    try:
        return [cluster_run(body) for body in asyncio.run(_bodies(namespaces))]
    except NoCluster as error:
        raise WorkdirError(str(error)) from error
    except ApiError as error:
        raise WorkdirError(f"the cluster's runs cannot be listed: {error}") from error
    except ValueError as error:
        why = str(error).partition("\n")[0]
        raise WorkdirError(
            f"a run of the cluster cannot be read ({why}); use the version that its operator has"
        ) from error


async def _bodies(namespaces: Sequence[str]) -> list[Any]:
    kube = Kube(connect)
    try:
        return [body for namespace in namespaces for body in (await kube.list(RUNS, namespace)).items]
    finally:
        await kube.close()
