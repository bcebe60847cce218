"""The runs of a cluster, as its API server has them: asked by the official client, as kubectl would."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

from kubernetes.client import ApiClient, ApiException, CustomObjectsApi
from urllib3.exceptions import HTTPError

from compression_operator.api.run import CompressionRun, cluster_run
from compression_operator.kube.client import PAGE, RUNS, USER_AGENT
from compression_operator.kube.login import NoCluster, client_configuration
from compression_operator.local.workdir import WorkdirError

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 30.0


def runs_of(namespaces: Sequence[str], context: str = "") -> list[CompressionRun]:
    """Every run of these namespaces, of the kubeconfig's context of that name or else of the current one. Raises
    WorkdirError where one of them can't be listed, or a run can't be read: who does not know all runs does not know
    what is unused.
    """
    try:
        return [cluster_run(body) for body in _bodies(namespaces, context)]
    except NoCluster as error:
        raise WorkdirError(str(error)) from error
    except ValueError as error:
        why = str(error).partition("\n")[0]
        raise WorkdirError(
            f"a run of the cluster cannot be read ({why}); use the version that its operator has"
        ) from error


def _bodies(namespaces: Sequence[str], context: str) -> Iterator[Any]:
    """The runs as JSON. Raises NoCluster and WorkdirError."""
    configuration = client_configuration(context)
    # A command says at once that nobody answers, and follows nobody elsewhere.
    cast(Any, configuration).retries = False
    try:
        with ApiClient(configuration) as client:
            client.user_agent = USER_AGENT
            for namespace in namespaces:
                yield from _listed(CustomObjectsApi(client), namespace)
    except ApiException as error:
        raise WorkdirError(f"the cluster's runs cannot be listed: {_why(cast(Any, error))}") from error
    except ImportError as error:
        raise WorkdirError(f"the kubeconfig's proxy cannot be used ({error}); install PySocks") from error
    except (HTTPError, OSError) as error:
        why = str(error).rpartition(": ")[2]
        raise WorkdirError(
            f"the cluster's runs cannot be listed: no answer from {configuration.host}: {why}"
        ) from error


def _listed(api: Any, namespace: str) -> Iterator[Any]:
    following: str | None = None
    while following is None or following:
        try:
            page = api.list_namespaced_custom_object(
                RUNS.group,
                RUNS.version,
                namespace,
                RUNS.plural,
                limit=PAGE,
                _continue=following,
                _request_timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
            )
        except json.JSONDecodeError:
            page = None
        if not isinstance(page, dict) or "items" not in page:
            raise WorkdirError(
                "the cluster's runs cannot be listed, because something other than the API server answers; correct the "
                "kubeconfig's server"
            )
        answer = cast(dict[str, Any], page)
        yield from answer["items"]
        meta: dict[str, Any] = answer.get("metadata") or {}
        following = str(meta.get("continue") or "")


def _why(error: Any) -> str:
    """Says in one sentence why the API server refused, from the client's ApiException, which has no types."""
    try:
        told = json.loads(str(error.body or ""))
    except ValueError:
        told = None
    message = cast(dict[str, Any], told).get("message") if isinstance(told, dict) else None
    words = str(message or error.reason or f"HTTP {error.status}")
    if error.status == 401:
        return f"the API server does not accept your credentials ({words}); log in again"
    if error.status == 404:
        return f"the cluster has no CompressionRuns ({words}); choose another context, or install the operator there"
    return words
