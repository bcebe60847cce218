"""What a PyTorchJob says. Pure."""

from typing import Any

from compression_operator.backends.kind import Condition, JobView
from compression_operator.backends.pods.fields import EMPTY, Json, mapping, mappings, when

REPLICAS = "pytorchReplicaSpecs"


def keep(body: Json) -> dict[str, Any]:
    """The part of a PyTorchJob that `view` reads."""
    suspend = mapping(body, "spec", "runPolicy").get("suspend")
    spec: dict[str, Any] = {"runPolicy": {"suspend": suspend}} if suspend else {}
    replicas = mapping(body, "spec", REPLICAS)
    if replicas:
        spec[REPLICAS] = {kind: {"replicas": mapping(replicas, kind).get("replicas", 1)} for kind in replicas}
    return {"spec": spec, "status": dict(mapping(body, "status"))}


def view(body: Json) -> JobView:
    """Read a PyTorchJob."""
    status = mapping(body, "status")
    conditions = {str(condition["type"]): condition for condition in mappings(status, "conditions")}

    def condition(kind: str) -> Condition:
        found = conditions.get(kind, EMPTY)
        since = when(found.get("lastTransitionTime"))
        return Condition(found.get("status") == "True", since, str(found.get("message", "")))

    return JobView(
        pods=sum(int(one.get("replicas", 1)) for one in mapping(body, "spec", REPLICAS).values()),
        suspend=bool(mapping(body, "spec", "runPolicy").get("suspend")),
        suspended=condition("Suspended"),
        running=condition("Running"),
        succeeded=condition("Succeeded"),
        failed=condition("Failed"),
        # A permanent failure may leave it empty (training operator 1.9).
        completed=when(status.get("completionTime")),
    )
