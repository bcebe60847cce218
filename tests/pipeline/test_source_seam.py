"""The seam for sources: kinds that this file alone knows go from a manifest to pods, processes and an artifact."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar

import pytest
from manifests import a_run, judged
from preparing import Preparation, rows
from tiny import texts

from compression_operator.api.rules import World
from compression_operator.backends.pods.platform_defaults import JobDefaults
from compression_operator.backends.pytorchjob.manifest import pytorch_job
from compression_operator.cli.inspect import with_placeholders
from compression_operator.core.plan import plan
from compression_operator.local import machine, store_gc
from compression_pipeline.artifact import Store
from compression_pipeline.config import DatasetConfig, Phase, PrepareJob
from compression_pipeline.config.schemes import SCHEMES, SourceScheme
from compression_pipeline.redaction import Redactor
from compression_pipeline.sources import Place, SourceFile, Splits
from compression_pipeline.store.published import Asked

SERVED: dict[str, dict[str, bytes]] = {}
"""What the server has: file -> content, by source."""


class MemScheme(SourceScheme):
    """Files that a server keeps in its memory."""

    prefix: ClassVar = "mem://"
    form: ClassVar = "mem://name"
    pattern: ClassVar = "mem://[a-z]+"
    implementation: ClassVar = f"{__name__}:MemSource"
    downloads: ClassVar = True
    cache: ClassVar = "mem"
    secrets: ClassVar = {"MEM_WORD": "password"}
    settings: ClassVar = ("MEM_SERVER",)
    offline: ClassVar = {"MEM_OFFLINE": "yes"}

    def address(self, environment: Mapping[str, str]) -> str:
        return environment.get("MEM_SERVER", "mem.example")

    def root(self, source: str) -> str:
        return source

    def volume_claim(self, source: str) -> str:
        return f"spool-{self.without_prefix(source)}"


class MemSource:
    """What fetches them."""

    private = True
    revision = None

    def __init__(self, place: Place) -> None:
        self._place = place
        self._content = SERVED[place.source]
        self._folder = place.download("model" if place.field == "spec.teacher.model" else "dataset")

    def model_files(self) -> tuple[SourceFile, ...]:
        return tuple(
            SourceFile(name, len(content), hashlib.sha256(content).hexdigest())
            for name, content in sorted(self._content.items())
        )

    def text_files(self, dataset: DatasetConfig) -> Splits:
        return Splits(self.model_files(), ())

    def missing_bytes(self, files: Sequence[SourceFile]) -> int:
        return sum(file.size for file in files)

    def fetch(self, files: Sequence[SourceFile]) -> list[Path]:
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            (self._folder / file.name).write_bytes(self._content[file.name])
        return [self._folder / file.name for file in files]

    def open(self, path: Path) -> BufferedReader:
        return path.open("rb")

    def name_of(self, file: SourceFile) -> str:
        return f"{self._place.source}/{file.name}"

    def watched(self) -> None:
        return

    def asked(self) -> Asked:
        return Asked(scheme=MemScheme.prefix, endpoint="mem.example", revision=None, commit=None)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, MemScheme.prefix, MemScheme())


def from_memory(**dataset: Any) -> dict[str, Any]:
    """A spec with a teacher from memory."""
    return {
        "teacher": {"model": "mem://teacher", "secretRef": {"name": "opener", "key": "token"}},
        "dataset": {"source": "hf://owner/text", "sequenceLength": 8, **dataset},
        "storage": {"persistentVolumeClaim": {"claimName": "store"}},
    }


def test_a_manifest_may_name_it_in_both_worlds() -> None:
    for world in World:
        assert a_run(world, **from_memory()).spec.teacher.model == "mem://teacher"
        [fault] = judged(world, **from_memory(source="mem://UPPER"))
        assert "mem://name" in str(fault), "the sentence names it among the forms"
        [fault] = judged(world, **from_memory(source="mem://text", revision="main"))
        assert "hf:// sources only" in str(fault)


def test_pods_get_its_claim_and_its_key_of_the_secret() -> None:
    run = a_run(World.CLUSTER, **from_memory())
    planned = with_placeholders(plan(run.spec))
    seen: dict[Phase, dict[str, Any]] = {}
    for step in planned.steps:
        job = planned.job(step, run="demo", attempt=1)
        body = pytorch_job(run, job, image="pipeline:1", defaults=JobDefaults())
        seen[job.phase] = body["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    env = {
        phase: {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod["containers"][0]["env"]}
        for phase, pod in seen.items()
    }
    prepare, others = env.pop(Phase.PREPARE), list(env.values())
    assert prepare["MEM_WORD"] == {"secretKeyRef": {"name": "opener", "key": "password"}}
    assert prepare["HF_TOKEN"] == {"secretKeyRef": {"name": "opener", "key": "token"}}
    assert "MEM_OFFLINE" not in prepare
    assert others and all(one["MEM_OFFLINE"] == "yes" and "MEM_WORD" not in one for one in others)
    config = json.loads(prepare["COMPRESSION_CONFIG"])
    assert config["sourceRoots"] == {"mem://teacher": "/sources/spool-teacher"}
    claims = [volume.get("persistentVolumeClaim", {}) for volume in seen[Phase.PREPARE]["volumes"]]
    assert {"claimName": "spool-teacher", "readOnly": True} in claims


def test_a_secret_needs_no_key_for_a_kind_that_a_run_does_not_use() -> None:
    run = a_run(World.CLUSTER, **from_memory())
    other = run.spec.teacher.model_copy(update={"model": "hf://owner/teacher"})
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"teacher": other})})
    planned = plan(run.spec)
    job = planned.job(planned.steps[0], run="demo", attempt=1)
    assert job.phase is Phase.PREPARE
    body = json.dumps(pytorch_job(run, job, image="pipeline:1", defaults=JobDefaults()))
    assert "HF_TOKEN" in body and "MEM_WORD" not in body


def test_processes_get_its_variables_in_prepare_alone(tmp_path: Path) -> None:
    own = {"MEM_WORD": "opensesame", "MEM_SERVER": "here", "OTHER": "x"}
    found = {
        phase: machine.environment(own, phase, config="{}", termination=tmp_path / "t", gpus=())
        for phase in (Phase.PREPARE, Phase.DISTILL)
    }
    prepare, distill = found[Phase.PREPARE], found[Phase.DISTILL]
    assert prepare["MEM_WORD"] == "opensesame" and prepare["MEM_SERVER"] == "here" and "OTHER" not in prepare
    assert distill["MEM_OFFLINE"] == "yes" and not {"MEM_WORD", "MEM_SERVER"} & set(distill)


def test_its_secret_is_hidden() -> None:
    assert "open" not in Redactor.of({"MEM_WORD": "open!"}).text("the word is open!")


def test_its_downloads_are_kept_as_long_as_a_run_uses_them(tmp_path: Path) -> None:
    used = store_gc.in_use(tmp_path, [a_run(World.LOCAL, **from_memory(source="mem://text"))])
    assert {tmp_path / "mem" / "models--teacher", tmp_path / "mem" / "datasets--text"} <= used


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path) -> dict[str, bytes]:
    """The text `mem://text`, beside a teacher."""
    monkeypatch.setitem(
        SERVED, "mem://teacher", {path.name: path.read_bytes() for path in tiny_teacher.iterdir() if path.is_file()}
    )
    text = {"train.jsonl": "".join(f"{line}\n" for line in rows(*texts()[:40])).encode()}
    monkeypatch.setitem(SERVED, "mem://text", text)
    return text


def test_prepare_fetches_it_and_names_what_it_makes_by_the_content(
    preparation: Preparation, served: dict[str, bytes]
) -> None:
    job = preparation.job("mem://text", teacher={"model": "mem://teacher"})
    assert PrepareJob.model_validate(job.for_image()) == job
    result = preparation.take(job)
    assert result.documents == 40 and not result.cached
    copied = preparation.artifact(result).model / "tokenizer.json"
    assert copied.read_bytes() == SERVED["mem://teacher"]["tokenizer.json"]
    assert (preparation.store / "mem" / "datasets--text" / "train.jsonl").read_bytes() == served["train.jsonl"]
    record = Store(preparation.store).published(job.fingerprint)
    assert record is not None and record.may_stand and not record.stands, "nothing says that it can't move"
    again = preparation.take(job)
    assert again.key == result.key and again.cached
    preparation.write("train.jsonl", *rows(*texts()[:40]))
    assert preparation.run("file:train.jsonl", teacher={"model": "mem://teacher"}).key == result.key
    served["train.jsonl"] += f"{rows('one more')[0]}\n".encode()
    assert preparation.take(job).key != result.key


TABLE_LINE = """
import importlib
from typing import ClassVar
from compression_pipeline import config
from compression_pipeline.config import sources
from compression_pipeline.config.base import Rule
from compression_pipeline.config.schemes import SCHEMES, SourceScheme

