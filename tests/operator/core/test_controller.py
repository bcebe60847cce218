"""The controller's loop: each key with one worker, errors backed off, conflicts read again, lost events found."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from local_jobs import a_job, a_run
from tests.support.waiting import until_async, within
from virtual_time import monotonic, run

from compression_operator.api.run import CompressionRun
from compression_operator.api.status import CompressionRunStatus, RunPhase
from compression_operator.core.controller import Backoff, Conflict, Controller
from compression_operator.core.jobs import CreateJob, Decision, DeleteJob, Job, JobState, ObservedJob, RunEvent
from compression_operator.core.reconcile import reconcile

TIME = datetime(2026, 11, 1, tzinfo=UTC)


class World:
    """Runs in memory, a backend that only notes what it is told, and a listener; faults can be injected."""

    def __init__(self, *names: str) -> None:
        run = a_run()
        self.stored = {
            f"default/{name}": run.model_copy(update={"metadata": run.metadata.model_copy(update={"name": name})})
            for name in names
        }
        self.version: Counter[str] = Counter()
        self.calls: list[tuple[str, str]] = []
        self.active: Counter[str] = Counter()
        self.overlapped = False
        self.most_active = 0
        self.errors: list[tuple[str, int]] = []
        self.untold = 0
        self.undeleted: list[set[str]] = []  # by pass that went through: names of jobs that could not be deleted
        self.gone: set[str] = set()  # names of jobs that are not there any more
        self.jobs: list[ObservedJob] = []
        self.refused: dict[str, Exception] = {}  # by name: why a job cannot be made, or be deleted
        self.events: list[RunEvent] = []
        self.writes = 0
        self.fault: Callable[[str], None] = lambda _: None
        self.observing: Callable[[str], Awaitable[None]] | None = None
        self.enqueue: Callable[[str], None] = lambda _: None  # the controller's, while it works
        self.on_pass: Callable[[CompressionRun], None] = lambda _: None

    async def keys(self) -> list[str]:
        self.fault("keys")
        return list(self.stored)

    async def get(self, key: str) -> CompressionRun | None:
        run = self.stored.get(key)
        if run is None:
            return None
        metadata = run.metadata.model_copy(update={"resource_version": str(self.version[key])})
        return run.model_copy(update={"metadata": metadata})

    async def write_status(self, run: CompressionRun, status: CompressionRunStatus) -> CompressionRun:
        self.fault("write")
        key = f"default/{run.metadata.name}"
        if run.metadata.resource_version != str(self.version[key]):
            raise Conflict(key)
        self.writes += 1
        self.calls.append(("write", run.metadata.name))
        self.version[key] += 1
        self.stored[key] = run.model_copy(update={"status": status})
        return self.stored[key]

    async def observe(self, run: CompressionRun) -> list[ObservedJob]:
        name = run.metadata.name
        self.calls.append(("observe", name))
        self.active[name] += 1
        self.overlapped |= self.active[name] > 1
        self.most_active = max(self.most_active, self.active.total())
        try:
            if self.observing:
                await self.observing(name)
            self.fault("observe")
        finally:
            self.active[name] -= 1
        return list(self.jobs)

    async def create(self, run: CompressionRun, job: Job) -> None:
        self.fault("create")
        if job.name in self.refused:
            raise self.refused[job.name]
        self.calls.append(("create", job.name))

    async def delete(self, run: CompressionRun, name: str) -> bool:
        if name in self.refused:
            raise self.refused[name]
        self.calls.append(("delete", name))
        return name not in self.gone

    def pass_succeeded(self, run: CompressionRun, decision: Decision) -> None:
        self.on_pass(run)

    def report_event(self, run: CompressionRun, event: RunEvent) -> None:
        self.events.append(event)

    def pass_failed(self, key: str, error: Exception, consecutive: int, *, in_status: bool) -> None:
        self.errors.append((str(error), consecutive))
        self.untold += not in_status


Unmade = Mapping[str, Exception]


def still(run: CompressionRun, observed: Sequence[ObservedJob], now: datetime, unmade: Unmade) -> Decision:
    return Decision(run.status)


def to_failed(run: CompressionRun, observed: Sequence[ObservedJob], now: datetime, unmade: Unmade) -> Decision:
    status = run.status.model_copy(update={"phase": RunPhase.FAILED})
    job = a_job(run)
    return Decision(
        status,
        (CreateJob(job), DeleteJob(job.name, job.step, "it is wanted no more"))
        if run.status.phase is not RunPhase.FAILED
        else (),
        (RunEvent("Normal", "Failed", "it failed"),) if run.status.phase is not RunPhase.FAILED else (),
    )


def work(world: World, until: Callable[[], bool], *, reconcile: Any = still, seconds: float = 30, **more: Any) -> None:
    """Let the controller work until the condition holds, then stop it."""

    more["note_failed_deletions"] = lambda _, errors: world.undeleted.append(set(errors))

    async def scenario() -> None:
        controller = Controller(
            world, world, world, reconcile=reconcile, now=lambda: TIME, **{"backoff": Backoff(0.01, 0.05), **more}
        )
        world.enqueue = controller.enqueue
        task = asyncio.create_task(controller.run())
        await until_async(until, "what the controller works for", seconds=seconds, every=0.002)
        controller.stop()
        await within(task, "the controller to stop", seconds=10)

    run(scenario())


def observed(world: World) -> Counter[str]:
    return Counter(name for call, name in world.calls if call == "observe")


def test_every_run_is_looked_at_when_it_starts_and_at_each_resync() -> None:
    world = World("a", "b")
    work(world, lambda: min(observed(world)["a"], observed(world)["b"]) >= 3, resync_seconds=0.02)


def test_a_job_is_made_before_the_status_tells_of_it_and_goes_after_the_status_tells_what_became_of_it() -> None:
    world = World("a")
    work(world, lambda: observed(world)["a"] >= 4, reconcile=to_failed, resync_seconds=0.01)
    name = a_job(a_run()).name
    done = [call for call in world.calls if call[0] != "observe"]
    assert done == [("create", name), ("write", "a"), ("delete", name)]
    failed, deleted = world.events
    assert failed.reason == "Failed"
    assert (deleted.type, deleted.reason, deleted.step, deleted.job) == ("Normal", "JobDeleted", "finetune", name)
    assert deleted.message == f"finetune: job {name} is deleted: it is wanted no more"


def test_that_a_job_has_been_seen_is_not_worth_a_write_of_its_own() -> None:
    world = World("a")
    work(world, lambda: world.writes >= 1, reconcile=reconcile)
    (step,) = (step for step in world.stored["default/a"].status.steps if step.state.active)
    assert world.writes == 1 and step.job_name and step.fingerprint
    job = ObservedJob(step.job_name, step.name, step.fingerprint, step.attempt, JobState.PENDING, alive=False)
    for state, writes in ((JobState.PENDING, 1), (JobState.RUNNING, 2)):
        world.jobs, seen = [replace(job, state=state, alive=True)], observed(world)["a"]
        work(world, lambda seen=seen: observed(world)["a"] >= seen + 2, reconcile=reconcile, resync_seconds=0.01)
        assert world.writes == writes


def test_of_a_job_that_was_gone_already_nothing_is_told() -> None:
    world = World("a")
    world.gone.add(a_job(a_run()).name)
    work(world, lambda: observed(world)["a"] >= 2, reconcile=to_failed, resync_seconds=0.01)
    assert [event.reason for event in world.events] == ["Failed"]


def test_no_job_goes_while_the_status_cannot_be_written() -> None:
    world = World("a")

    def fault(where: str) -> None:
        if where == "write" and len(world.errors) < 3:
            raise OSError("the API server is away")

    world.fault = fault
    seen: list[int] = []
    world.on_pass = lambda _: seen.append(len(world.errors))
    work(world, lambda: bool(seen), reconcile=to_failed, resync_seconds=60)
    name = a_job(a_run()).name
    assert seen == [3]
    assert [call for call in world.calls if call[0] in ("write", "delete")] == [("write", "a"), ("delete", name)]
    assert [event.reason for event in world.events] == ["Failed", "JobDeleted"], "told once, when it was true"


def named(job: Job, name: str) -> Job:
    return replace(job, name=name)


def wants(*names: str) -> Callable[..., Decision]:
    """Decides to make these jobs, and to delete two; the status names those that are made, and why others are not."""

    def reconcile(run: CompressionRun, seen: Sequence[ObservedJob], now: datetime, unmade: Unmade) -> Decision:
        goes_on = [name for name in names if name not in unmade]
        image = ", ".join([*goes_on, *(f"not {name}: {why}" for name, why in unmade.items())])
        actions = (*(CreateJob(named(a_job(run), name)) for name in goes_on), *(DeleteJob(n, "s", "") for n in "xy"))
        return Decision(run.status.model_copy(update={"image": image}), actions)

    return reconcile


def test_a_job_that_cannot_be_made_holds_up_nothing_else() -> None:
    world = World("a")
    world.refused = {"one": OSError("the quota is used up"), "x": OSError("denied")}
    work(world, lambda: len(world.errors) >= 2, reconcile=wants("one", "two"), resync_seconds=60)
    assert world.calls[:4] == [("observe", "a"), ("create", "two"), ("write", "a"), ("delete", "y")]
    assert world.stored["default/a"].status.image == "two, not one: the quota is used up"
    assert world.writes == 1, "what the status says already is not written again"
    assert world.errors[:2] == [("denied", 1), ("denied", 2)] and world.undeleted[:2] == [{"x"}] * 2
    world.refused.popitem()
    work(world, lambda: len(world.errors) >= 4, reconcile=wants("one", "two"), resync_seconds=60)
    assert world.errors[-1] == ("the quota is used up", 2) and world.undeleted[-1] == set()
    assert not world.untold, "whoever decides knows of both, and tells them"
    world.refused.clear()
    seen: list[str] = []
    world.on_pass = lambda run: seen.append(run.status.image or "")
    work(world, lambda: bool(seen), reconcile=wants("one", "two"), resync_seconds=60)
    assert seen[0] == "one, two"


def test_where_the_api_server_does_not_answer_it_is_not_asked_for_every_job() -> None:
    world = World("a")
    asked: list[str] = []

    def fault(where: str) -> None:
        if where == "create":
            asked.append(where)
            raise TimeoutError("no answer")

    world.fault = fault
    more: dict[str, Any] = {"is_outage": lambda error: isinstance(error, TimeoutError)}
    work(world, lambda: bool(world.errors), reconcile=wants("one", "two", "three"), resync_seconds=60, **more)
    assert len(asked) == len(world.errors) and world.untold == 0
    told = world.stored["default/a"].status.image
    assert told == "not one: no answer, not two: no answer, not three: no answer"


def test_trouble_does_not_keep_it_from_looking_again_when_the_decision_says_so() -> None:
    """E.g. when a running job's deadline is over."""
    world = World("a")
    world.refused = {"one": OSError("the quota is used up")}

    def soon(*given: Any) -> Decision:
        return replace(wants("one")(*given), look_again_seconds=0.01)

    work(world, lambda: observed(world)["a"] >= 3, reconcile=soon, resync_seconds=60, backoff=Backoff(30, 60))


