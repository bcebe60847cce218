"""The parts of the local backend: reading logs, knowing sources, looking at the machine, estimating space."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_jobs import a_job, a_run

from compression_operator.api.run import CompressionRun
from compression_operator.api.status import CompressionRunStatus, TeacherStatus
from compression_operator.core.plan import plan
from compression_operator.core.sizes import Hardware, run_sizes
from compression_operator.joblog.lines import LineReader, ProgressReader, describe, duration, last_line, parse_event
from compression_operator.local import disk_space as space
from compression_operator.local import machine, processes
from compression_operator.local.processes import ProcessId
from compression_operator.local.source_files import local_files, signature
from compression_pipeline.config import Phase
from compression_pipeline.store import system


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=12))
def test_lines_come_whole_however_they_were_written(chunks: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        reader = LineReader(path)
        assert list(reader.read()) == []
        lines: list[str] = []
        for chunk in chunks:
            with path.open("ab") as file:
                file.write(chunk)
            lines += reader.read()
        rest = reader.unended_line()
        written = b"".join(chunks)
        expected = [part.decode(errors="replace") for part in written.split(b"\n")]
        assert [*lines, rest] == [line.rstrip("\r") for line in expected[:-1]] + [expected[-1]]


def progress(step: int) -> str:
    time = (datetime(2026, 11, 1, tzinfo=UTC) + timedelta(seconds=step)).isoformat()
    return json.dumps({"event": "progress", "time": time, "step": step, "totalSteps": 9_999_999, "loss": 1.5}) + "\n"


def test_a_large_log_is_read_from_its_end_and_then_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(map(progress, range(20_000))))
    reader = ProgressReader(path)
    reader.update()
    assert reader.progress and reader.progress.step == 19_999
    with path.open("a") as file:
        file.write(progress(20_000)[:30])
    reader.update()
    assert reader.progress.step == 19_999, "half a line is none"
    with path.open("a") as file:
        file.write(progress(20_000)[30:] + "warning: not JSON\n{broken\n[1]\n" + '{"event": "info", "time": "soon"}\n')
    reader.update()
    assert reader.progress.step == 20_000
    assert reader.last_event == datetime(2026, 11, 1, tzinfo=UTC) + timedelta(seconds=20_000)


def test_the_tail_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("first\nsecond\nthird\n")
    for tail in range(1, 30):
        lines = list(LineReader(path, tail=tail).read())
        assert lines == ["first", "second", "third"][3 - len(lines) :]
        assert sum(len(line) + 1 for line in lines) <= tail
    assert list(LineReader(path, tail=6).read()) == ["third"]
    assert list(LineReader(path, tail=13).read()) == ["second", "third"]


def test_the_last_words_of_a_program_are_not_its_events(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert last_line(path) is None
    path.write_text("Traceback\nValueError: it broke\n\n" + progress(3))
    assert last_line(path) == "ValueError: it broke"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (
            {
                "event": "progress",
                "step": 10,
                "totalSteps": 120,
                "loss": 4.12345,
                "tokensPerSecond": 12345.6,
                "etaSeconds": 100,
            },
            "step 10/120  loss 4.123  12,346 tokens/s  ETA 1m40s",
        ),
        ({"event": "progress", "step": 3, "totalSteps": 9, "unit": "documents"}, "document 3/9"),
        (
            {
                "event": "progress",
                "step": 1_500_000,
                "totalSteps": 2_500_000_000,
                "unit": "bytes",
                "tokensPerSecond": 98765.4,
                "documentsPerSecond": 432.1,
            },
            "1.5 MB of 2.5 GB  98,765 tokens/s  432.1 documents/s",
        ),
        (
            {
                "event": "progress",
                "step": 1,
                "totalSteps": 2,
                "tokensPerSecond": 5,
                "teraflopsPerDevice": 409.13,
                "modelFlopsUtilization": 0.4137,
            },
            "step 1/2  5 tokens/s  409.1 TFLOP/s  MFU 41.4%",
        ),
        ({"event": "metric", "name": "validationLoss", "value": 3.98, "step": 100}, "validationLoss 3.98 at step 100"),
        ({"event": "warning", "message": "only 3 sequences"}, "warning: only 3 sequences"),
        ({"event": "info", "message": "loads the teacher"}, "loads the teacher"),
        (
            {"event": "result", "result": {"parameters": 1200, "cached": False, "student": {}}},
            "result: parameters 1,200, cached False",
        ),
    ],
)
def test_events_as_sentences(event: dict[str, object], said: str) -> None:
    line = json.dumps({**event, "time": "2026-11-01T10:00:00Z"})
    parsed = parse_event(line)
    assert parsed is not None
    clock, _, text = describe(parsed).partition("  ")
    assert text == said
    assert clock == datetime(2026, 11, 1, 10, tzinfo=UTC).astimezone().strftime("%H:%M:%S")


@pytest.mark.parametrize(("seconds", "said"), [(0, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m"), (-3, "0s")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_source_is_a_file_a_folder_or_a_glob(tmp_path: Path) -> None:
    for name in ("data/a.txt", "data/sub/b.txt", "data/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def names(source: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in local_files(source, tmp_path)]

    assert names("file:data/a.txt") == ["data/a.txt"]
    assert names("file:data") == ["data/a.txt", "data/c.jsonl", "data/sub/b.txt"]
    assert names("file:data/*.txt") == ["data/a.txt"]
    assert names("file:data/**/*.txt") == ["data/a.txt", "data/sub/b.txt"]
    assert names(f"file:{tmp_path}/d*/c.jsonl") == ["data/c.jsonl"]
    assert names("file:nothing") == names("hf://owner/name") == []


def test_a_signature_follows_what_is_in_the_files_and_not_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in ("one", "two"):
        (tmp_path / root / "data").mkdir(parents=True)
        (tmp_path / root / "data" / "a.txt").write_text("text")
    one = signature("file:data", tmp_path / "one")
    assert one == signature("file:data", tmp_path / "two"), "a checkout elsewhere is the same"
    file = tmp_path / "two" / "data" / "a.txt"
    os.utime(file, (0, 0))
    assert one == signature("file:data", tmp_path / "two"), "touching a small file changes nothing"
    file.write_text("tex2")
    assert one != signature("file:data", tmp_path / "two")
    assert signature("hf://owner/name", tmp_path) is None
    monkeypatch.setattr("compression_pipeline.store.watched.SMALL", 2)
    large = signature("file:data", tmp_path / "one")
    os.utime(tmp_path / "one" / "data" / "a.txt", (0, 0))
    assert large != signature("file:data", tmp_path / "one"), "a large file is known by its time"


def test_gpus_are_those_that_the_driver_lists_and_the_user_lets_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.visible_gpus({}) == ("0", "1")
    assert machine.visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}) == ("1",)
    assert (
        machine.visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == machine.visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()
    )


def test_a_job_counts_devices_as_the_user_does(tmp_path: Path) -> None:
    """By another order the numbers are those of other devices, which it may not use."""
    own = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1", "CUDA_OTHER": "x"}
    told = machine.environment(own, Phase.DISTILL, config="{}", termination=tmp_path, gpus=("1",))
    assert {name: value for name, value in told.items() if name.startswith("CUDA_")} == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1",
    }


def test_processors_are_at_least_one_and_at_most_those_of_the_machine() -> None:
    assert 1 <= system.processors() <= (os.cpu_count() or 1)


def test_files_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    code = "import pathlib, sys; from compression_operator.local.jobfiles import write_atomically; "
    code += "write_atomically(pathlib.Path(sys.argv[1]), chr(0x2026))"
    ascii_alone = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path / "file")]
    subprocess.run(command, env=ascii_alone, check=True)
    assert (tmp_path / "file").read_bytes() == "…".encode()


def test_a_process_is_itself_and_nobody_else() -> None:
    own = ProcessId.of(os.getpid())
    assert own and own.alive and own == ProcessId.of(os.getpid())
    assert not ProcessId(own.pid, own.start + "0").alive
    assert ProcessId.of(2**22 + 1) is None


def test_a_process_is_found_by_its_environment_also_while_it_gets_a_new_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment is empty for that moment, and a kernel's thread has none ever."""
    boot = tmp_path / "sys" / "kernel" / "random" / "boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("boot")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "stat").touch()
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    for pid, flags in ((7, "0"), (8, str(processes.KERNEL_THREAD))):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "environ").touch()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a b) {' '.join([*fields[:6], flags, *fields[7:48], '0'])}")

    def arrives(_: float) -> None:
        (tmp_path / "7" / "environ").write_bytes(b"A=1\0MARK=x\0")

    monkeypatch.setattr(system, "PROC", tmp_path)
    monkeypatch.setattr(processes.time, "sleep", arrives)
    assert [process.pid for process in processes.marked("MARK=x")] == [7]


