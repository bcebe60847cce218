"""Tensors that are not what config.json asks for are told by what happened to them, and weights that are no numbers by
their place; no torch."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparing import Preparation, rows
from safetensors.numpy import load_file, save_file
from tiny import texts

from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.files import inspect
from compression_pipeline.huggingface.names import EMBEDDING, OUTPUT
from compression_pipeline.huggingface.values import PIECE, first_not_finite

Tensors = dict[str, Any]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A teacher to be changed."""
    made = tmp_path / "teacher"
    made.mkdir()
    for path in tiny_teacher.iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    return made


def config(folder: Path, **fields: Any) -> None:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | fields))


def change(folder: Path, how: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(how(load_file(path)), path)


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        inspect(folder)
    return str(caught.value)


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def also(**told: tuple[str, Any]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | dict(told.values())


def packed(suffix: str, dtype: Any) -> Callable[[Tensors], Tensors]:
    """Every projection's weight packed, with its scale beside it."""

    def how(tensors: Tensors) -> Tensors:
        names = [name for name in tensors if "proj" in name]
        scales = {name.removesuffix("weight") + suffix: np.ones(1, np.float32) for name in names}
        return tensors | {name: tensors[name].astype(dtype) for name in names} | scales

    return how


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (prefixed("_orig_mod."), "the name that torch.compile or a parallel wrapper gives"),
        (prefixed("module."), "the name that torch.compile or a parallel wrapper gives"),
        (prefixed("module._orig_mod."), "rename it (and all others so) to lm_head.weight"),
        (renamed(".self_attn.", "._fsdp_wrapped_module.self_attn."), "the name that torch.compile or a parallel wrap"),
        (prefixed("model."), "names begin with model. before"),
        (prefixed("base_model.model."), "names begin with base_model.model. before"),
        (
            lambda t: {name.removeprefix("model."): each for name, each in t.items() if name != OUTPUT},
            "AutoModel saves",
        ),
        (without(OUTPUT), "set tie_word_embeddings to true there if the model ties them"),
        (without(EMBEDDING), "without an embedding it is no whole model"),
        (without(UP), f"tensor {UP} is missing"),
        (packed("weight_scale", np.uint8), "is quantized"),
        (packed("weight_scale_inv", np.float32), "is quantized"),
        (packed("weight.absmax", np.uint8), "is quantized"),
        (packed("scales", np.int32), "is quantized"),
        (lambda t: {n.replace("proj.weight", "proj.qweight"): x for n, x in t.items()}, "is quantized"),
        (also(a=("model.layers.0.self_attn.q_proj.lora_A.weight", np.zeros((8, 64), np.float32))), "is an adapter's"),
        (also(a=("score.weight", np.zeros((2, 64), np.float32))), "a head for another task"),
        (also(a=("model.layers.0.self_attn.q_proj.bias", np.zeros(64, np.float32))), "biases there are not supported"),
        (also(a=("vision_tower.a.weight", np.zeros(2, np.float32))), "pictures and sound are not supported"),
        (renamed("embed_tokens", "word_embeddings"), "Megatron's names"),
        (renamed("model.embed_tokens", "tok_embeddings"), "the names of the model's makers"),
        (
            lambda t: t | {OUTPUT: np.zeros((600, 64), np.float32)},
            "has 600 rows, but vocab_size and the embedding have",
        ),
    ],
)
def test_each_trap_has_its_own_sentence(folder: Path, how: Callable[[Tensors], Tensors], said: str) -> None:
    change(folder, how)
    sentence = refused(folder)
    assert said in sentence
    assert "download" not in sentence
    assert sentence.startswith(str(folder))


def test_a_configuration_without_a_size_is_to_blame_and_not_the_weights(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["hidden_size"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json has no hidden_size, and the weights are not of the default size"):
        inspect(folder)


def test_a_tied_head_alone(folder: Path) -> None:
    change(folder, without(EMBEDDING))
    config(folder, tie_word_embeddings=True)
    assert refused(folder).endswith(f"the model ties the two, so rename {OUTPUT} to {EMBEDDING}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "run git lfs pull"),
        (b"{", "is truncated"),
    ],
)
def test_files_that_are_none(folder: Path, content: bytes, said: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert said in refused(folder)


def test_a_file_longer_than_its_tensors(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "is 4 bytes longer than its tensors" in refused(folder)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_every_type_knows_its_numbers(dtype: str) -> None:
    kind = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.float32}[dtype]

    def encoded(*values: float) -> bytes:
        whole = np.array(values, kind)
        return (whole.view(np.uint32) >> 16).astype(np.uint16).tobytes() if dtype == "BF16" else whole.tobytes()

    finite = [0.0, -0.0, 1.5, -65504.0 if dtype == "F16" else -3e38, 6e-8]
    assert first_not_finite(encoded(*finite), dtype) is None
    assert first_not_finite(b"", dtype) is None
    assert first_not_finite(encoded(*finite, float("nan"), float("inf")), dtype) == (5, "nan")
    assert first_not_finite(encoded(1.0, float("-inf"), float("nan")), dtype) == (1, "inf")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_no_number_is_named_before_anything_is_made(
    preparation: Preparation, folder: Path, value: float
) -> None:
    def how(tensors: Tensors) -> Tensors:
        tensors[UP][5, 7] = value
        return tensors

    change(folder, how)
    preparation.write("a.jsonl", *rows(*texts()[:4]))
    with pytest.raises(UserError) as caught:
        preparation.run("file:a.jsonl", teacher={"model": f"file:{folder}"})
    name = "nan" if value != value else "inf"
    said = f"spec.teacher.model: {folder / 'model.safetensors'}: tensor {UP} has {name} at [5, 7]; "
    assert str(caught.value).startswith(said)


def test_the_place_in_a_tensor_of_many_pieces(preparation: Preparation, folder: Path) -> None:
    rows_of_64 = PIECE // 256 + 3
    wide = np.zeros((rows_of_64, 64), np.float32)
    wide[-1, 2] = np.inf
    change(folder, lambda tensors: tensors | {EMBEDDING: wide, OUTPUT: wide})
    config(folder, vocab_size=rows_of_64)
    preparation.write("a.jsonl", *rows(*texts()[:4]))
    with pytest.raises(UserError, match=rf"has inf at \[{rows_of_64 - 1}, 2\]"):
        preparation.run("file:a.jsonl", teacher={"model": f"file:{folder}"})


def test_a_head_that_is_tied_is_the_embedding(preparation: Preparation, folder: Path) -> None:
    config(folder, tie_word_embeddings=True)
    preparation.write("a.jsonl", *rows(*texts()[:6]))
    with pytest.raises(UserError, match="set tie_word_embeddings to false there if"):
        preparation.run("file:a.jsonl", teacher={"model": f"file:{folder}"})
    change(folder, lambda tensors: tensors | {OUTPUT: tensors[EMBEDDING]})
    assert preparation.run("file:a.jsonl", teacher={"model": f"file:{folder}"}).teacher.tied_embeddings


def test_the_teachers_config_is_written_in_one_spelling(preparation: Preparation, folder: Path) -> None:
    config(folder, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    preparation.write("a.jsonl", *rows(*texts()[:6]))
    result = preparation.run("file:a.jsonl", teacher={"model": f"file:{folder}"})
    made = json.loads((preparation.artifact(result).model / "config.json").read_text())
    assert (made["rope_theta"], made["torch_dtype"]) == (500000.0, "float32")
    assert "rope_parameters" not in made


def test_a_header_with_a_gap(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    assert "does not begin where the one before it ends" in refused(folder)