def test_a_conflict_is_read_again_at_once_and_is_no_error() -> None:
    world = World("a")
    conflicts = iter([True, True])

    async def somebody_else_writes(_: str) -> None:
        if next(conflicts, False):
            world.version["default/a"] += 1

    world.observing = somebody_else_writes
    passed: list[str] = []
    world.on_pass = lambda run: passed.append(run.metadata.name)
    work(world, lambda: bool(passed), reconcile=to_failed, resync_seconds=60)
    assert observed(world)["a"] == 3 and not world.errors and world.writes == 1


def test_conflicts_without_end_are_looked_at_after_pauses_that_one_success_ends() -> None:
    world, looks = World("a"), list[float]()
    conflicts = iter([True] * 9 + [False] + [True] * 3)

    async def somebody_else_writes(_: str) -> None:
        looks.append(monotonic())
        if next(conflicts, False):
            world.version["default/a"] += 1

    def goes_on(run: CompressionRun, seen: Sequence[ObservedJob], now: datetime, unmade: Unmade) -> Decision:
        return Decision(run.status.model_copy(update={"image": f"localhost/image:{len(looks)}"}))

    world.observing = somebody_else_writes
    world.on_pass = lambda run: world.enqueue(f"default/{run.metadata.name}") if world.writes == 1 else None
    work(world, lambda: world.writes == 2, reconcile=goes_on, resync_seconds=1000, seconds=100, backoff=Backoff(0.5, 9))
    pauses = [round(later - earlier, 3) for earlier, later in pairwise(looks)]
    assert pauses == [0, 0, 0.5, 1, 2, 4, 8, 9, 9, 0, 0, 0, 0.5] and not world.errors


