"""The kubelet's part without a kubelet: pods that no node takes are ended as containers of the pipeline would end."""

import importlib.util
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3
from api import Api, Body, Refused
from operators import Namespace


def _standin() -> Any:
    """tests/operator/support/standin.py, which knows what each phase reports."""
    spec = importlib.util.spec_from_file_location(
        "standin", Path(__file__).parents[1] / "operator" / "support" / "standin.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


standin = _standin()

NOWHERE = {"nodeSelector": {"tests/nowhere": "true"}}
"""jobTemplate of runs whose pods no node takes."""


def result_of(phase: str, fingerprint: str) -> Body:
    """What a job that is done reports."""
    job = object.__new__(standin.Job)
    job.phase, job.config = phase, {"fingerprint": fingerprint}
    return {**job.result(), "cached": False}


def end(api: Api, pod: Body, exit_class: str = "Done", message: str = "") -> None:
    """End a pod: its container wrote this termination message."""
    meta, labels = pod["metadata"], pod["metadata"]["labels"]
    phase = labels["modelcompression.io/phase"]
    done = exit_class == "Done"
    told = result_of(phase, labels["modelcompression.io/fingerprint"]) if done else {}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    terminated = {
        "exitCode": standin.CODES[exit_class],
        "reason": "Completed" if done else "Error",
        "startedAt": now,
        "finishedAt": now,
        "message": json.dumps({"class": exit_class, "message": message, "result": told}),
    }
    container = {"name": "pytorch", "ready": False, "restartCount": 0, "image": "x", "imageID": ""}
    status = {
        "phase": "Succeeded" if done else "Failed",
        "containerStatuses": [container | {"state": {"terminated": terminated}}],
    }
    path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
    api.call("PATCH", path, {"status": status}, kind="application/strategic-merge-patch+json")


@contextmanager
def kubelet(place: Namespace, seconds: float = 0.0) -> Iterator[None]:
    """End every pod well, some time after it was made, until told to stop. Raises what kept it from its work."""
    stopping = threading.Event()
    born: dict[str, float] = {}
    faults: list[Exception] = []

    def work() -> None:
        while not stopping.wait(0.1):
            try:
                for pod in place.pods():
                    uid: Any = pod["metadata"]["uid"]
                    ripe = time.monotonic() - born.setdefault(uid, time.monotonic()) >= seconds
                    if pod["status"].get("phase") == "Pending" and ripe:
                        end(place.api, pod)
            except (Refused, urllib3.exceptions.HTTPError):
                continue  # gone, or changed meanwhile, or no answer: once more in a moment
            except Exception as fault:  # a thread of its own: nobody else would hear of it
                faults.append(fault)
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()  # each of its requests has an end
        if faults:
            raise faults[0]
