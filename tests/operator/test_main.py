"""The wiring of kopf: what it is told to keep of the objects that it watches."""

from typing import Any, NoReturn

import kopf

from compression_operator.main import settings_for


class Part(dict[str, Any]):
    """A part of an object that nobody may copy."""

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise AssertionError("a part of the object was copied")


def test_nothing_of_an_object_is_copied_to_tell_later_what_changed() -> None:
    # kopf asks these for every event, though raw handlers have no use for the answer (processing.py, _detect_causes).
    kept = settings_for().persistence
    meta = Part(name="a", namespace="default", labels=Part(a="b"), annotations=Part(c="d"))
    raw: Any = {"metadata": meta, "spec": Part(replicas=1), "status": Part(phase="Running")}
    body = kopf.Body(raw)
    essence = kept.diffbase_storage.build(body=body, extra_fields=["status.phase"])
    assert kept.diffbase_storage.fetch(body=body) is None
    assert not kept.progress_storage.clear(essence=essence)
