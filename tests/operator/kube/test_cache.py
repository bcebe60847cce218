"""The cache against a model of the API server: whatever comes late, twice or not at all, it ends up with the truth."""

from dataclasses import dataclass, field
from typing import Any

from cached_objects import body, cache
from hypothesis import given, settings
from hypothesis import strategies as st

from compression_operator.cluster.health import WatchHealth
from compression_operator.kube.cache import FORGOTTEN, version_of, without_managed_fields

Body = dict[str, Any]


def test_older_news_changes_nothing() -> None:
    held = cache()
    assert held.put(body("a", 5)) and not held.put(body("a", 5)) and not held.put(body("a", 4))
    assert held.put(body("a", 6)) and version_of(held.all()[0]) == 6


def test_what_is_gone_stays_gone_until_another_has_its_name() -> None:
    held = cache()
    held.put(body("a", 5, "one"))
    assert held.remove(body("a", 6, "one")) and held.get("ns", "a") is None
    assert not held.put(body("a", 5, "one")), "a late event"
    assert held.put(body("a", 7, "two")) and not held.remove(body("a", 6, "one"))
    assert held.has_gone("one") and not held.has_gone("two")


def test_what_left_the_watch_for_its_labels_comes_back_with_them() -> None:
    held = cache()
    held.put(body("a", 5))
    assert held.remove(body("a", 6)) and held.has_gone("uid-a")
    assert not held.put(body("a", 6)), "what the watch said goodbye with"
    assert held.put(body("a", 7)) and not held.has_gone("uid-a")
    assert not held.remove(body("a", 6)) and held.get("ns", "a") is not None, "a goodbye that comes late"
    assert held.replace_all([], 8)[1] and not held.put(body("a", 8)) and held.put(body("a", 9)), "by a list likewise"


def test_a_namespace_that_is_forgotten_can_be_told_of_again() -> None:
    held = cache()
    held.put(body("a", 5, "one", run="x"))
    held.put(body("b", 5, "two", run="x", namespace="other"))
    assert [b["metadata"]["name"] for b in held.forget("ns")] == ["a"] and held.forget("ns") == []
    assert len(held) == 1 and [b["metadata"]["name"] for b in held.members("x")] == ["b"]
    assert not held.has_gone("one") and held.put(body("a", 5, "one", run="x"))


def test_what_happened_to_it_before_a_list_that_lacks_it_is_past() -> None:
    """It had its label again for a while, and was deleted: the list knows before the watch tells of either."""
    for listed, back in (("elsewhere", True), ("ns", False), (None, False)):
        held = cache()
        held.put(body("a", 5))
        held.remove(body("a", 6))
        held.replace_all([], 8, listed)
        assert held.put(body("a", 7)) is back and held.put(body("a", 9))


def test_what_was_deleted_is_not_remembered_for_ever() -> None:
    held = cache()
    for number in range(FORGOTTEN + 1):
        held.remove(body("a", 1, str(number)))
    assert not held.has_gone("0") and held.has_gone("1")


def test_groups_follow_their_labels() -> None:
    held = cache()
    held.put(body("b", 1, run="x"))
    held.put(body("a", 1, run="x"))
    assert [b["metadata"]["name"] for b in held.members("x")] == ["a", "b"]
    held.put(body("a", 2, run="y"))
    assert [b["metadata"]["name"] for b in held.members("x")] == ["b"] and len(held.members("y")) == 1
    held.remove(body("b", 3))
    assert held.members("x") == [] and len(held) == 1


def test_an_object_made_after_the_list_is_not_gone() -> None:
    held = cache()
    held.put(body("old", 3))
    held.put(body("new", 12))  # by our own create, while the LIST as of 10 was under way
    changed, gone = held.replace_all([body("seen", 7)], 10)
    assert [b["metadata"]["name"] for b in changed] == ["seen"] and [b["metadata"]["name"] for b in gone] == ["old"]
    assert held.get("ns", "new") is not None and held.get("ns", "old") is None


def test_a_list_does_not_bring_back_what_was_deleted_after_it() -> None:
    held = cache()
    held.put(body("a", 3))
    held.remove(body("a", 12))
    assert held.replace_all([body("a", 3)], 10) == ([], []) and held.get("ns", "a") is None


