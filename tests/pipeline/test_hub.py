"""prepare from a Hub: the client as it is, against a server of ours on loopback."""

import json
import shutil
from pathlib import Path

import pytest
from hub_server import Hub, Repository, commit
from preparing import FINGERPRINT, Preparation, rows
from tests.support.waiting import until
from tiny import texts

from compression_pipeline import space
from compression_pipeline.artifact import Store
from compression_pipeline.errors import PhaseError, TransientError, UserError
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.sources import hub as hub_source

MODEL = {"model": "hf://owner/model"}


def lines(*content: str) -> bytes:
    return "".join(f"{row}\n" for row in rows(*content)).encode()


@pytest.fixture
def preparation(tmp_path: Path, hub: Hub) -> Preparation:
    found = Preparation(tmp_path, "hf://owner/model")
    found.write("corpus.jsonl", *rows(*texts()[:12]))
    return found


def fault(preparation: Preparation, source: str, kind: type[PhaseError], **told: object) -> str:
    with pytest.raises(kind) as raised:
        preparation.run(source, **told)
    assert preparation.leftovers() == []
    assert "\n" not in str(raised.value)
    return str(raised.value)


def dataset(hub: Hub, files: dict[str, bytes], **told: object) -> None:
    hub.repositories["datasets/owner/data"] = Repository(files, **told)  # pyright: ignore[reportArgumentType] (tests)


# -- the teacher ------------------------------------------------------------------------------------------------------


def test_a_teacher_from_the_hub(preparation: Preparation, hub: Hub, tiny_teacher: Path) -> None:
    result = preparation.run("file:corpus.jsonl")
    model = preparation.artifact(result).model
    assert {path.name for path in model.iterdir()} == {path.name for path in tiny_teacher.iterdir()} | {
        "LICENSE",
        "README.md",
    }
    assert read_architecture(model) == read_architecture(tiny_teacher)
    for path in (path for path in tiny_teacher.iterdir() if path.name != "config.json"):
        assert (model / path.name).read_bytes() == path.read_bytes()
    assert result.resolved_teacher.revision == commit(hub.repositories["models/owner/model"].files)
    assert not {name for name, _ in hub.downloads()} & {
        "pytorch_model.bin",
        "modeling.py",
        "original/model.safetensors",
    }

    before = len(hub.downloads())
    again = preparation.run("file:corpus.jsonl")
    assert (again.key, again.cached) == (result.key, True)
    assert len(hub.downloads()) == before  # the Hub tells digests, nothing is fetched to learn them


def test_a_tokenizer_that_is_written_anew_leaves_the_download_alone(preparation: Preparation, hub: Hub) -> None:
    files = hub.repositories["models/owner/model"].files
    files["tokenizer_config.json"] = b'{"tokenizer_class": "TokenizersBackend", "eos_token": "<|endoftext|>"}'
    files["additional_chat_templates/rag.jinja"] = b"{{ messages }}"
    artifact = preparation.artifact(preparation.run("file:corpus.jsonl"))
    assert "PreTrainedTokenizerFast" in (artifact.model / "tokenizer_config.json").read_text()
    assert (artifact.model / "additional_chat_templates/rag.jinja").read_bytes() == b"{{ messages }}"
    (snapshot,) = (preparation.store / "hub").glob("models--*/snapshots/*")
    assert (snapshot / "tokenizer_config.json").read_bytes() == files["tokenizer_config.json"]
    (warning,) = preparation.events("warning")
    assert warning["message"].startswith(
        "spec.teacher.model: hf://owner/model/tokenizer_config.json: plain transformers"
    )
    assert str(preparation.store) not in warning["message"]


def test_a_revision(preparation: Preparation, hub: Hub) -> None:
    repository = hub.repositories["models/owner/model"]
    repository.branches["v2"] = repository.files | {"generation_config.json": b"{}"}
    result = preparation.run("file:corpus.jsonl", teacher=MODEL | {"revision": "v2"})
    assert (preparation.artifact(result).model / "generation_config.json").read_bytes() == b"{}"
    assert result.resolved_teacher.revision == commit(repository.branches["v2"])
    said = fault(preparation, "file:corpus.jsonl", UserError, teacher=MODEL | {"revision": "v3"})
    assert said == "spec.teacher.model: hf://owner/model has no revision v3; correct spec.teacher.revision"


