"""The launcher's parts: verdict, termination message, commands and environment."""

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import indent

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import FINGERPRINT, Launch, Launched, alive
from tests.support.waiting import until

from compression_pipeline.config import (
    TERMINATION_MESSAGE_LIMIT,
    EvaluateResult,
    ExitClass,
    GenerationFigures,
    Parallelism,
    ParallelLayout,
    Phase,
    PruneConfig,
    PruneJob,
    TaskScore,
    Termination,
)
from compression_pipeline.config.tasks import MOST_TASKS
from compression_pipeline.errors import UserError
from compression_pipeline.launcher.outcome import Outcome, judge
from compression_pipeline.launcher.ranks import Rendezvous, command, environment
from compression_pipeline.launcher.termination import fitted, write

JOB = PruneJob(
    run="r",
    step="prune-width",
    attempt=1,
    fingerprint=FINGERPRINT,
    store="/store",
    processes_per_node=2,
    grace_period_seconds=77,
    data="prepare-x",
    teacher="prepare-x",
    sequence_length=8,
    prune=PruneConfig(layers=2),
)


# -- verdict ----------------------------------------------------------------------------------------------------------

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GONE = 2**22 + 1  # no process has this id


def outcome(rank: int, exit_class: ExitClass | None, *, second: int = 0, message: str = "") -> Outcome:
    return Outcome(
        rank=rank,
        pid=GONE,
        start="1",
        time=NOW + timedelta(seconds=second),
        exit_class=exit_class,
        message=message or f"rank {rank}",
        result={"by": rank} if exit_class is ExitClass.DONE and rank == 0 else {},
    )


def verdict(*outcomes: Outcome, code: int = 1, **told: object) -> Termination:
    given = {"expected": max(len(outcomes), 1), "stopping": False, "killed": False, "oom_kills": 0} | told
    return judge(outcomes, code, **given)  # pyright: ignore[reportArgumentType] (the defaults' types)


def test_all_done() -> None:
    found = verdict(outcome(0, ExitClass.DONE), outcome(1, ExitClass.DONE), code=0)
    assert found.exit_class is ExitClass.DONE
    assert found.result == {"by": 0}


def test_a_users_mistake_is_blamed_whatever_came_first() -> None:
    found = verdict(outcome(0, ExitClass.TRANSIENT), outcome(1, ExitClass.USER_ERROR, second=9))
    assert (found.exit_class, found.rank, found.message) == (ExitClass.USER_ERROR, 1, "rank 1")


def test_the_first_of_several_faults_is_blamed() -> None:
    found = verdict(outcome(0, ExitClass.TRANSIENT, second=5), outcome(1, ExitClass.TRANSIENT, second=2))
    assert (found.exit_class, found.rank) == (ExitClass.TRANSIENT, 1)


def test_a_rank_that_died_without_a_word_is_blamed_and_not_its_peers() -> None:
    found = verdict(outcome(0, ExitClass.TRANSIENT, message="connection closed by peer"), outcome(1, None))
    assert (found.exit_class, found.rank) == (ExitClass.TRANSIENT, 1)
    assert "most likely by the kernel for lack of memory" in found.message
    told = verdict(outcome(0, ExitClass.INTERRUPTED), outcome(1, None), oom_kills=1)
    assert told.message.startswith("rank 1 was killed by the kernel: out of memory;")


def test_faults_while_stopping_are_consequences() -> None:
    found = verdict(outcome(0, ExitClass.INTERRUPTED), outcome(1, ExitClass.TRANSIENT), stopping=True)
    assert found.exit_class is ExitClass.INTERRUPTED
    assert verdict(outcome(0, None), code=-15, stopping=True).exit_class is ExitClass.INTERRUPTED
    assert verdict(outcome(0, None), code=-9, stopping=True, killed=True).message.endswith("so was killed")
    assert verdict(outcome(0, ExitClass.USER_ERROR), stopping=True).exit_class is ExitClass.USER_ERROR


def test_ranks_that_never_started() -> None:
    found = verdict(code=1, expected=2)
    assert found.exit_class is ExitClass.TRANSIENT
    assert "could not be started (exit code 1)" in found.message


