"""Which files are a checkpoint's weights is decided once, as transformers decides it; whatever else is named is told by
what it is."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from preparing import Preparation, rows
from tiny import texts

from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.layout import INDEX, SINGLE, weight_files
from compression_pipeline.sources import checkpoint

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"",
    "license.txt": b"",
    "model.py": b"",
    "pytorch_model.bin": b"",
    "consolidated.safetensors": b"",
}


def index(**places: str) -> bytes:
    return json.dumps({"weight_map": places}).encode()


def selected(files: Mapping[str, bytes]) -> list[str]:
    return checkpoint.select(files, files.__getitem__, "x")


TAKEN = sorted(["config.json", "tokenizer.json", "README.md", "license.txt"])


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        ({SINGLE: b""}, [SINGLE]),
        # transformers takes the single file where both are there.
        ({SINGLE: b"", INDEX: index(a="model-1.safetensors")}, [SINGLE]),
        ({SINGLE: b"", "model-00001-of-00002.safetensors": b"", INDEX: b"stale"}, [SINGLE]),
        ({INDEX: index(a="hf_1.safetensors", b="hf_2.safetensors"), "hf_1.safetensors": b"", "hf_2.safetensors": b"",
          "model-00001-of-00001.safetensors": b""}, ["hf_1.safetensors", "hf_2.safetensors", INDEX]),
        ({INDEX: index(a="shards/1.safetensors"), "shards/1.safetensors": b""}, [INDEX, "shards/1.safetensors"]),
    ],
)  # fmt: skip
def test_what_makes_a_checkpoint(files: dict[str, bytes], weights: list[str]) -> None:
    assert selected({**FILES, **files}) == sorted([*weights, *TAKEN])


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"pytorch_model.bin": b""}, "only as pickle (pytorch_model.bin)"),
        ({"adapter_config.json": b'{"base_model_name_or_path": "owner/base"}', "adapter_model.safetensors": b""},
         "an adapter (LoRA) of owner/base, not a model; merge"),
        ({"a-Q4_K_M.gguf": b"", "config.json": b"{}"}, "only as GGUF (a-Q4_K_M.gguf)"),
        ({"params.json": b"{}", "consolidated.00.pth": b"", "a": b""}, "the format of the model's makers"),
        ({"model.nemo": b""}, "a NeMo checkpoint"),
        ({"context/model.yaml": b"", "weights/common.pt": b""}, "a NeMo checkpoint"),
        ({"latest_checkpointed_iteration.txt": b"", "iter_0000100/mp_rank_00/model_optim_rng.pt": b""}, "a Megatron "),
        ({"iter_0000100/common.pt": b"", "iter_0000100/__0_0.distcp": b""}, "a Megatron "),
        ({"global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt": b"", "zero_to_fp32.py": b""}, "DeepSpeed"),
        ({"__0_0.distcp": b"", ".metadata": b""}, "a distributed checkpoint of torch"),
        ({"tf_model.h5": b""}, "only in another format (tf_model.h5)"),
        ({"model.fp16.safetensors": b""}, "only as a variant (model.fp16.safetensors)"),
        ({"model-00001-of-00002.safetensors": b""}, f"{INDEX} is missing"),
        ({"weights.safetensors": b""}, "rename the file"),
        ({"refs/main": b"1", "snapshots/0a/config.json": b"", f"snapshots/0a/{SINGLE}": b""},
         "a folder of a Hub cache; name the snapshot in it (snapshots/0a)"),
        ({"models--a--b/snapshots/0a/config.json": b"", f"models--a--b/snapshots/0a/{INDEX}": b""},
         "name the snapshot in it (models--a--b/snapshots/0a)"),
        ({"final/config.json": b"", f"final/{SINGLE}": b""}, "name the one meant (final)"),
        ({}, "has no safetensors weights"),
        ({INDEX: index(a="1.safetensors")}, "1.safetensors is missing"),
        ({INDEX: index(a="../1.safetensors")}, "lies outside of the folder"),
        ({INDEX: index(a="/1.safetensors")}, "lies outside of the folder"),
        ({INDEX: b"{}"}, "has no weight_map"),
        ({INDEX: b"version https://git-lfs.github.com/spec/v1\n"}, "Git LFS pointer"),
    ],
)  # fmt: skip
def test_what_is_none_is_told_by_what_it_is(files: dict[str, bytes], said: str) -> None:
    with pytest.raises(UserError) as caught:
        weight_files(files, files.__getitem__, "teacher.model: file:x")
    assert said in str(caught.value)
    assert str(caught.value).startswith("teacher.model: file:x")
    assert "download" not in str(caught.value)


def teacher(preparation: Preparation, source: Path, name: str) -> Path:
    """A copy of a teacher, to be changed."""
    folder = preparation.folder / name
    folder.mkdir(parents=True)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def sharded(folder: Path, *names: str) -> None:
    """The single file of a checkpoint as shards of these names."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    places = {name: names[number % len(names)] for number, name in enumerate(sorted(tensors))}
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        save_file({key: tensors[key] for key, file in places.items() if file == name}, folder / name)
    (folder / INDEX).write_bytes(index(**places))


@pytest.mark.parametrize("scheme", ["file:", "pvc://claim/"])
def test_shards_of_any_name_come_along(preparation: Preparation, tiny_teacher: Path, scheme: str) -> None:
    preparation.write("a.jsonl", *rows(*texts()[:6]))
    names = ["hf_model_0001_0.safetensors", "more/0002.safetensors"]
    folder = teacher(preparation, tiny_teacher, "volume/teacher")
    sharded(folder, *names)
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"stale")
    where = {"file:": "file:volume/teacher", "pvc://claim/": "pvc://claim/teacher"}[scheme]
    model = preparation.artifact(preparation.run("file:a.jsonl", teacher={"model": where})).model
    found = {path.relative_to(model).as_posix() for path in model.rglob("*.safetensors*")}
    assert found == {INDEX, *names}


def test_a_folder_of_a_checkpoint(preparation: Preparation, tiny_teacher: Path) -> None:
    preparation.write("a.jsonl", *rows(*texts()[:6]))
    folder = teacher(preparation, tiny_teacher, "teacher")
    (folder / "original").mkdir()
    for wrong in ("file:teacher/original", f"file:teacher/{SINGLE}"):
        with pytest.raises(UserError, match=rf"{wrong} .* {folder}$"):
            preparation.run("file:a.jsonl", teacher={"model": wrong})