def test_a_connection_dropped_in_mid_file_is_resumed(
    preparation: Preparation, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client writes whole pieces only, of 10 MB: more than this model has.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.drops = 2
    preparation.run("file:corpus.jsonl")
    ranges = [span for name, span in hub.downloads() if name == "model.safetensors"]
    assert len([span for span in ranges if span]) >= 1
    assert all(int(span.split("=")[1].rstrip("-")) > 100_000 for span in ranges if span)  # went on, not anew
    assert hub.drops == 0


def test_a_download_that_ends_while_progress_is_told_breaks_none_off(
    preparation: Preparation, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has another name by then, and of all downloads it was said that the Hub cannot be reached."""
    monkeypatch.setattr("compression_pipeline.sources.hub.PROGRESS_SECONDS", 0.0)
    hub.before_large = lambda: until(
        lambda: bool(preparation.events("progress")), "progress of the download", seconds=60
    )
    gone = preparation.store / "hub" / "models--owner--model" / "blobs" / "gone.incomplete"
    gone.parent.mkdir(parents=True)
    gone.symlink_to("nowhere")
    preparation.run("file:corpus.jsonl")
    assert any("download" in str(event.get("doing")) for event in preparation.events("progress"))


def test_what_does_not_fit_is_not_downloaded(preparation: Preparation, hub: Hub) -> None:
    hub.announced["model.safetensors"] = 10**18
    said = fault(preparation, "file:corpus.jsonl", UserError)
    assert said.startswith(f"the store {preparation.store} has ")
    assert "preparing hf://owner/model and file:corpus.jsonl needs about 1000000.0 TB; free some space" in said
    assert hub.downloads() == []

    hub.announced.clear()
    dataset(hub, {"train.jsonl": lines(*texts()[:12])})
    hub.announced["train.jsonl"] = 10**18
    assert "hf://owner/data needs about 2000000.0 TB" in fault(preparation, "hf://owner/data", UserError)  # tokens
    assert hub.downloads() == []


def test_what_was_downloaded_before_needs_no_space_again(
    preparation: Preparation, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []
    monkeypatch.setattr(space, "require", lambda store, number, purpose: needed.append(number))
    dataset(hub, {"train.jsonl": lines(*texts()[:12])})
    text = len(lines(*texts()[:12]))
    for _ in range(2):
        shutil.rmtree(preparation.store / "artifacts", ignore_errors=True)
        preparation.run("hf://owner/data")
    assert needed[1] == text
    model = hub.repositories["models/owner/model"].files
    assert needed[0] == 2 * text + sum(len(model[name]) for name, _ in hub.downloads() if name in model)


def test_a_damaged_download_is_noticed(preparation: Preparation, hub: Hub) -> None:
    hub.damage = True
    assert "arrived damaged twice; try again" in fault(preparation, "file:corpus.jsonl", TransientError)
    hub.damage = False
    assert preparation.run("file:corpus.jsonl").cached is False


@pytest.mark.parametrize("token", [None, "hf_good"])
def test_a_missing_model(preparation: Preparation, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    """The Hub answers 401 to strangers and 404 to those it knows."""
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    said = fault(preparation, "file:corpus.jsonl", UserError, teacher={"model": "hf://owner/nothing"})
    assert said.startswith(
        f"spec.teacher.model: hf://owner/nothing was {'not found (404)' if token else 'refused (401)'}"
    )
    assert "there is no such model" in said
    assert ("the token in HF_TOKEN" if token else "no token (set secretRef)") in said


def test_a_private_model_needs_the_token_of_the_environment_and_no_other(
    preparation: Preparation, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.repositories["models/owner/model"].private = True
    (tmp_path / "token").write_text(hub.token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "or it is private" in fault(preparation, "file:corpus.jsonl", UserError)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    said = fault(preparation, "file:corpus.jsonl", UserError)
    assert "was refused (401)" in said
    assert "hf_bad" not in said
    monkeypatch.setenv("HF_TOKEN", hub.token)
    result = preparation.run("file:corpus.jsonl")
    assert not [path for path in preparation.artifact(result).path.rglob("*.json") if hub.token in path.read_text()]


def test_a_gated_model(preparation: Preparation, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["models/owner/model"].gated = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    said = fault(preparation, "file:corpus.jsonl", UserError)
    assert said.startswith("spec.teacher.model: hf://owner/model is gated (403): ask for access at ")
    assert f"{hub.url}/owner/model" in said


def test_passing_faults_are_transient(
    preparation: Preparation, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for status in (500, 503, 429):
        hub.failures = [status]
        assert f"answered {status}; try again later" in fault(preparation, "file:corpus.jsonl", TransientError)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    said = fault(preparation, "file:corpus.jsonl", TransientError)
    assert said == (
        "spec.teacher.model: hf://owner/model: 127.0.0.1:9 can't be reached: "
        "it refuses the connection (is HF_ENDPOINT right?)"
    )


def test_a_name_that_cannot_be_resolved_is_said_plainly(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")  # a name that never exists (RFC 2606)
    monkeypatch.setenv("NO_PROXY", "*")
    said = fault(preparation, "file:corpus.jsonl", TransientError)
    assert said == (
        "spec.teacher.model: hf://owner/model: hub.invalid can't be reached: "
        "its name cannot be resolved (is the network up?)"
    )
    assert "MaxRetryError" in capfd.readouterr().err


def test_a_pickled_model_is_refused_before_it_is_downloaded(preparation: Preparation, hub: Hub) -> None:
    del hub.repositories["models/owner/model"].files["model.safetensors"]
    assert "only as pickle (pytorch_model.bin)" in fault(preparation, "file:corpus.jsonl", UserError)
    assert hub.downloads() == []


def test_shards_that_are_missing_are_named(preparation: Preparation, hub: Hub) -> None:
    files = hub.repositories["models/owner/model"].files
    files["model-00001-of-00002.safetensors"] = files.pop("model.safetensors")
    names = {"lm_head.weight": "model-00002-of-00002.safetensors"}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    said = fault(preparation, "file:corpus.jsonl", UserError)
    assert "model-00002-of-00002.safetensors" in said
    assert "hf://owner/model" in said
    assert str(preparation.store) not in said


# -- the dataset ------------------------------------------------------------------------------------------------------


def test_splits_by_names(preparation: Preparation, hub: Hub) -> None:
    dataset(hub, {
        "data/train-00000-of-00002.jsonl": lines(*texts()[:5]),
        "data/train-00001-of-00002.jsonl": lines(*texts()[5:9]),
        "data/validation-00000-of-00001-869c898b519ad725.jsonl": lines(*texts()[9:11]),
        "data/test-00000-of-00001.jsonl": lines("never"),
        ".gitattributes": b"",
    })  # fmt: skip
    result = preparation.run("hf://owner/data")
    assert result.documents == 11
    assert result.resolved_texts[0].revision == commit(hub.repositories["datasets/owner/data"].files)
    assert "data/test-00000-of-00001.jsonl" not in {name for name, _ in hub.downloads()}


README = b"""---
license: mit
configs:
- config_name: small
  data_files:
  - split: train
    path: small/part-*
  - split: validation
    path: [small/check.jsonl]
- config_name: large
  data_files: large/*.jsonl
---
# Data
"""


def test_configurations_by_readme(preparation: Preparation, hub: Hub) -> None:
    dataset(hub, {
        "README.md": README,
        "small/part-1.jsonl": lines(*texts()[:4]),
        "small/part-2.jsonl": lines(*texts()[4:8]),
        "small/check.jsonl": lines(*texts()[8:10]),
        "large/a.jsonl": lines(*texts()[:30]),
    })  # fmt: skip
    assert preparation.run("hf://owner/data", config="small").documents == 10
    assert preparation.run("hf://owner/data", config="large").documents == 30
    said = fault(preparation, "hf://owner/data", UserError)
    assert "has several configurations; set dataset.config to one of small, large" in said
    said = fault(preparation, "hf://owner/data", UserError, config="huge")
    assert "has no configuration huge; set dataset.config to one of small, large" in said
    said = fault(preparation, "hf://owner/data", UserError, config="large", validationSplit="check")
    assert "has no split check; set dataset.validationSplit to one of its splits: train" in said


def test_a_readme_tells_of_splits_beside_one_that_is_not_asked_for_and_cannot_be_read(
    preparation: Preparation, hub: Hub
) -> None:
    told = b"---\nconfigs:\n- data_files: {train: a.jsonl, validation: b.jsonl, test: c.csv}\n---\n"
    dataset(hub, {
        "README.md": told,
        "a.jsonl": lines(*texts()[:4]),
        "b.jsonl": lines(*texts()[4:6]),
        "c.csv": b"text\nnever\n",
        "other.jsonl": lines("never"),
    })  # fmt: skip
    assert preparation.run("hf://owner/data").documents == 6
    assert not {"c.csv", "other.jsonl"} & {name for name, _ in hub.downloads()}


def test_the_hubs_own_parquet_files_of_a_dataset_of_another_layout(preparation: Preparation, hub: Hub) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    def parquet(content: list[str]) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": content}), buffer)
        return buffer.getvalue()

    converted = {
        "plain/train/0000.parquet": parquet(texts()[:6]),
        "plain/partial-validation/0000.parquet": parquet(texts()[6:9]),
        "other/train/0000.parquet": parquet(["never"]),
    }
    original = {"data.py": b"raise SystemExit", "train.jsonl": b"{}", "train.zip": b"PK"}
    dataset(hub, original, branches={"refs/convert/parquet": converted})
    result = preparation.run("hf://owner/data", config="plain")
    assert result.documents == 9
    assert result.resolved_texts[0].revision == commit(converted)
    assert "data.py" not in {name for name, _ in hub.downloads()}
    preparation.run("hf://owner/data", config="plain", revision=commit(original))
    [warning] = [one["message"] for one in preparation.events("warning") if "pin" in one["message"]]
    assert "dataset.revision does not pin them" in warning
    record = Store(preparation.store).published(FINGERPRINT)
    assert record is not None and record.asked[-1].stands()
    dataset(hub, {"train.zip": b"PK", "README.md": b"# Zipped"})
    said = fault(preparation, "hf://owner/data", UserError)
    assert "has no files of a supported type (it has .zip)" in said


def test_faults_of_a_dataset(preparation: Preparation, hub: Hub) -> None:
    assert "there is no such dataset" in fault(preparation, "hf://owner/nothing", UserError)
    dataset(hub, {"train.jsonl": lines(*texts()[:5]) + b"{\n"})
    assert "hf://owner/data/train.jsonl:6: is not JSON" in fault(preparation, "hf://owner/data", UserError)
    dataset(hub, {"train.jsonl": b""})
    assert "hf://owner/data is empty" in fault(preparation, "hf://owner/data", UserError)


def test_wikitext_by_its_name(preparation: Preparation, hub: Hub) -> None:
    content = lines(" = One = \n", " text \n", "", " = Two = \n", " text \n", " = = Part = = \n")
    hub.repositories["datasets/Salesforce/wikitext"] = Repository({"wikitext-2-v1/train.jsonl": content})
    assert preparation.run("hf://Salesforce/wikitext", config="wikitext-2-v1").documents == 2


def test_signatures_of_links_stay_out_of_messages() -> None:
    why = "Max retries exceeded with url: /blob?X-Signature=w0rd&Key=k1 (Caused by ReadTimeout('is it up?'))"
    said = hub_source._line(ConnectionError(why))
    assert said == "Max retries exceeded with url: /blob?... (Caused by ReadTimeout('is it up?'))"
