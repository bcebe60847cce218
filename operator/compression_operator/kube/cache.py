"""The newest known state of the watched objects, fed by watch events, resync lists and the answers to our own writes.

Reconciling reads from here, so that a pass costs no API calls. Feeding back what our writes returned keeps a pass from
seeing the world as it was before the last one: a job that was just created is never missing.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Body = Mapping[str, Any]
Key = tuple[str, str]
"""(namespace, name)"""

FORGOTTEN = 4096
"""Deleted objects remembered per kind, so that a late event does not bring one back."""


def key_of(body: Body) -> Key:
    """(namespace, name) of an object."""
    return body["metadata"]["namespace"], body["metadata"]["name"]


def version_of(body: Body) -> int:
    """The resourceVersion as a number; Kubernetes 1.35 promises that they compare, etcd's always did."""
    version = str(body["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdigit() else 0


def without_managed_fields(body: Body) -> Body:
    """The object without metadata.managedFields, which are never read and can be the larger half of it.

    The API server keeps them where an update leaves them out.
    """
    meta = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {**body, "metadata": meta}


class Cache:
    """Objects of one kind, by name and by group (e.g. all jobs of a run)."""

    def __init__(
        self, group: Callable[[Body], str | None], *, keep: Callable[[Body], Body] = without_managed_fields
    ) -> None:
        """`keep` says what of an object is worth its memory: at least the metadata that is read here."""
        self._group = group
        self.keep = keep
        self._objects: dict[Key, Body] = {}
        self._groups: dict[str, set[Key]] = defaultdict(set)
        # By UID, the oldest first: the namespace, and the newest resourceVersion as of which it is known to be gone.
        self._deleted: dict[str, tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, namespace: str, name: str) -> Body | None:
        """The object, or None where it is not known."""
        return self._objects.get((namespace, name))

    def all(self) -> list[Body]:
        """Every object."""
        return list(self._objects.values())

    def members(self, group: str) -> list[Body]:
        """The objects of one group, by name."""
        return [self._objects[key] for key in sorted(self._groups.get(group, ()))]

    def put(self, body: Body) -> bool:
        """Take note of an object; False where something newer is known already, or that it was gone by then.

        One that was gone for the watch alone, because its labels changed, comes back in a newer version.
        """
        key, known, uid = key_of(body), self._objects.get(key_of(body)), str(body["metadata"].get("uid"))
        if uid in self._deleted and version_of(body) <= self._deleted[uid][1]:
            return False
        if known is not None and version_of(body) < version_of(known):
            return False
        self._deleted.pop(uid, None)
        changed = known is None or version_of(body) != version_of(known)
        if known is not None:
            self._ungroup(key, known)
        self._objects[key] = self.keep(body)
        group = self._group(body)
        if group is not None:
            self._groups[group].add(key)
        return changed

    def remove(self, body: Body) -> bool:
        """Take note that an object is gone as of its resourceVersion; False where it was not known, or another one has
        its name now, or it has come back since.
        """
        return self._remove(body, version_of(body))

    def forget(self, namespace: str) -> list[Body]:
        """Know nothing of a namespace any more, until something is told of it again. Returns what was known."""
        found = [(key, body) for key, body in self._objects.items() if key[0] == namespace]
        for key, body in found:
            self._ungroup(key, body)
            del self._objects[key]
        return [body for _, body in found]

    def has_gone(self, uid: str) -> bool:
        """Whether an object is known to have gone, and not to have come back."""
        return uid in self._deleted

    def is_restored(self, body: Body, version: int) -> bool:
        """Whether a LIST of `version` holds an object that was gone before, in a state from before that: only who puts
        etcd back to an earlier state brings it back without writing it.
        """
        _, gone = self._deleted.get(str(body["metadata"].get("uid")), ("", version))
        return version_of(body) <= gone < version

    def replace_all(
        self, listed: Sequence[Body], version: int, namespace: str | None = None
    ) -> tuple[list[Body], list[Body]]:
        """Compare with a LIST (of a namespace, or of all) as of a resourceVersion: what it held that was not known in
        that state, and what is gone by it. Both are noted. What is newer than the list is not gone: the list was too
        early to hold it.
        """
        keys = {key_of(body) for body in listed}
        gone = [
            body
            for key, body in self._objects.items()
            if key not in keys and namespace in (None, key[0]) and version_of(body) <= version
        ]
        for body in gone:
            self._remove(body, version)
        there = {str(body["metadata"].get("uid")) for body in listed}
        for uid, (place, since) in self._deleted.items():
            if uid not in there and namespace in (None, place):
                self._deleted[uid] = (place, max(since, version))  # what happened to it in between is past, too
        return [body for body in listed if self.put(body)], gone

    def _remove(self, body: Body, version: int) -> bool:
        key, uid = key_of(body), str(body["metadata"].get("uid"))
        known = self._objects.get(key)
        there = known is not None and str(known["metadata"].get("uid")) == uid
        if known is not None and there and version_of(known) > version:
            return False
        _, since = self._deleted.pop(uid, ("", -1))
        self._deleted[uid] = (key[0], max(version, since))
        while len(self._deleted) > FORGOTTEN:
            self._deleted.pop(next(iter(self._deleted)))
        if known is None or not there:
            return False
        self._ungroup(key, known)
        del self._objects[key]
        return True

    def _ungroup(self, key: Key, body: Body) -> None:
        group = self._group(body)
        if group is None:
            return
        self._groups[group].discard(key)
        if not self._groups[group]:
            del self._groups[group]
