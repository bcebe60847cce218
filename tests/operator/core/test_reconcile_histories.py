"""The reconciler under random histories: nothing forbidden ever happens, and every history has an end.

`HYPOTHESIS_EXAMPLES=10000 pytest --hypothesis-profile=search` looks at others, and further.
"""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from jobs_results import loss, number
from jobs_world import World, student

from compression_operator.api.phase_settings import PhaseSettingsByPhase
from compression_operator.api.run import RETRY_ANNOTATION, SOURCES_ANNOTATION
from compression_operator.api.status import RunPhase, StepState
from compression_operator.core.jobs import JobState
from compression_operator.core.names import job_name
from compression_operator.core.plan import discovered_in, maker_of, plan, step_name
from compression_pipeline.config import ExitClass, Phase

PRUNES: list[dict[str, Any]] = [
    {"hiddenSize": 128},
    {"dropLayers": [3]},
    {"hiddenSize": 512},  # more than the teacher has
]
NAMES = ["width", "depth", "third"]


def tasks(name: str) -> dict[str, Any]:
    return {"tasks": [{"name": name}]}


picks = st.integers(0, 100)
some_names = st.frozensets(picks, max_size=3)
edits = st.one_of(
    st.fixed_dictionaries({"distill": st.fixed_dictionaries({"steps": st.integers(100, 101)})}),
    st.fixed_dictionaries({"finetune": st.fixed_dictionaries({"steps": st.integers(200, 201)})}),
    st.fixed_dictionaries({"maxParallelJobs": st.integers(1, 3)}),
    st.fixed_dictionaries(
        {"jobHistoryLimit": st.integers(0, 3), "ttlSecondsAfterFinished": st.sampled_from([0, 20, 600, 604_800])}
    ),
    st.fixed_dictionaries({"evaluate": st.sampled_from([None, tasks("a"), tasks("b"), {"generation": {}}])}),
    st.integers(0, 2).map(
        lambda limit: {"phases": {phase: {"retryLimit": limit} for phase in PhaseSettingsByPhase.model_fields}}
    ),
)
noticed = st.sampled_from(["at once", "later", "by a listing that lags"])
own_distill = st.none() | st.fixed_dictionaries({"steps": st.integers(100, 101)})
ways_to_fail = st.sampled_from(
    ["killed", "no result", "pod lost", "node lost", *[one for one in ExitClass if one is not ExitClass.DONE]]
)