def test_the_trouble_of_one_run_does_not_hold_up_the_others() -> None:
    world = World("bad", "good")

    async def problem(name: str) -> None:
        if name == "bad":
            raise ValueError("bad")

    world.observing = problem
    work(world, lambda: observed(world)["good"] >= 5, resync_seconds=0.02, workers=1)
    assert observed(world)["bad"] >= 2


def test_errors_back_off_and_a_success_forgets_them() -> None:
    backoff = Backoff(initial=0.5, limit=60)
    assert [backoff.seconds(n) for n in (1, 2, 3, 8, 5000)] == [0.5, 1.0, 2.0, 60, 60]
    world = World("a")

    def fault(where: str) -> None:
        if where == "observe" and observed(world)["a"] in (1, 2, 4):
            raise OSError("away")

    world.fault = fault
    work(world, lambda: observed(world)["a"] >= 6, resync_seconds=0.05)
    assert [count for _, count in world.errors] == [1, 2, 1]


def test_one_key_has_one_worker_and_workers_are_bounded() -> None:
    world = World(*"abcdefgh")

    async def slow(_: str) -> None:
        for key in world.stored:
            world.enqueue(key)
        await asyncio.sleep(0.005)

    world.observing = slow
    work(world, lambda: min(observed(world)[n] for n in "abcdefgh") >= 3, workers=8, resync_seconds=60)
    assert not world.overlapped and world.most_active == 2, "a quarter, because all are of one namespace"


