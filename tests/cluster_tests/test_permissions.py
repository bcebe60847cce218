"""Every right in the operator's Role is needed, and one that is missing is told to whoever can give it.

For each right there is a witness: a scenario that goes well with all of them, and with this one missing shows the user
what is missing and where. A right without a witness fails here. The scenarios mostly wait, so they run side by side.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from api import JOBS, Api
from kubelets import NOWHERE
from operators import Namespace, Operator, condition_of, leader_and_follower, step_of
from proxy import Asked, Fault, proxy
from tests.support.matchers import has_condition, has_step
from tests.support.waiting import until

from compression_operator.backends.kinds import PERMISSIONS
from compression_operator.backends.pods.refusals import TRIED_AGAIN
from compression_operator.core.names import job_name
from compression_operator.kube.client import Permission

AT_ONCE = 4
REPORTER = "modelcompression.io/compression-operator"


@dataclass(frozen=True)
class Right:
    """One verb on one resource."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


RIGHTS = [Right(p.group, p.resource, verb) for p in PERMISSIONS for verb in p.verbs]


def named(name: str) -> Right:
    return next(right for right in RIGHTS if str(right) == name)


def without(missing: Right) -> list[Permission]:
    """Everything that the operator may do, but for this."""
    rules = [
        Permission(p.group, p.resource, tuple(verb for verb in p.verbs if Right(p.group, p.resource, verb) != missing))
        for p in PERMISSIONS
    ]
    return [rule for rule in rules if rule.verbs]


def permit(place: Namespace, missing: Right | None) -> None:
    """Let the operator of `place` do everything but this, from now on."""
    place.permit(PERMISSIONS if missing is None else without(missing))


def lacks(right: Right, place: Namespace) -> str:
    """What is said of a missing right, wherever it is said."""
    where = f"in namespace {place.name}: add this to the Role or ClusterRole of its service account"
    return f"the operator may not {right.verb} {right.resource} {where}"


# -- what happens ------------------------------------------------------------------------------------------------------


def either(well: Callable[[], Any], told: Callable[[], str], what: str) -> str:
    """Wait until it goes well, or until the user is told why it does not: the words, empty where it went well."""

    def seen() -> tuple[str] | None:
        if well():
            return ("",)
        words = told()
        return (words,) if words else None

    # Four operators import at once, which alone took one 135 s on a busy machine.
    (words,) = until(seen, f"{what}, or for the words why not", seconds=420, every=0.2)
    return words


def going(job: dict[str, Any]) -> bool:
    return "deletionTimestamp" in job["metadata"]


def holds(job: dict[str, Any]) -> bool:
    return any(owner.get("blockOwnerDeletion") for owner in job["metadata"]["ownerReferences"])


def degraded(place: Namespace) -> str:
    """What the run's condition says of a missing right."""
    condition = condition_of(place.status(), "Degraded")
    return condition["message"] if (condition.get("status"), condition.get("reason")) == ("True", "Forbidden") else ""


def events(place: Namespace, reason: str = "") -> list[dict[str, Any]]:
    """The operator's Events."""
    return [e for e in place.events() if e["reportingController"] == REPORTER and reason in ("", e["reason"])]


def event(place: Namespace) -> str:
    """What an Event says of a missing right."""
    return next((e["note"] for e in events(place, "Forbidden")), "")


def unready(operator: Operator) -> str:
    """What /readyz says, or the last word of an operator that has ended."""
    if operator.process.poll() is not None:
        return operator.output().splitlines()[-1]
    code, words = operator.ask("/readyz")
    return words if code == 503 and "may not" in words else ""


Scenario = Callable[[Namespace, str], str]
"""Plays with the operator of a namespace and the name of the stand-in's image, and returns what the user was told:
nothing where all went well.
"""


