"""What a test that failed leaves to those who only have its report: the cluster is gone by then."""

import json
from collections.abc import Iterator

import urllib3
from api import JOBS, RUNS, Body, Refused
from operators import Namespace
from tests.cluster.paths import State

LINES = 40
"""Of the end of each log."""


def what_there_is(place: Namespace, state: State) -> Iterator[tuple[str, str]]:
    """The state of each object of a namespace, and the ends of the logs that tell of it; each with its title."""
    paths = (f"{RUNS}/namespaces/{place.name}/compressionruns", f"{JOBS}/namespaces/{place.name}/pytorchjobs")
    for path in (*paths, f"/api/v1/namespaces/{place.name}/pods"):
        try:
            yield path, "\n".join(_told(body) for body in place.api.items(path))
        except (Refused, urllib3.exceptions.HTTPError) as error:
            yield path, str(error)
    for log in sorted(place.folder.glob("*.log")):
        yield log.name, _end(log.read_text(errors="replace").splitlines())
    for part in ("training-operator", "kube-controller-manager"):
        if (log := state.log(part)).exists():
            lines = log.read_text(errors="replace").splitlines()
            yield f"{part}, of this namespace", _end([line for line in lines if place.name in line])


def _told(body: Body) -> str:
    kept = {field: body["metadata"].get(field) for field in ("name", "uid", "deletionTimestamp", "finalizers")}
    return json.dumps(kept | {"status": body.get("status")})


def _end(lines: list[str]) -> str:
    return "\n".join(lines[-LINES:])