def test_a_process_of_this_machine_is_found_by_its_environment(tmp_path: Path) -> None:
    mark = str(tmp_path)  # nobody else's, however many run these tests
    with subprocess.Popen(["sleep", "600"], env={"MARK": mark}) as child:
        assert [process.pid for process in processes.marked(f"MARK={mark}")] == [child.pid]
        child.kill()
    assert processes.marked(f"MARK={mark}") == []


def test_the_space_that_a_step_takes(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "text.txt").write_bytes(bytes(500))
    sizes = {"layers": 4, "hiddenSize": 128, "ffnHiddenSize": 256, "attentionHeads": 4, "queryGroups": 2, "headDim": 32}
    told = {"family": "Llama", "vocabularySize": 512, "parameterCount": 1, **sizes}
    teacher = TeacherStatus.model_validate(told)
    store = tmp_path / "store"

    def at(run: CompressionRun) -> CompressionRun:
        return run.model_copy(update={"status": CompressionRunStatus(teacher=teacher)})

    def needed(phase: Phase, run: CompressionRun) -> int:
        return space.bytes_needed(run, a_job(run, phase), store, source_root=tmp_path) - space.FLOOR

    run = at(a_run())
    planned = run_sizes(run.spec, plan(run.spec, gpus=False), teacher, Hardware(gpus=0))
    width = planned.shapes["width"].parameters
    assert needed(Phase.PREPARE, a_run()) == 1500 and needed(Phase.FINETUNE, a_run()) == 0, "what is not known yet"
    all_of_it = teacher.parameters * (4 + 3 * 14)
    assert needed(Phase.FINETUNE, run) == all_of_it, "a model, two checkpoints kept and one being written"
    assert needed(Phase.DISTILL, run) == width * (4 + 3 * 14) == sum(planned.store["distill-width"]), "as planned"
    losses = [{"type": "LogitsKL"}, {"type": "HiddenStates"}, {"type": "Embeddings"}]
    states = at(a_run(distill={"steps": 10, "globalBatchSize": 4, "losses": losses}))
    projections = 5 * 64 * 128  # of four pairs of layers and the embeddings: in checkpoints, and not exported
    assert needed(Phase.DISTILL, states) == needed(Phase.DISTILL, run) + projections * 3 * 14
    left = store / "work" / ("0123456789abcdef" * 2) / "1" / "checkpoints"
    left.mkdir(parents=True)
    (left / "half").write_bytes(bytes(700))
    assert needed(Phase.FINETUNE, run) == all_of_it - 700, "what an attempt has left is room that is taken already"
    assert not space.shortage(tmp_path, 1)
    own = space.shortage(tmp_path, 10**18) or ""
    assert own.startswith(f"{tmp_path} has ") and own.endswith("or keep the store on another disk with --store")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "shared")
    (tmp_path / "shared").mkdir()
    shared = space.shortage(link, 10**18) or ""
    assert shared.startswith(f"{tmp_path / 'shared'} has ") and shared.endswith(
        "free some space, or use another --store"
    )