def happens(**what: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule after which the operator looks at once, or later."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def happening(self: "Histories", noticed: str, **drawn: Any) -> None:
            function(self, **drawn)
            if noticed == "at once":
                self.world.look()
            elif noticed == "by a listing that lags":
                self.world.look(frozenset(self.world.jobs))

        happening.__name__ = function.__name__
        drawn: dict[str, Any] = {"noticed": noticed, **what}
        return rule(**drawn)(happening)

    return decorate


class Histories(RuleBasedStateMachine):
    """Users, jobs, the listing and the operator do what they may, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.tokens = 0

    def _open_job(self, which: int) -> str | None:
        """A job that has not ended; the operator looks for something to do first, where there is none."""
        jobs = self.world.jobs
        for _ in range(2):
            names = [name for name, truth in jobs.items() if not truth.gone and truth.seen.ended_as is None]
            if names:
                return names[which % len(names)]
            self.world.look()
        return None

    def _running_job(self, which: int) -> str | None:
        name = self._open_job(which)
        if name and self.world.jobs[name].seen.state is JobState.PENDING:
            self.world.start(name)
        return name

    def _names(self, numbers: frozenset[int]) -> frozenset[str]:
        names = sorted(self.world.jobs)
        return frozenset(names[n % len(names)] for n in numbers) if names else frozenset()

    # -- the operator -------------------------------------------------------------------------------------------------

    @rule(stale=some_names, twice=some_names)
    def the_operator_looks(self, stale: frozenset[int], twice: frozenset[int]) -> None:
        self.world.look(self._names(stale), twice=self._names(twice))

    @rule(phases=st.frozensets(st.sampled_from(Phase)), stale=some_names)
    def the_operator_looks_while_some_jobs_cannot_be_made(
        self, phases: frozenset[Phase], stale: frozenset[int]
    ) -> None:
        self.world.look(self._names(stale), refused=phases)

    @rule(times=st.integers(1, 3))
    def the_operator_looks_on_time(self, times: int) -> None:
        for _ in range(times):
            self.world.pass_time(min(self.world.look().look_again_seconds or 1, 60))
            self.world.look()

    @rule(after=st.integers(0, 3), forgets=st.integers(0, 3))
    def the_operator_dies_in_a_pass(self, after: int, forgets: int) -> None:
        self.world.look(crash_after=after)
        if forgets == 0:
            self.world.lose_status()

    # -- the jobs -----------------------------------------------------------------------------------------------------

    @happens(which=picks)
    def a_job_starts(self, which: int) -> None:
        self._running_job(which)

    @happens(which=picks, alive=st.booleans())
    def a_job_is_done(self, which: int, alive: bool) -> None:
        name = self._running_job(which)
        if name:
            self.world.succeed(name, alive=alive)

    @initialize(rounds=st.integers(0, 5))
    def the_run_has_begun(self, rounds: int) -> None:
        self._do_every_job(rounds)

    @happens(rounds=st.integers(1, 3))
    def every_job_is_done(self, rounds: int) -> None:
        self._do_every_job(rounds)

    def _do_every_job(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.look()
            for name in list(self.world.jobs):
                truth = self.world.jobs[name]
                if not truth.gone and truth.seen.ended_as is None:
                    self.world.start(name)
                    self.world.succeed(name)

    @happens(which=picks, how=ways_to_fail, alive=st.booleans())
    def a_job_fails(self, which: int, how: ExitClass | str, alive: bool) -> None:
        self._fail(self._running_job(which), how, alive=alive)

    @happens(which=picks, ways=st.lists(ways_to_fail, min_size=1, max_size=4))
    def attempts_fail_one_after_the_other(self, which: int, ways: list[ExitClass | str]) -> None:
        for how in ways:
            self._fail(self._running_job(which), how, alive=False)
            self.world.pass_time(min(self.world.look().look_again_seconds or 1, 700))
            self.world.look()

    def _fail(self, name: str | None, how: ExitClass | str, *, alive: bool) -> None:
        match how:
            case _ if name is None:
                pass
            case "no result":
                self.world.succeed(name, said=False)
            case "pod lost":
                self.world.lose_pod(name)
            case "node lost":
                self.world.lose_node(name)
            case ExitClass():
                self.world.fail(name, how, alive=alive)
            case _:
                self.world.fail(name, None, alive=alive)

    @happens(which=picks, passed=st.integers(1, 4000))
    def a_job_has_half_of_its_places(self, which: int, passed: int) -> None:
        """Its other pods find none; the rest goes on."""
        name = self._open_job(which)
        if name and self.world.jobs[name].seen.state is JobState.PENDING:
            self.world.place_half(name)
            self.time_goes_by(passed)

    @happens(which=picks)
    def a_job_hangs(self, which: int) -> None:
        name = self._running_job(which)
        if name:
            self.world.pass_time(2000)
            for other, truth in self.world.jobs.items():
                if other != name and truth.live:
                    self.world.beat(other)
            self.world.look()

    @happens(which=picks)
    def a_job_is_deleted_by_hand(self, which: int) -> None:
        name = self._open_job(which)
        if name:
            self.world.catch_up()
            self.world.vanish(name)

    @happens(which=picks)
    def an_artifact_is_lost(self, which: int) -> None:
        there = sorted(self.world.published)
        if there:
            self.world.lose(there[which % len(there)])

    @happens(which=picks)
    def an_artifact_is_changed(self, which: int) -> None:
        there = sorted(self.world.published)
        if there:
            self.world.change(there[which % len(there)])

    @happens(cache=st.sampled_from(["Run", "Store"]))
    def it_is_said_whose_artifacts_are_taken(self, cache: str) -> None:
        self.world.edit(cache=cache)

    @happens(which=picks, gaps=st.lists(st.integers(0, 90), min_size=3, max_size=10))
    def somebody_deletes_every_job_of_a_step(self, which: int, gaps: list[int]) -> None:
        """However soon each is deleted: one comes at once, and the next ones after pauses that double."""
        world, name = self.world, self._open_job(which)
        if name is None:
            return
        step = world.jobs[name].job.step
        world.look()
        began = world.made[step]
        for gap in gaps:
            world.catch_up()
            for other, truth in list(world.jobs.items()):
                if truth.job.step == step and not truth.gone and truth.seen.ended_as is None:
                    world.vanish(other)
            world.look()
            world.pass_time(gap)
        # One more, where the job that was open was an earlier attempt's, whose successor was due.
        pauses = sum(20 * (2**n - 1) <= sum(gaps) for n in range(1, 10))
        assert world.made[step] - began <= 2 + pauses, (world.made[step] - began, gaps)

    @happens()
    def what_ends_is_gone(self) -> None:
        for name, truth in list(self.world.jobs.items()):
            if not truth.gone and (truth.seen.deleting or truth.seen.ended_as):
                self.world.settle(name)

    @happens(passed=st.integers(1, 700))
    def time_passes(self, passed: int) -> None:
        self.time_goes_by(passed)

    def time_goes_by(self, passed: int) -> None:
        self.world.pass_time(passed)
        for name, truth in self.world.jobs.items():
            if truth.live:
                self.world.beat(name)

    @happens(by=st.sampled_from([-86_400, -60, 60, 86_400]))
    def the_clock_is_set(self, by: int) -> None:
        self.world.jump(by)

    # -- the user -----------------------------------------------------------------------------------------------------

    @happens(spec=edits)
    def the_spec_is_edited(self, spec: dict[str, Any]) -> None:
        self.world.edit(**spec)

    @happens(
        column=st.sampled_from(["text", "text", "body"]),
        revision=st.sampled_from(["main", "same-as-main"]),
        files=st.sampled_from(["a", "b"]),
    )
    def the_sources_change(self, column: str, revision: str, files: str) -> None:
        self.world.annotate(SOURCES_ANNOTATION, files)
        self.world.edit(dataset={**self.world.run.spec.dataset.to_json(), "textColumn": column, "revision": revision})

    @happens(
        chosen=st.dictionaries(
            st.sampled_from(NAMES), st.tuples(st.sampled_from(PRUNES[:2]), own_distill), min_size=1, max_size=3
        ),
        finetuned=st.booleans(),
    )
    def steps_come_and_go(
        self, chosen: dict[str, tuple[dict[str, Any], dict[str, Any] | None]], finetuned: bool
    ) -> None:
        students = [student(name, distill, **prune) for name, (prune, distill) in chosen.items()]
        self.world.edit(students=students, finetune={"steps": 200} if finetuned else None)

    @happens()
    def a_student_is_too_large(self) -> None:
        students = [one.to_json() for one in self.world.run.spec.students]
        self.world.edit(students=[*students[:-1], student(students[-1]["name"], **PRUNES[2])])

    @happens()
    def suspend_is_toggled(self) -> None:
        self.world.edit(suspend=not self.world.run.spec.suspend)

    @happens()
    def a_retry_is_asked_for(self) -> None:
        self._ask_for_a_retry()

    @happens()
    def the_retry_token_is_emptied(self) -> None:
        self.world.annotate(RETRY_ANNOTATION, "")

    def _ask_for_a_retry(self) -> None:
        self.tokens += 1
        self.world.annotate(RETRY_ANNOTATION, str(self.tokens))

    @precondition(lambda self: not self.world.foreign)
    @happens(which=picks)
    def a_name_is_taken(self, which: int) -> None:
        """A job of that name is there, of a run of the same name that was deleted."""
        steps = [step for step in self.world.status.steps if step.fingerprint]
        if steps:
            step = steps[which % len(steps)]
            assert step.fingerprint
            name = job_name("demo", step.student, step.phase, step.fingerprint, step.attempt + 1)
            if name not in self.world.jobs:
                self.world.foreign.add(name)

    @precondition(lambda self: self.world.foreign)
    @happens()
    def the_taken_name_is_free(self) -> None:
        self.world.foreign.clear()

    # -- the end ------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """From here on all goes well: whatever happened before, the run ends, and ends as it should."""
        world = self.world
        if world.run.spec.suspend:
            world.drive()
            assert not any(truth.live for truth in world.jobs.values()), "jobs go on though the run is suspended"
            world.edit(suspend=False)
        world.drive()
        failed = [step for step in world.status.steps if step.state is StepState.FAILED]
        assert (world.status.phase is RunPhase.FAILED) == bool(failed), world.status.to_json()
        if failed:
            self._ask_for_a_retry()
            world.drive()
        students = [one.to_json() for one in world.run.spec.students]
        if any(one["prune"].get("hiddenSize") == 512 for one in students):
            reasons = {condition.type: condition.reason for condition in world.status.conditions}
            assert reasons["Stalled"] == "InvalidStudent", world.status.to_json()
            world.edit(students=[student(one["name"], **PRUNES[0]) for one in students])
            world.drive()
        self._all_is_right()
        if world.look().actions:
            raise AssertionError("a finished run is not left alone")

    def _all_is_right(self) -> None:
        status = self.world.status
        assert status.phase is RunPhase.SUCCEEDED, status.to_json()
        run = self.world.run
        noted = run.metadata.annotations
        steps = plan(run.spec, discovered=discovered_in(status), sources=noted, maker=maker_of(run)).steps
        assert [(step.name, step.fingerprint, step.artifact) for step in status.steps] == [
            (step.name, step.fingerprint, step.artifact) for step in steps
        ]
        assert all(step.artifact in self.world.published | self.world.lost for step in status.steps)
        keys = {step.name: step.fingerprint or "" for step in steps}
        assert [one.name for one in status.students] == [one.name for one in self.world.run.spec.students]
        for one in status.students:
            distilled = keys[step_name(Phase.DISTILL, one.name)]
            before = keys.get("finetune", distilled)
            assert one.parameters == number(keys[step_name(Phase.PRUNE, one.name)])
            assert one.validation_loss.to_json() == {
                "teacher": loss(before),
                "pruned": loss(distilled, 1),
                "distilled": loss(distilled, 2),
            } | ({"correctedTeacher": loss(before, 1)} if "finetune" in keys else {})
            last = Phase.REPORT if step_name(Phase.REPORT, one.name) in keys else Phase.EXPORT
            assert one.artifact == f"{last}-{keys[step_name(last, one.name)]}"


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "200")),
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