def test_it_looks_again_when_the_decision_says_so() -> None:
    world = World("a")

    def soon(run: CompressionRun, seen: Sequence[ObservedJob], now: datetime, unmade: Unmade) -> Decision:
        return replace(still(run, seen, now, unmade), look_again_seconds=0.01)

    work(world, lambda: observed(world)["a"] >= 3, reconcile=soon, resync_seconds=60)


def test_a_run_that_is_going_only_stops_its_jobs() -> None:
    world = World("a")
    going = world.stored["default/a"]
    metadata = going.metadata.model_copy(update={"deletion_timestamp": TIME})
    world.stored["default/a"] = going.model_copy(update={"metadata": metadata})
    lives = ObservedJob("a-1", "prepare", "f" * 32, 1, JobState.RUNNING, alive=True)
    world.jobs = [lives, replace(lives, name="b-1", ours=False)]
    work(world, lambda: observed(world)["a"] >= 3, reconcile=reconcile, resync_seconds=0.01)
    assert {call for call in world.calls if call[0] != "observe"} == {("delete", "a-1")}


def test_a_failed_listing_is_tried_again() -> None:
    world = World("a")
    listings = iter([True])

    def fault(where: str) -> None:
        if where == "keys" and next(listings, False):
            raise OSError("away")

    world.fault = fault
    work(world, lambda: observed(world)["a"] >= 1, resync_seconds=0.01)


def test_routine_holds_nobody_up() -> None:
    """A resync of many runs with nothing to do, in the midst of which a watch tells of one of the last."""
    names = [f"run-{number:02}" for number in range(50)]
    world, order = World(*names), list[str]()

    def passed(run: CompressionRun) -> None:
        order.append(run.metadata.name)
        if len(order) == 1:
            asyncio.get_running_loop().call_soon(world.enqueue, f"default/{names[-1]}")

    world.on_pass = passed
    work(world, lambda: len(order) >= len(names), workers=1, resync_seconds=60)
    assert names[-1] in order[1:4]
    assert sorted(order) == names


def test_stopping_lets_a_pass_end() -> None:
    world = World("a")
    ended: list[str] = []

    async def slow(name: str) -> None:
        await asyncio.sleep(0.1)
        ended.append(name)

    world.observing = slow
    work(world, lambda: bool(observed(world)), resync_seconds=60)
    assert ended == ["a"]