def comes_up(place: Namespace, _: str) -> str:
    """It is ready, leads, and has renewed its lease."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{place.name}/leases/compression-operator"
    operator = place.start()

    def well() -> bool:
        lease = (place.api.get(path) or {}).get("spec", {})
        renewed = lease.get("renewTime", "") > lease.get("acquireTime", "")
        return renewed and operator.ask("/readyz")[0] == 200

    try:
        return either(well, lambda: unready(operator), "the operator to come up")
    finally:
        operator.kill()


def one_run(place: Namespace, _: str) -> str:
    """A run whose claim is warned of, and which starts, is suspended, and goes on."""
    folder = place.folder / "one"
    folder.mkdir()
    place.claim("one", ["ReadWriteOnce"], folder)
    storage = {"persistentVolumeClaim": {"claimName": "one"}}

    def told() -> str:
        # Where no status can be written an Event has to do.
        return degraded(place) or ("" if place.status() else event(place))

    def warned() -> bool:
        return bool(has_condition(place.status(), "Progressing", says="claim one is ReadWriteOnce"))

    def stopped() -> bool:
        return place.status()["phase"] == "Suspended" and all(going(job) for job in place.jobs())

    def counted() -> bool:
        return any(e.get("series", {}).get("count", 0) >= 2 for e in events(place))

    with place.operator():
        place.submit(jobTemplate=NOWHERE, storage=storage)
        if words := either(lambda: any(map(holds, place.jobs())) and warned(), told, "a job, and the claim's warning"):
            return words
        if words := either(lambda: events(place, "JobCreated"), told, "an Event"):
            return words
        place.edit(suspend=True)
        if words := either(stopped, told, "the run to be suspended"):
            return words
        place.edit(suspend=False)
        return either(counted, told, "an Event that is counted")


def stands_aside(place: Namespace, _: str) -> str:
    """A run that needs a name which somebody else's job has leaves that job alone, and says so."""
    with place.operator():
        place.submit(jobTemplate=NOWHERE, suspend=True)
        planned = until(lambda: step_of(place.status(), "prepare").get("fingerprint"), "the step to be planned")
        name = job_name("demo", None, "prepare", planned, 1)
        foreign_job(place, name)
        place.edit(suspend=False)
        said = f"waits for job {name} to be removed"
        words = either(lambda: has_step(place.status(), "prepare", says=said), lambda: degraded(place), said)
        assert not events(place, "JobCreated") and len(place.jobs()) == 1
        return words


def foreign_job(place: Namespace, name: str) -> None:
    """A job under this name that is nobody's, and that no watch of ours tells of."""
    containers = [{"name": "pytorch", "image": "localhost/none:1"}]
    template = {"spec": {"containers": containers, **NOWHERE}}
    spec = {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}}
    kind = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob"}
    body = {**kind, "metadata": {"name": name}, "spec": spec}
    place.api.create(f"{JOBS}/namespaces/{place.name}/pytorchjobs", body)


