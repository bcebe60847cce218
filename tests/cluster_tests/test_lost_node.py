"""A node falls silent for good: the step goes on elsewhere once Kubernetes has given the node up, and not before.

On a cluster of its own, since its only node is taken away: a minute for Kubernetes to find it silent.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import standin_image
from api import CRD, Api, Body
from nodes import GIVEN_UP_SOON, bystander, cut_power, silent_node
from operators import FINAL, Namespace, manifest, step_of
from tests.cluster.down import down
from tests.cluster.images import import_archive
from tests.cluster.paths import State
from tests.cluster.up import up
from tests.support.matchers import has_step
from tests.support.waiting import until

from compression_operator.backends.pods.jobpods import STORE

pytestmark = pytest.mark.own_cluster

BEHAVIOUR = {"*": {"steps": 5}, "distill-width": {"steps": 600, "seconds": 0.2}}
LET_GO = "let-go"
RESUMED = {"*": {"steps": 5}, "distill-width": {"steps": 600, "seconds": 0.01, "until": f"{STORE}/{LET_GO}"}}
"""The second attempt, which ends once its progress was seen: the operator looks at a log only now and then."""


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """A cluster of this test's own, where pods can run."""
    state = State.at(tmp_path_factory.mktemp("lost"))
    cluster = up(state, print)
    try:
        if not cluster.pods:
            pytest.skip(f"no pods here: {'; '.join(cluster.left_out)}")
        Api(state.kubeconfig).apply_crd(CRD)
        import_archive(state, standin_image.write(tmp_path_factory.mktemp("image") / "standin.tar"))
        yield state
    finally:
        down(state, print)


@pytest.mark.timeout(3600)
def test_a_step_on_a_lost_node_goes_on_once_kubernetes_gives_the_node_up(own: State, tmp_path: Path) -> None:
    api = Api(own.kubeconfig)
    place = Namespace.create(api, "lost-node", tmp_path)
    phases = manifest()["spec"]["phases"]
    phases["distill"]["retryLimit"] = 0
    with place.operator(standin_image.NAME) as operator, bystander(api):
        one = [{"name": "width", "prune": {"hiddenSize": 64}}]
        place.submit(behaviour=BEHAVIOUR, finetune=None, students=one, phases=phases, jobTemplate=GIVEN_UP_SOON)
        first = place.wait_step("distill-width", "Running")
        reached = place.store / "work" / first["fingerprint"] / "step"
        until(lambda: reached.exists() and int(reached.read_text()) >= 5, "a checkpoint")
        place.behave(RESUMED, place.store)
        with silent_node(own):
            assert cut_power(own, f"{first['jobName']}-master-0") >= 1
            silent = f"pod {first['jobName']}-master-0: its node does not answer"
            until(lambda: has_step(place.status(), "distill-width", message=silent), "the words", seconds=420)
            lost_at = _until_it_goes_on(place, first)
            assert lost_at < 600, "what its processes had done is what there is"
            second = _told(place, attempt=2)
            failure = second["lastFailure"]
            assert (second.get("failures", 0), failure["exitClass"]) == (0, "Interrupted")
            assert failure["message"].startswith(f"interrupted: pod {first['jobName']}-master-0")
        # The node is back: what was left of the first attempt goes, and the second resumes.
        place.wait_step("distill-width", "Running", seconds=420)
        until(lambda: "progress" in step_of(place.status(), "distill-width"), "its progress")
        (place.store / LET_GO).touch()
        status = place.wait_phase(*FINAL)
        assert status["phase"] == "Succeeded" and operator.process.poll() is None
        assert has_step(status, "distill-width", attempt=2, failures=0) and reached.read_text() == "600"
        assert Counter(place.starts())["distill-width", 2] == 1
        until(lambda: not place.pods(first["jobName"]), "the first attempt's pod to go")
        assert step_of(status, "distill-width")["progress"]["step"] == 600


def _until_it_goes_on(place: Namespace, first: Body) -> int:
    """Wait for the second attempt, and see that the first one's pod was given up by then; the steps done by then."""
    reached = place.store / "work" / first["fingerprint"] / "step"

    def goes_on() -> bool:
        jobs = [job["metadata"]["name"] for job in place.jobs() if "distill" in job["metadata"]["name"]]
        given_up = [pod for pod in place.pods(first["jobName"]) if "deletionTimestamp" in pod["metadata"]]
        assert given_up or jobs == [first["jobName"]], f"{jobs} while the node may still be heard of"
        return jobs != [first["jobName"]]

    until(goes_on, "the step to go on", seconds=420)
    return int(reached.read_text())


def _told(place: Namespace, *, attempt: int) -> Body:
    """The step once the status tells of this attempt, whose job is made before the status is written."""

    def there() -> Body | None:
        step = step_of(place.status(), "distill-width")
        return step if step["attempt"] == attempt else None

    return until(there, f"the status to tell of attempt {attempt}")