class Shelf(SourceScheme):
    prefix: ClassVar = "shelf://"
    form: ClassVar = "shelf://book"
    pattern: ClassVar = "shelf://[a-z]+"
    worlds: ClassVar = frozenset({"cluster"})
    roles: ClassVar = frozenset({"dataset"})
    revisions: ClassVar = True
    secrets: ClassVar = {"SHELF_KEY": None}
    offline: ClassVar = {"SHELF_CLOSED": "1"}
    server: ClassVar = "the shelf"

    def rules(self, path):
        return [Rule.of(path, "is lost", lambda model: getattr(model, path) != "shelf://lost",
                        f"self.{path} != 'shelf://lost'")]

SCHEMES[Shelf.prefix] = Shelf()
importlib.reload(sources)
importlib.reload(config)
"""
ASKED = """
import json
from compression_operator.api.schema import structural_schema
from compression_operator.api.spec import CompressionRunSpec
from compression_operator.api.templates import OUR_VARIABLES

spec = structural_schema(CompressionRunSpec)
dataset, teacher = spec["properties"]["dataset"], spec["properties"]["teacher"]
print(json.dumps({
    "dataset": [rule["rule"] for rule in dataset["x-kubernetes-validations"]],
    "texts": [rule["rule"] for rule in dataset["properties"]["sources"]["items"]["x-kubernetes-validations"]],
    "teacher": [rule["rule"] for rule in teacher["x-kubernetes-validations"]],
    "described": [dataset["properties"]["source"]["description"], teacher["properties"]["model"]["description"]],
    "secret": teacher["properties"]["secretRef"]["description"],
    "reserved": {name: why for name, why in OUR_VARIABLES.items() if name.startswith("SHELF")},
}))
"""


def test_a_line_of_the_table_is_in_the_crd_and_in_what_pod_templates_may_not_set() -> None:
    """Both are made on import, so another process adds the line, and imports after it."""
    run = subprocess.run([sys.executable, "-c", TABLE_LINE + ASKED], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert any("|shelf://[a-z]+)$" in rule for rule in found["dataset"])
    assert any(
        "self.source.startsWith('shelf://')" in rule and "has(self.revision)" in rule for rule in found["dataset"]
    )
    assert "!has(self.source) || (self.source != 'shelf://lost')" in found["dataset"]
    assert "self.source != 'shelf://lost'" in found["texts"], "of several sources each"
    assert not any("shelf://[a-z]+" in rule for rule in found["teacher"]), "it is no source of models"
    assert ["shelf://book" in text for text in found["described"]] == [True, False]
    assert "HF_TOKEN and SHELF_KEY" in found["secret"]
    assert found["reserved"] == {
        "SHELF_KEY": "set teacher.secretRef, which only prepare and tasks receive",
        "SHELF_CLOSED": "the operator sets it, because only prepare and tasks may reach the shelf",
    }