def test_nodes_that_do_not_meet_are_nobodys_fault() -> None:
    """One has its place, another waits for its own: for as long as that takes."""
    nodes = ParallelLayout(nodes=2, per_node=1)
    master = Rendezvous(nodes, 0, "r-master-0", 23456, timeout=600)
    waited = verdict(unmet=master.unmet(600.2))
    assert waited.exit_class is ExitClass.INTERRUPTED
    assert "rendezvousTimeoutSeconds (600)" in waited.message and "r-master-0:23456" in waited.message
    assert verdict(unmet=master.unmet(3)).exit_class is ExitClass.TRANSIENT, "it could not even wait"
    worker = Rendezvous(nodes, 1, "r-master-0", 23456, timeout=600)
    assert verdict(unmet=worker.unmet(3)).exit_class is ExitClass.INTERRUPTED, "whose master gave up just then"
    assert Rendezvous(ParallelLayout(nodes=1, per_node=2)).unmet(9000) is None
    started = verdict(outcome(0, ExitClass.TRANSIENT), unmet=master.unmet(9000))
    assert started.exit_class is ExitClass.TRANSIENT, "what fails later is a fault"


CLASSES = st.one_of(st.none(), st.sampled_from(ExitClass))


@given(st.lists(CLASSES, min_size=1, max_size=6), st.booleans(), st.booleans(), st.integers(-9, 1), st.integers(0, 2))
def test_a_verdict_is_done_only_when_every_rank_is_and_never_hides_a_users_mistake(
    classes: list[ExitClass | None], stopping: bool, killed: bool, code: int, oom_kills: int
) -> None:
    outcomes = [outcome(rank, one, second=rank) for rank, one in enumerate(classes)]
    found = verdict(*outcomes, code=code, stopping=stopping, killed=killed, oom_kills=oom_kills)
    assert (found.exit_class is ExitClass.DONE) == (code == 0 and set(classes) == {ExitClass.DONE})
    assert (found.exit_class is ExitClass.USER_ERROR) == (ExitClass.USER_ERROR in classes)
    assert found.message or found.exit_class is ExitClass.DONE


# -- termination message ----------------------------------------------------------------------------------------------


@given(st.text(max_size=6000), st.text(max_size=2000))
def test_a_termination_message_fits_and_stays_what_it_is(message: str, sample: str) -> None:
    told = {"class": "Done", "message": message, "result": {"sample": sample, "parameters": 3, "deep": {"x": 1.5}}}
    text = fitted(Termination.model_validate(told))
    assert len(text.encode()) <= TERMINATION_MESSAGE_LIMIT
    found = json.loads(text)
    assert found["class"] == "Done"
    assert found["result"]["parameters"] == 3
    assert message.startswith(found["message"].removesuffix("…"))
    if len(message.encode()) + len(sample.encode()) < 500:
        assert found["message"] == message
        assert found["result"]["sample"] == sample


def test_the_scores_of_all_tasks_fit_whatever_they_are_named() -> None:
    figure = 0.012345678901234567
    score = TaskScore(
        name="n" * 128,
        metric="m" * 64,
        score=-figure,
        stderr=figure,
        samples=10**7,
        shots=64,
        higher_is_better=False,
    )
    generation = GenerationFigures(
        tokens_per_second=1e4 + figure, first_token_seconds=figure, peak_memory_bytes=2**38, device="d" * 40
    )
    result = EvaluateResult(
        digest="0" * 64, tasks=[score] * MOST_TASKS, generation=generation, harness="0.4.13", precision="BF16"
    )
    told = {"class": "Done", "rank": 0, "result": result.to_json()}
    assert json.loads(fitted(Termination.model_validate(told)))["result"] == result.to_json()


def test_a_mounted_termination_file_is_written_in_place(tmp_path: Path) -> None:
    """In a pod it is a file mounted over an empty one: it can't be replaced, and its folder may be read-only."""
    path = tmp_path / "log"
    path.touch()
    number = path.stat().st_ino
    (tmp_path / ".log.new").mkdir()  # what a read-only folder does to the new file
    write(Termination.model_validate({"class": "Done"}), path)
    assert json.loads(path.read_text())["class"] == "Done"
    assert path.stat().st_ino == number


