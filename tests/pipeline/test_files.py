"""A damaged or foreign checkpoint is told from a whole one by its files alone, in one sentence that names the file."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import VOCABULARY, edit_json, save_model, save_tokenizer

from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.files import inspect


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A sharded checkpoint with a tokenizer."""
    folder = save_model(tmp_path / "model", max_shard_size="100KB")
    save_tokenizer(folder)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        inspect(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(folder) in sentence
    return sentence


def test_a_whole_checkpoint(checkpoint: Path) -> None:
    files = inspect(checkpoint)
    assert files.architecture.parameters == 93264
    assert len(files.weight_files) > 3
    assert files.tensors["model.norm.weight"].shape == (48,)
    assert files.tensors["model.norm.weight"].dtype == "F32"


def test_inspection_needs_no_torch(checkpoint: Path) -> None:
    code = (
        "import sys, pathlib; from compression_pipeline.huggingface.files import inspect;"
        "inspect(pathlib.Path(sys.argv[1])); assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(checkpoint)], check=True)


@pytest.mark.parametrize(("content", "said"), [("{", "is not valid JSON"), ("[]", "is not a JSON object")])
def test_a_generation_config_that_is_none_is_found_at_once(checkpoint: Path, content: str, said: str) -> None:
    (checkpoint / "generation_config.json").write_text(content)
    assert f"generation_config.json {said}" in refused(checkpoint)


def test_no_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert "config.json is missing" in refused(checkpoint)


def test_config_is_not_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    assert "is not valid JSON" in refused(checkpoint)
    (checkpoint / "config.json").write_text("[]")
    assert "is not a JSON object" in refused(checkpoint)


def test_unknown_architecture(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", architectures=["MambaForCausalLM"])
    assert "architecture MambaForCausalLM is not supported; use a model of one of these: Llama" in refused(checkpoint)


def test_pickle_only(checkpoint: Path) -> None:
    for path in checkpoint.glob("model*"):
        path.unlink()
    assert "neither model.safetensors nor" in refused(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    assert "only as pickle (pytorch_model.bin)" in refused(checkpoint)


def test_missing_shard(checkpoint: Path) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[1]
    shard.unlink()
    assert refused(checkpoint).startswith(f"{checkpoint}: {shard.name} is missing")


def test_missing_index(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors.index.json").unlink()
    assert "index.json is missing" in refused(checkpoint)


def test_broken_index(checkpoint: Path) -> None:
    index = checkpoint / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    index.write_text("{}")
    assert "has no weight_map" in refused(checkpoint)
    index.write_text(json.dumps({"weight_map": {**whole["weight_map"], "lm_head.weight": "../secret"}}))
    assert "lies outside of the folder" in refused(checkpoint)
    other = whole["weight_map"]["model.norm.weight"]
    name = next(name for name, file in whole["weight_map"].items() if file != other)
    index.write_text(json.dumps({"weight_map": {**whole["weight_map"], name: other}}))
    assert f"lacks tensor {name}" in refused(checkpoint)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_shard(checkpoint: Path, keep: int) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:keep])
    sentence = refused(checkpoint)
    assert sentence.startswith(f"{shard} is ")
    assert "truncated" in sentence
    assert f"{len(content[:keep])} " in sentence
    if keep < 0:
        assert f"of {len(content)} bytes" in sentence


def test_not_safetensors(checkpoint: Path) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    shard.write_bytes(b"<!DOCTYPE html><html>")
    assert "is not a safetensors file (impossible header)" in refused(checkpoint)
    for header in (b"nonsense", b'{"a": {"dtype": "F32"}}', b"[]"):
        shard.write_bytes(struct.pack("<Q", len(header)) + header)
        assert "is not a safetensors file (unreadable header)" in refused(checkpoint)


def test_a_tensor_whose_length_is_not_its_shapes(checkpoint: Path) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [48], "data_offsets": [0, 4]}}).encode()
    shard.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    assert "has another length than its shape" in refused(checkpoint)


def test_shapes_against_the_config(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", intermediate_size=100)
    assert "mlp.gate_proj.weight has shape [96, 48], config.json asks for [100, 48]" in refused(checkpoint)
    edit_json(checkpoint / "config.json", intermediate_size=96, num_hidden_layers=4)
    assert "tensor model.layers.3.input_layernorm.weight is missing" in refused(checkpoint)
    edit_json(checkpoint / "config.json", num_hidden_layers=2)
    assert "tensor model.layers.2." in refused(checkpoint)
    edit_json(checkpoint / "config.json", num_hidden_layers=3, vocab_size=300)
    assert f"vocab_size is 300, but the embedding (model.embed_tokens.weight) has {VOCABULARY}" in refused(checkpoint)


def test_weights_of_another_type(checkpoint: Path) -> None:
    shard = next(path for path in sorted(checkpoint.glob("*.safetensors")) if b"model.norm.weight" in path.read_bytes())
    shard.write_bytes(shard.read_bytes().replace(b'"F32"', b'"I32"'))
    assert "is of type I32" in refused(checkpoint)


def test_redundant_tensors_of_published_checkpoints(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model(tmp_path / "model", "llama31")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert inspect(folder).architecture.tied_embeddings
