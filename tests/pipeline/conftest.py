"""What the pipeline's tests share."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # importing it takes seconds that only the engine's tests should pay
    from hub_server import Hub
    from launching import Launch
    from preparing import Preparation

    from compression_pipeline.artifact import Store
    from compression_pipeline.megatron.runtime import Runtime


def pytest_configure() -> None:
    """The tests run on the CPU, on a machine with a GPU too: what they pin down (gloo, bit-exactness) is the CPU's."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def engine() -> "Iterator[Runtime]":
    """Megatron set up for one rank and one thread on this machine, for the whole test session."""
    from engine_models import finetune_job

    from compression_pipeline.megatron.runtime import runtime

    with runtime(finetune_job()) as current:
        yield current


@pytest.fixture
def shared_engine(engine: "Runtime", monkeypatch: pytest.MonkeyPatch) -> None:
    """The phases find the process group that the tests share: there is one in a process."""
    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: nullcontext(engine))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> "Store":
    """A store with text that can be learnt and a random teacher: copy it, never write into it."""
    from stores import make_store

    return make_store(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def store(inputs: "Store", tmp_path: Path) -> "Store":
    """A store of the test's own, with `inputs`."""
    from finetuning import copy_of

    return copy_of(inputs, tmp_path / "store")


@pytest.fixture(scope="session")
def uninterrupted(inputs: "Store", tmp_path_factory: pytest.TempPathFactory, engine: "Runtime") -> "Store":
    """The store after a teacher correction (`finetuning.SETTINGS`) that nothing disturbed: only to be read."""
    from finetuning import copy_of, correct, job_in
    from stores import context

    reference = copy_of(inputs, tmp_path_factory.mktemp("uninterrupted") / "store")
    correct(job_in(reference), context(reference)[0], engine)
    return reference


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama checkpoint with a real tokenizer; copy it before you change it."""
    from tiny import write_checkpoint

    folder = tmp_path_factory.mktemp("tiny-teacher")
    write_checkpoint(folder)
    return folder


@pytest.fixture
def launch(tmp_path: Path) -> "Iterator[Launch]":
    """Starts real launchers that share one store; ends them with the test."""
    from launching import Launch

    launcher = Launch(tmp_path)
    yield launcher
    launcher.close()


@pytest.fixture
def preparation(tmp_path: Path, tiny_teacher: Path) -> "Preparation":
    """Prepare jobs on a store of their own, with the tiny teacher."""
    from preparing import Preparation

    return Preparation(tmp_path, f"file:{tiny_teacher}")


@pytest.fixture
def hub(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Hub]":
    """A Hub with the tiny teacher, as repositories are: with pickled weights, code and pictures beside it."""
    from hub_server import Hub, Repository, serving

    files = {path.name: path.read_bytes() for path in tiny_teacher.iterdir()}
    files |= {
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"raise SystemExit",
        "README.md": b"# Model",
        "LICENSE": b"L",
    }
    files |= {"original/model.safetensors": b"?", "onnx/model.onnx": b"?"}
    found = Hub({"models/owner/model": Repository(files)})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for what in ("ETAG", "DOWNLOAD"):  # the library's 10 s would tell of a machine that stands still
        monkeypatch.setattr(f"huggingface_hub.constants.HF_HUB_{what}_TIMEOUT", 240)
    with serving(found):
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found