# -- commands and environment -----------------------------------------------------------------------------------------


def test_one_rank_needs_no_torchrun() -> None:
    alone = JOB.model_copy(update={"processes_per_node": 1})
    rendezvous = Rendezvous.of(
        Phase.PRUNE, alone, {"MASTER_ADDR": "r-master-0", "MASTER_PORT": "23456", "PET_NNODES": "1"}
    )
    assert command(Phase.PRUNE, rendezvous)[1:] == ["-m", "compression_pipeline.worker", "prune"]
    told = environment({}, alone, Phase.PRUNE, rendezvous, launch="ab", outcomes=Path("/o"))
    assert (told["RANK"], told["WORLD_SIZE"], told["LOCAL_RANK"]) == ("0", "1", "0")
    assert told["MASTER_ADDR"] == "127.0.0.1"
    assert told["MASTER_PORT"] != "23456"


def test_several_ranks_on_one_node_find_a_port_of_their_own() -> None:
    rendezvous = Rendezvous.of(Phase.PRUNE, JOB, {"PET_NNODES": "1"})
    arguments = command(Phase.PRUNE, rendezvous)
    assert arguments[1:3] == ["-m", "compression_pipeline.launcher.torchrun"]
    assert {"--standalone", "--nproc-per-node=2", "--nnodes=1"} <= set(arguments)


def test_several_nodes_meet_where_the_training_operator_says() -> None:
    injected = {
        "PET_NNODES": "3",
        "PET_NODE_RANK": "2",
        "PET_MASTER_ADDR": "r-master-0",
        "PET_MASTER_PORT": "23456",
        "RANK": "2",
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "r-master-0",
        "MASTER_PORT": "23456",
    }
    rendezvous = Rendezvous.of(Phase.PRUNE, JOB, injected)
    assert not rendezvous.leads
    wanted = {"--nnodes=3", "--nproc-per-node=2", "--node-rank=2", "--master-addr=r-master-0", "--master-port=23456"}
    assert wanted <= set(command(Phase.PRUNE, rendezvous))
    assert not [
        name
        for name in environment(injected, JOB, Phase.PRUNE, rendezvous, launch="ab", outcomes=Path("/o"))
        if name.startswith("PET_")
    ]


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.EXPORT])
def test_phases_of_one_rank_have_one_whatever_they_are_told(phase: Phase) -> None:
    rendezvous = Rendezvous.of(phase, JOB, {"PET_NNODES": "2", "PET_NODE_RANK": "1"})
    assert command(phase, rendezvous)[1:] == ["-m", "compression_pipeline.worker", phase.value]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"context": 2}, r"parallelism\.context: 2 is not supported yet; leave it at 1"),
        ({"pipeline": 2}, "parallelism: prune computes with whole models; leave it away"),
        ({"tensor": 2}, "parallelism: prune computes with whole models; leave it away"),
    ],
)
def test_a_job_that_splits_its_model_so_is_refused_before_a_rank_is_started(split: dict[str, int], said: str) -> None:
    job = JOB.model_copy(update={"parallelism": Parallelism(**split)})
    with pytest.raises(UserError, match=f"^{said}$"):
        Rendezvous.of(Phase.PRUNE, job, {})


