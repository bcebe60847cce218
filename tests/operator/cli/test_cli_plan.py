"""`compression plan`: what a run will need, from the teacher's config.json alone, wherever that lies."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from local_cli import CONFIG, Bench

from compression_operator.cli import plan
from compression_operator.cli.__main__ import main

COMMIT = "5" * 40
MANIFEST: dict[str, Any] = {
    "apiVersion": "modelcompression.io/v1alpha1",
    "kind": "CompressionRun",
    "metadata": {"name": "demo"},
    "spec": {
        "teacher": {"model": "hf://owner/model"},
        "dataset": {"source": "hf://owner/text", "sequenceLength": 64},
        "students": [{"name": "width", "prune": {"hiddenSize": 64}}],
        "distill": {"steps": 10, "globalBatchSize": 8, "warmupSteps": 2},
        "storage": {"persistentVolumeClaim": {"claimName": "store"}},
    },
}


class Server:
    """Answers each request for a file, and keeps what was asked."""

    def __init__(self) -> None:
        self.status, self.code, self.content = 200, "", json.dumps(CONFIG)
        self.elsewhere: str | None = None
        self.asked: list[tuple[str, str | None]] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.asked.append((self.path, self.headers.get("Authorization")))
                moved = told.elsewhere is not None and not self.path.startswith("/moved")
                self.send_response(307 if moved else told.status)
                if moved:
                    self.send_header("Location", f"{told.elsewhere}/moved")
                if told.code:
                    self.send_header("X-Error-Code", told.code)
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                self.wfile.write(told.content.encode())

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server()
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield found
    found.close()


def manifest(folder: Path, *others: dict[str, Any], **spec: Any) -> Path:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump_all([*others, {**MANIFEST, "spec": {**MANIFEST["spec"], **spec}}]))
    return file


def planned(file: Path, *options: str | Path) -> list[str]:
    """The command, with `-o json`."""
    return ["plan", str(file), "--cluster", "-o", "json", *map(str, options)]


def test_a_teacher_on_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    assert bench.call("plan", bench.file, "--workdir", bench.workdir) == 0
    printed = capsys.readouterr().out
    assert f"teacher: {tmp_path}/teacher/config.json" in printed
    for heading in ("parameters", "weights", "activations", "GPU hours at 40%", "the store needs about"):
        assert heading in printed
    assert bench.call("plan", bench.file, "--workdir", bench.workdir, "-o", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["trainings"]) == ["finetune", "distill-width", "distill-depth"]
    [width, depth] = found["students"]
    assert width["name"] == "width" and width["shape"]["hiddenSize"] == 64 and depth["shape"]["layers"] == 7
    assert found["trainings"]["distill-width"]["parameters"] == width["parameters"]
    assert found["trainings"]["finetune"]["parameters"] == found["teacher"]["parameters"]
    steps = found["store"]["steps"]
    assert found["store"]["peakBytes"] > sum(step["artifact"] for step in steps.values())


def test_after_prepare_the_work_directory_knows_the_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    capsys.readouterr()
    assert bench.call("plan", bench.file, "--workdir", bench.workdir, "-o", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["teacher"]["source"] == "file:teacher, as prepare found it"
    shape = found["students"][0]["shape"]
    assert shape["hiddenSize"] == 64 and not shape.keys() & {"parameterCount", "validationLoss"}
    assert bench.status()["students"][0]["planned"]["memoryPerGpu"]["total"] > 0


def test_a_teacher_on_the_hub(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    command = planned(manifest(tmp_path), "--gpu", "h100", "--mfu", "0.5")
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert server.asked == [("/owner/model/resolve/main/config.json", None)]
    assert found["teacher"]["revision"] == COMMIT
    assert (found["gpu"], found["modelFlopsUtilization"]) == ("H100", 0.5)
    assert found["trainings"]["distill-width"]["gpuHours"] >= 0


def test_the_token_goes_to_the_hub_alone(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_goodgoodgood\n")
    store = Server()
    server.elsewhere = store.url
    try:
        command = planned(manifest(tmp_path, teacher={"model": "hf://owner/model", "revision": "v2"}))
        assert main(command) == 0
    finally:
        store.close()
    assert server.asked == [("/owner/model/resolve/v2/config.json", "Bearer hf_goodgoodgood")]
    assert store.asked == [("/moved", None)]
    assert json.loads(capsys.readouterr().out)["teacher"]["parameters"]


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (
            401,
            "",
            "or it is private (401); this was asked with no token (set HF_TOKEN), or give",
        ),
        (403, "GatedRepo", "the model is gated (403): ask for access"),
        (404, "RevisionNotFound", "there is no revision main; correct teacher.revision"),
        (404, "EntryNotFound", "there is no config.json at revision main"),
        (503, "", "the Hub answered 503; try again later, or give its config.json with --teacher-config PATH"),
    ],
)
def test_a_hub_that_does_not_give_it(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], status: int, code: str, sentence: str
) -> None:
    server.status, server.code = status, code
    command = planned(manifest(tmp_path))
    assert main(command) == 0, "the steps are known all the same"
    told = capsys.readouterr()
    assert told.err.startswith("sizes are not known: hf://owner/model: ") and sentence in told.err
    assert len(told.err.splitlines()) == 1
    assert "students" not in json.loads(told.out) and len(json.loads(told.out)["steps"]) == 4


def test_no_answer_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    command = planned(manifest(tmp_path))
    assert main(command) == 0
    assert "127.0.0.1:9 can't be reached" in capsys.readouterr().err


@pytest.mark.parametrize("told", ["option", "environment"])
def test_offline_asks_nobody(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told: str
) -> None:
    if told == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = planned(manifest(tmp_path), *(["--offline"] if told == "option" else []))
    assert main(command) == 0
    assert "is not asked offline; give its config.json with --teacher-config PATH" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    command = planned(manifest(tmp_path), "--offline", "--teacher-config", tmp_path)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["students"]
    assert not server.asked


def test_a_claim_is_read_where_it_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest(tmp_path, teacher={"model": "pvc://models/some/teacher"})
    command = planned(file)
    assert main(command) == 0
    assert "is on a claim that is not mounted here; give its config.json with" in capsys.readouterr().err
    folder = tmp_path / "models" / "some" / "teacher"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr(plan, "MOUNTED_CLAIMS", tmp_path)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["teacher"]["source"] == str(folder / "config.json")


def test_a_claim_that_is_too_small_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    size = {"resources": {"requests": {"storage": "1Mi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "store"}, "spec": size}
    command = planned(manifest(tmp_path, claim), "--teacher-config", tmp_path / "config.json")
    assert main(command) == 0
    [warning] = json.loads(capsys.readouterr().out)["warnings"]
    assert warning.startswith("claim store has 1.0 MB and the store needs about")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, "a mixture of experts"),
        ({**CONFIG, "num_hidden_layers": "many"}, "num_hidden_layers is wrong ('many'"),
        ({**CONFIG, "hidden_size": 32}, "prune.hiddenSize: 64 is more than the teacher's 32"),
    ],
)
def test_what_cannot_be_compressed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = planned(manifest(tmp_path), "--teacher-config", tmp_path)
    assert main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = planned(manifest(tmp_path), "--gpu", "H900")
    assert main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "H900 is not known; give one of B300, " in line
    command = planned(manifest(tmp_path), "--mfu", "40")
    with pytest.raises(SystemExit):
        main(command)
    assert "40 is not a share of the GPU's peak" in capsys.readouterr().err
    command = planned(manifest(tmp_path), "--teacher-config", tmp_path / "nowhere")
    assert main(command) == 0
    assert "nowhere cannot be read: no such file or directory" in capsys.readouterr().err


def test_a_loss_that_the_teacher_does_not_allow_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    losses = [{"type": "LogitsKL"}, {"type": "HiddenStates", "layerMap": [{"student": 1, "teacher": 99}]}]
    distill = {**MANIFEST["spec"]["distill"], "losses": losses}
    students = [{"name": name, "prune": {"hiddenSize": 64}} for name in ("one", "other")]
    command = planned(manifest(tmp_path, distill=distill, students=students), "--teacher-config", tmp_path)
    assert main(command) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert ": spec.distill.losses[1].layerMap[0].teacher: the teacher has layers 1 to " in told


def with_target(tmp_path: Path, **target: Any) -> tuple[Path, Path]:
    """A manifest whose student has a target, and the config.json of its teacher."""
    student = {"name": "small", "prune": {"divisor": 16, "target": target}}
    file, config = tmp_path / "run.yaml", tmp_path / "config.json"
    file.write_text(yaml.safe_dump({**MANIFEST, "spec": {**MANIFEST["spec"], "students": [student]}}))
    config.write_text(json.dumps(CONFIG))
    return file, config


def test_a_target_is_planned_with_its_candidates_and_what_they_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, config = with_target(tmp_path, ratio=1.5, candidates=3, distillSteps=5)
    told = ["plan", str(file), "--cluster", "--teacher-config", str(config), "--gpu", "H100"]
    assert main(told) == 0
    text = capsys.readouterr().out
    assert "search-small" in text and "the search measures 3 (" in text and " hours of one H100 at 40%" in text
    assert main([*told, "-o", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    search = report["searches"]["small"]
    assert len(search["candidates"]) == 3 and search["measured"] and search["flops"] > 0
    assert report["students"][0]["parameters"] == search["candidates"][0]["parameters"]
    assert all(f"{one['parameters']:,}" in text for one in search["candidates"])
    file, _ = with_target(tmp_path, ratio=1.5, candidates=3)
    main([*told, "-o", "json"])
    assert json.loads(capsys.readouterr().out)["searches"]["small"]["flops"] < search["flops"]


def test_a_target_by_shape_alone_has_no_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, config = with_target(tmp_path, ratio=1.5, candidates=1, rank="Shape")
    assert main(["plan", str(file), "--cluster", "--teacher-config", str(config)]) == 0
    text = capsys.readouterr().out
    assert "search-small" not in text and "rank: Shape takes the first, the least cut one, and measures nothing" in text


def test_a_target_that_no_shape_meets_is_told_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, config = with_target(tmp_path, ratio=500)
    assert main(["plan", str(file), "--cluster", "--teacher-config", str(config)]) != 0
    fault = capsys.readouterr().err
    assert f"{file}: spec.students[0].prune.target: no shape has " in fault and "the nearest are " in fault


def test_a_target_of_speed_is_planned_with_how_many_shapes_are_timed_at_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, config = with_target(tmp_path, tokensPerSecond=60, candidates=2)
    told = ["plan", str(file), "--cluster", "--teacher-config", str(config)]
    assert main(told) == 0
    text = capsys.readouterr().out
    assert main([*told, "-o", "json"]) == 0
    search = json.loads(capsys.readouterr().out)["searches"]["small"]
    assert 2 < search["timed"] < search["shapes"] and len(search["candidates"]) == 2
    timed = f"at most {search['timed']} of {search['shapes']:,} shapes"
    assert f"the search times the teacher and {timed}, and measures up to 2 " in text


def test_a_rank_by_a_task_is_planned_with_its_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = {"name": "small", "prune": {"divisor": 16, "target": {"ratio": 1.5, "rank": "Task"}}}
    student["prune"]["importance"] = {"depth": "Task"}
    file, config = with_target(tmp_path, ratio=1.5)
    spec = {**MANIFEST["spec"], "students": [student], "evaluate": {"tasks": [{"name": "hellaswag"}]}}
    file.write_text(yaml.safe_dump({**MANIFEST, "spec": spec}))
    assert main(["plan", str(file), "--cluster", "--teacher-config", str(config)]) == 0
    assert "and the questions of the task that ranks layers and candidates" in capsys.readouterr().out


def test_a_search_that_is_done_is_planned_with_what_it_found_until_it_no_longer_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"name": "small", "prune": {"divisor": 32, "target": {"ratio": 2, "candidates": 2}}}
    bench = Bench(tmp_path, students=[small])

    def told(*more: str) -> dict[str, Any]:
        assert bench.call("plan", bench.file, "--workdir", bench.workdir, *more, "-o", "json") == 0
        return json.loads(capsys.readouterr().out)

    assert not told()["searches"]["small"]["done"]
    assert bench.run() == 0
    capsys.readouterr()
    found = bench.status()["students"][0]
    best, planned = found["candidates"][0], told()
    assert planned["searches"]["small"]["done"] and planned["searches"]["small"]["candidates"] == found["candidates"]
    shape = planned["students"][0]["shape"]
    assert {name: shape[name] for name in found["shape"]} == found["shape"] and shape["layers"] == best["layers"]
    assert planned["trainings"]["distill-small"]["parameters"] == found["planned"]["parameters"]
    assert bench.call("plan", bench.file, "--workdir", bench.workdir) == 0
    text = capsys.readouterr().out
    assert "the search is done: it has measured 2, the first is the best" in text and "pruned" in text
    assert f"{best['prunedLoss']:.4f}" in text
    # On a cluster, and with another target, it is not.
    other = {"name": "small", "prune": {"divisor": 32, "target": {"ratio": 2, "candidates": 3}}}
    bench.write(students=[other])
    again = told()
    assert not again["searches"]["small"]["done"] and again["students"][0]["shape"] != shape


def needed(tmp_path: Path, capsys: pytest.CaptureFixture[str], length: int = 512, **config: Any) -> float:
    """GB that a search is said to need on a GPU that is too small for it."""
    sizes = {"num_hidden_layers": 60, "hidden_size": 12_288, "intermediate_size": 49_152, "num_attention_heads": 96}
    file, path = with_target(tmp_path, ratio=2, axes=["layers"])
    path.write_text(json.dumps({**CONFIG, **sizes, **config}))
    told = ["--teacher-config", str(path), "--gpu", "A100", "--set", f"dataset.sequenceLength={length}"]
    assert main(["plan", str(file), "--cluster", *told]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "search-small needs about " in line]
    return float(line.partition("needs about ")[2].split()[0])


def test_the_memory_of_a_search_is_that_of_its_arithmetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It computes in float32 where the weights that it cuts are not bfloat16."""
    bfloat16 = needed(tmp_path, capsys, torch_dtype="bfloat16")
    assert needed(tmp_path, capsys) == bfloat16, "as most checkpoints are"
    assert needed(tmp_path, capsys, dtype="float32") == pytest.approx(2 * bfloat16, rel=0.01)
    assert needed(tmp_path, capsys, torch_dtype="float16") == pytest.approx(2 * bfloat16, rel=0.01)


def test_a_search_holds_all_logits_of_a_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """About 8,192 tokens of them, and a sequence at least, in bfloat16 and in float32."""
    words = {"vocab_size": 256_000, "torch_dtype": "bfloat16"}
    short, long = (needed(tmp_path, capsys, length=length, **words) for length in (512, 4 * 8192))
    assert (long - short) * 1e9 == pytest.approx(3 * 8192 * 256_000 * 6, rel=0.02)


def test_a_run_that_shares_no_scores_measures_importance_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, config = with_target(tmp_path, ratio=1.5)
    told = ["plan", str(file), "--cluster", "--teacher-config", str(config)]
    assert main(told) == 0
    assert "importance again" not in capsys.readouterr().out
    assert main([*told, "--set", "cache=Run"]) == 0
    assert "prune measures importance again, because cache: Run shares no scores: " in capsys.readouterr().out
    assert main([*told, "--set", "cache=Run", "-o", "json"]) == 0
    search = json.loads(capsys.readouterr().out)["searches"]["small"]
    assert 0 < search["flopsOfPruneAgain"] < search["flops"]