def test_managed_fields_are_not_kept() -> None:
    given_body = body("a", 1, managedFields=[{"manager": "kubectl"}])
    assert without_managed_fields(given_body) == body("a", 1) and "managedFields" in given_body["metadata"]


@dataclass
class Server:
    """Objects with versions, and the events that a watch would tell in order."""

    version: int = 1
    made: int = 0
    objects: dict[str, Body] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)  # UIDs of those whose label the watch misses, by name
    events: list[tuple[str, Body]] = field(default_factory=list)

    def act(self, what: str, name: str) -> None:
        self.version += 1
        if what in ("delete", "unlabel") and name not in self.hidden:
            old = self.objects.pop(name, None)
            if old is not None:
                self.events.append(("DELETED", body(name, self.version, old["metadata"]["uid"], "x")))
                if what == "unlabel":
                    self.hidden[name] = old["metadata"]["uid"]
            return
        if name in self.hidden:  # the watch tells nothing of it until it has its label again
            if what == "delete":
                del self.hidden[name]
            elif what == "label":
                uid = self.hidden.pop(name)
                self.objects[name] = body(name, self.version, uid, "x")
                self.events.append(("ADDED", self.objects[name]))
            return
        old = self.objects.get(name)
        if old is None:
            self.made += 1
        uid = old["metadata"]["uid"] if old else f"uid-{self.made}"
        self.objects[name] = body(name, self.version, uid, "x" if self.version % 3 else "y")
        self.events.append(("MODIFIED" if old else "ADDED", self.objects[name]))


ACTS = st.tuples(
    st.sampled_from(
        ["write", "write", "delete", "unlabel", "label", "tell", "ask", "answer", "lose", "list", "listed"]
    ),
    st.sampled_from("abc"),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTS, max_size=60))
def test_it_ends_up_with_the_truth(acts: list[tuple[str, str]]) -> None:
    """Events lag and get lost, answers to our own writes overtake them, LISTs are old by the time that they arrive."""
    server, held, health = Server(), cache(), WatchHealth()
    lists: list[tuple[list[Body], int]] = []
    answers: list[Body] = []
    for what, name in acts:
        if what == "tell" and server.events:
            kind, told = server.events.pop(0)
            if kind == "DELETED":
                held.remove(told)
                health.note_gone(told["metadata"]["uid"])
            else:
                held.put(told)
                health.note_event(told["metadata"]["uid"], version_of(told))
        elif what == "ask" and name in server.objects:
            answers.append(server.objects[name])
        elif what == "answer" and answers:
            held.put(answers.pop(0))
        elif what == "lose" and server.events:
            server.events.pop(0)
        elif what == "list":
            lists.append((list(server.objects.values()), server.version))
        elif what == "listed" and lists:
            held.replace_all(*lists.pop(0))
        elif what in ("write", "delete", "unlabel", "label"):
            server.act(what, name)
    held.replace_all(list(server.objects.values()), server.version)
    assert not [uid for uid in (b["metadata"]["uid"] for b in server.objects.values()) if held.has_gone(uid)]
    # What comes late from here on brings nobody back, and takes nobody away.
    for told in (*answers, *(told for _, told in server.events)):
        assert not held.has_gone(told["metadata"]["uid"]) or not held.put(told)
    for kind, told in server.events:
        if kind == "DELETED":
            held.remove(told)
    truth = {(b["metadata"]["name"], b["metadata"]["resourceVersion"]) for b in server.objects.values()}
    assert {(b["metadata"]["name"], b["metadata"]["resourceVersion"]) for b in held.all()} == truth
    assert len(held.members("x")) + len(held.members("y")) == len(truth)
    # Whatever is left to be told: once it is, the watch is sound.
    health.compare({b["metadata"]["uid"]: version_of(b) for b in server.objects.values()}, server.version, 0.0)
    for b in server.objects.values():
        health.note_event(b["metadata"]["uid"], version_of(b))
    for uid in {f"uid-{n}" for n in range(1, server.made + 1)} - {
        b["metadata"]["uid"] for b in server.objects.values()
    }:
        health.note_gone(uid)
    assert health.lag(1e9) == 0.0