def test_only_what_reads_sources_gets_to_the_hub_and_its_token() -> None:
    own = {"HF_TOKEN": "secret", "HUGGING_FACE_HUB_TOKEN": "secret", "HOME": "/home"}
    for phase in Phase:
        rendezvous = Rendezvous.of(phase, JOB, {})
        told = environment(own, JOB, phase, rendezvous, launch="ab", outcomes=Path("/o"))
        assert told["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "77"
        assert told["HOME"] == "/home"
        reads_sources = phase in (Phase.PREPARE, Phase.TASKS)
        assert ("secret" in told.values()) == reads_sources
        assert told.get("HF_HUB_OFFLINE") == (None if reads_sources else "1")


@pytest.mark.parametrize(("threads", "own", "expected"), [(3, "8", "3"), (None, "8", "8")])
def test_threads(threads: int | None, own: str, expected: str) -> None:
    job = JOB.model_copy(update={"threads": threads})
    told = environment(
        {"OMP_NUM_THREADS": own},
        job,
        Phase.PRUNE,
        Rendezvous.of(Phase.PRUNE, job, {}),
        launch="ab",
        outcomes=Path("/o"),
    )
    assert told["OMP_NUM_THREADS"] == expected


# -- several ranks, under torchrun ------------------------------------------------------------------------------------

RANKS = """
def run(job, context):
    (here / f"started-{rank}").write_text(str(os.getpid()))
    while len(list(here.glob("started-*"))) < ranks:
        time.sleep(0.01)
    return act(context)
"""


MISTAKE = """
if rank == 1:
    from compression_pipeline.errors import UserError
    raise UserError("mend it")
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that hangs in a collective
time.sleep(600)
"""

FAULT = """
if rank == 1:
    from compression_pipeline.errors import TransientError
    raise TransientError("the disk is full")
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that hangs in a collective, and is killed for it
time.sleep(600)
"""

KILLED = """
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
while not context.stop_requested():
    time.sleep(0.01)
raise ConnectionError("peer is gone")
"""

KILLED_AMID_A_WAIT = """
from torch.distributed.distributed_c10d import _get_default_store
from compression_pipeline.config import CONFIG_VARIABLE, Precision, PruneJob
from compression_pipeline.megatron.runtime import runtime
job = PruneJob.model_validate_json(os.environ[CONFIG_VARIABLE])
with runtime(job, precision=Precision.FP32) as current:
    if current.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    # As NCCL waits, which neither sees a peer die nor lets Python hear of SIGTERM: for as long as the group may.
    _get_default_store().wait(["what nobody sets"])
"""

STOPPED = """
while not context.stop_requested():
    time.sleep(0.01)
from compression_pipeline.errors import Interrupted
raise Interrupted("stopped")
"""

DEAF = "time.sleep(600)"


def ranks(launch: Launch, act: str) -> Launched:
    return launch(f"def act(context):\n{indent(act.strip(), '    ')}\n{RANKS}", processesPerNode=2)


def processes(folder: Path) -> list[int]:
    """The two ranks, once both run."""
    until(lambda: len([p for p in folder.glob("started-*") if p.read_text()]) == 2, "both ranks run")
    return [int(path.read_text()) for path in sorted(folder.glob("started-*"))]


@pytest.mark.parametrize(
    ("act", "code", "rank", "message"),
    [
        ("return Result(of=ranks)", 0, None, ""),
        (MISTAKE, 64, 1, "mend it"),
        (FAULT, 75, 1, "the disk is full"),
        (KILLED, 75, 1, "rank 1 was killed (SIGKILL), most likely by the kernel"),
        (KILLED_AMID_A_WAIT, 75, 1, "rank 1 was killed (SIGKILL), most likely by the kernel"),
        (STOPPED, 143, 0, "was told to stop (SIGTERM)"),
    ],
)
def test_ranks_of_torchrun(launch: Launch, act: str, code: int, rank: int | None, message: str) -> None:
    run = ranks(launch, act)
    pids = processes(launch.folder)
    if act == STOPPED:
        run.process.send_signal(signal.SIGTERM)
    assert run.wait() == code, run.errors
    assert run.termination["message"].startswith(message)
    assert run.termination.get("rank") in ((0, 1) if act == STOPPED else (rank,))
    assert len(run.events("result")) == (1 if code == 0 else 0)  # rank 0 alone speaks
    assert not [pid for pid in pids if alive(pid)]


def test_torchrun_and_its_ranks_die_with_a_killed_launcher(launch: Launch) -> None:
    run = ranks(launch, DEAF)
    pids = processes(launch.folder)
    run.process.kill()
    until(lambda: not [pid for pid in pids if alive(pid)], "the ranks are gone")