def no_pods(place: Namespace, _: str) -> str:
    """A job whose pods a quota refuses says so in the API server's words, and has them asked for again."""
    path = f"/api/v1/namespaces/{place.name}/resourcequotas"
    place.api.create(path, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
    until(lambda: (place.api.get(f"{path}/none") or {}).get("status", {}).get("used"), "the quota to be in force")

    def well() -> bool:
        said = has_step(place.status(), "prepare", says="exceeded quota: none")
        return bool(said) and any(TRIED_AGAIN in job["metadata"].get("annotations", {}) for job in place.jobs())

    with place.operator():
        place.submit(jobTemplate=NOWHERE)
        return either(well, lambda: degraded(place), "the reason, and another try")


def conflict(place: Namespace, _: str) -> str:
    """Somebody else writes to the run right before the operator does, which reads it again and thinks nothing of it."""
    edits = 0

    def somebody_else_writes(asked: Asked) -> Fault:
        nonlocal edits
        if (asked.verb, asked.resource) == ("update", "compressionruns/status") and not edits:
            edits += 1
            place.api.merge(place.run_path(), {"metadata": {"labels": {"edited": "meanwhile"}}})
        return None

    with proxy(place.api) as before, place.operator(server=before.url):
        before.fault = somebody_else_writes
        place.submit(jobTemplate=NOWHERE)

        def well() -> bool:
            return bool(before.answered("get", "compressionruns", 200)) and "phase" in place.status()

        return either(well, lambda: event(place), "the run to go on")


def progress(place: Namespace, image: str) -> str:
    """A job's progress is shown. Where it cannot be, it is from the moment on at which it can."""
    with place.operator(image, "--progress-seconds", "1"):
        place.submit(behaviour={"prepare": {"steps": 3000, "seconds": 0.1}}, finetune=None)

        def shown() -> bool:
            return step_of(place.status(), "prepare").get("progress", {}).get("step", 0) > 0

        if words := either(shown, lambda: degraded(place), "progress"):
            permit(place, None)
            until(lambda: shown() and not degraded(place), "progress, now that it is allowed to be seen")
        return words


WITNESSES: dict[Scenario, tuple[str, ...]] = {
    comes_up: (
        "list compressionruns",
        "watch compressionruns",
        "list pytorchjobs",
        "watch pytorchjobs",
        "list pods",
        "watch pods",
        "get leases",
        "create leases",
        "update leases",
    ),
    one_run: (
        "update compressionruns/status",
        "update compressionruns/finalizers",
        "create pytorchjobs",
        "delete pytorchjobs",
        "get persistentvolumeclaims",
        "create events",
        "patch events",
    ),
    stands_aside: ("get pytorchjobs",),
    no_pods: ("list events", "patch pytorchjobs"),
    conflict: ("get compressionruns",),
    progress: ("get pods/log",),
}
WITNESS = {right: scenario for scenario, rights in WITNESSES.items() for right in rights}


# -- the tests ---------------------------------------------------------------------------------------------------------


class Plays:
    """Scenarios played side by side, each once with all rights and once without each right that it is witness of."""

    def __init__(self, api: Api, folder: Path, image: str) -> None:
        self._api = api
        self._folder = folder
        self._image = image
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._played: dict[tuple[Scenario, Right | None], Future[tuple[str, Namespace]]] = {}

    def begin(self, scenario: Scenario, missing: Right | None) -> "Future[tuple[str, Namespace]]":
        key = scenario, missing
        if key not in self._played:
            self._played[key] = self._pool.submit(self._play, scenario, missing)
        return self._played[key]

    def end(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _play(self, scenario: Scenario, missing: Right | None) -> tuple[str, Namespace]:
        title = f"no {missing}" if missing else scenario.__name__
        folder = self._folder / title.replace("/", "-")
        folder.mkdir()
        place = Namespace.create(self._api, title, folder)
        try:
            permit(place, missing)
            return scenario(place, self._image), place
        except TimeoutError as error:
            said = "".join(log.read_text() for log in folder.glob("operator-*.log"))
            raise AssertionError(f"{error}; the operator said {said}") from error
        finally:
            place.remove()


@pytest.fixture(scope="module")
def plays(api: Api, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plays]:
    """Has begun what the selected tests will ask for."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]  # type: ignore[attr-defined] # pytest's
    rights: list[Right] = [found["right"] for found in params if isinstance(found.get("right"), Right)]
    try:
        image = request.getfixturevalue("pods")
    except pytest.skip.Exception:
        image = ""
    playing = Plays(api, tmp_path_factory.mktemp("permissions"), image)
    # The scenario of most rights goes last: the longest one is under way by then.
    for right in sorted(rights, key=lambda right: WITNESS.get(str(right)) is comes_up):
        scenario = WITNESS.get(str(right))
        if scenario is not None and (image or scenario is not progress):
            playing.begin(scenario, None)
            playing.begin(scenario, right)
    try:
        yield playing
    finally:
        playing.end()


@pytest.mark.parametrize("right", RIGHTS, ids=str)
def test_a_right_is_needed_and_its_want_is_told(right: Right, plays: Plays, request: pytest.FixtureRequest) -> None:
    scenario = WITNESS.get(str(right))
    assert scenario is not None, f"no scenario here needs the right to {right}: show what it is for, or take it away"
    if scenario is progress:
        request.getfixturevalue("pods")  # skips where there are none
    assert plays.begin(scenario, None).result()[0] == "", "with all rights nothing is amiss"
    words, place = plays.begin(scenario, right).result()
    assert lacks(right, place) in words


def test_no_witness_speaks_of_a_right_that_the_operator_has_not() -> None:
    assert set(WITNESS) == {str(right) for right in RIGHTS}


def test_a_leader_and_a_follower_that_may_not_write_the_lease_any_more(namespace: Namespace) -> None:
    update = named("update leases")
    with leader_and_follower(namespace) as (first, second):
        permit(namespace, update)
        assert first.wait_end() == 1
        assert lacks(update, namespace) in first.output().splitlines()[-1]
        until(lambda: lacks(update, namespace) in unready(second), "the follower to be unready")
        permit(namespace, None)
        second.wait_line("this replica (operator-1) leads")
        assert second.ask("/readyz")[0] == 200


def test_rights_taken_away_from_an_operator_at_work(namespace: Namespace) -> None:
    """It says so at the next resync, and is ready again once it has them back."""
    with namespace.operator("localhost/none:1", "--resync-seconds", "0.5") as operator:
        namespace.submit(jobTemplate=NOWHERE)
        until(lambda: namespace.jobs(), "a job")
        for name in ("list pytorchjobs", "watch pods"):
            right = named(name)
            permit(namespace, right)
            until(lambda: lacks(right, namespace) in unready(operator), f"it to miss {name}")  # noqa: B023 - called at once
            permit(namespace, None)
            until(lambda: operator.ask("/readyz")[0] == 200, "it to be ready again")


def test_a_follower_that_may_not_see_the_jobs_any_more(namespace: Namespace) -> None:
    """It could have looked once in a minute; when it is to lead it has to."""
    with leader_and_follower(namespace) as (first, second):
        permit(namespace, named("list pytorchjobs"))
        first.terminate()
        said = lacks(named("list pytorchjobs"), namespace)
        until(lambda: said in unready(second), "/readyz to tell")
        permit(namespace, None)
        until(lambda: second.ask("/readyz")[0] == 200, "it to be ready again")
        second.wait_leads()


def test_an_operator_of_the_whole_cluster_needs_the_same(namespace: Namespace) -> None:
    """Leases aside, which it needs where it runs: with a ClusterRole of one right less it says so, and waits."""
    missing = named("list pods")
    namespace.permit_everywhere(without(missing))
    operator = namespace.start(everywhere=True)
    try:
        said = f"the operator may not {missing} in the whole cluster: add this to the Role or ClusterRole"
        until(lambda: said in unready(operator), "/readyz to tell")
        assert operator.process.poll() is None
    finally:
        operator.kill()
