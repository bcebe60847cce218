"""Objects as a watch tells of them, and a cache of them that is grouped by the label `run`."""

from typing import Any

from compression_operator.kube.cache import Cache

Body = dict[str, Any]


def body(name: str, version: int, uid: str = "", run: str | None = None, **more: Any) -> Body:
    meta = {"namespace": "ns", "name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": meta | {"labels": {"run": run} if run else {}} | more}


def cache() -> Cache:
    return Cache(lambda body: body["metadata"]["labels"].get("run"))
