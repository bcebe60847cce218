"""Every family makes the round trip: Hugging Face -> Megatron -> Hugging Face, equal in weights and in logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import BASE, LLAMA3, MODELS, edit_json, save_model, save_tokenizer
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from compression_pipeline.config import PruneConfig, student_architecture
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface import conversion, writer
from compression_pipeline.huggingface.families import FAMILIES, family_of_config, member
from compression_pipeline.huggingface.files import inspect, read_architecture, read_config
from compression_pipeline.huggingface.names import expected_shapes
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime

WINDOW = {"use_sliding_window": True, "sliding_window": 64}
LINEAR = {"rope_type": "linear", "factor": 2.0}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal in shape, type and every bit."""
    return left.dtype == right.dtype and torch.equal(left.view(torch.uint8), right.view(torch.uint8))


@pytest.fixture(params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", request.param)


def test_round_trip(checkpoint: Path, tmp_path: Path, engine: Runtime) -> None:
    architecture = read_architecture(checkpoint)
    model = build(architecture, engine, sequence_length=64).eval()
    conversion.load_into(model, architecture, checkpoint)

    tokens = torch.randint(0, architecture.vocabulary_size, (2, 48), generator=torch.Generator().manual_seed(3))
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(tokens).logits
        found = model(tokens, torch.arange(48)[None].expand(2, -1), None)
    assert expected.std() > 0.05  # not a comparison of zeros
    assert (found - expected).abs().max() < 1e-4

    back = conversion.to_huggingface(architecture, dict(model.named_parameters()).__getitem__)
    writer.write_checkpoint(back, architecture, tmp_path / "back", template=checkpoint, dtype=torch.float32)
    assert inspect(tmp_path / "back").architecture == architecture
    before, after = weights(checkpoint), weights(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(same(before[name], after[name]) for name in before)
    assert sum(tensor.numel() for tensor in after.values()) == architecture.parameters
    assert AutoConfig.from_pretrained(tmp_path / "back").to_dict() == {
        **AutoConfig.from_pretrained(checkpoint).to_dict(),
        "head_dim": architecture.head_dim,
        "_name_or_path": str(tmp_path / "back"),
    }


def test_bfloat16_survives_megatrons_float32(tmp_path: Path, engine: Runtime) -> None:
    checkpoint = save_model(tmp_path / "model", "qwen2")
    architecture = read_architecture(checkpoint)
    model = build(architecture, engine, sequence_length=64)
    conversion.load_into(model, architecture, checkpoint)
    state = dict(model.named_parameters())
    back = conversion.to_huggingface(architecture, state.__getitem__)
    writer.write_checkpoint(back, architecture, tmp_path / "half", template=checkpoint, dtype=torch.bfloat16)
    assert read_config(tmp_path / "half")["dtype"] == "bfloat16"
    again = build(architecture, engine, sequence_length=64)
    conversion.load_into(again, architecture, tmp_path / "half")
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, state[name].bfloat16().float())


def test_only_the_checkpoint_of_the_same_sizes_is_loaded(tmp_path: Path, engine: Runtime) -> None:
    checkpoint = save_model(tmp_path / "model")
    smaller = student_architecture(read_architecture(checkpoint), PruneConfig(hidden_size=32))
    with pytest.raises(UserError, match="other sizes than expected"):
        conversion.load_into(build(smaller, engine, sequence_length=64), smaller, checkpoint)


@pytest.mark.parametrize("limit", ["1KB", "20KB", "60KB", "100KB", "5GB"])
def test_shards_are_those_of_huggingface_hub(tmp_path: Path, limit: str) -> None:
    checkpoint = save_model(tmp_path / "model")
    architecture = read_architecture(checkpoint)
    state = weights(checkpoint)
    made = tmp_path / "made"
    told = {"template": checkpoint, "dtype": torch.float32}
    writer.write_checkpoint(state.items(), architecture, made, **told, max_shard_size=limit)
    ordered = {name: state[name] for name in expected_shapes(architecture)}
    expected = split_torch_state_dict_into_shards(ordered, max_shard_size=limit)
    assert {path.name for path in (tmp_path / "made").glob("*.safetensors")} == set(expected.filename_to_tensors)
    for file, names in expected.filename_to_tensors.items():
        assert set(load_file(tmp_path / "made" / file)) == set(names)
    if expected.is_sharded:
        index = json.loads((tmp_path / "made" / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == expected.tensor_to_filename
        assert index["metadata"]["total_size"] == expected.metadata["total_size"]
    inspect(tmp_path / "made")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_the_writer_refuses_tensors_of_other_shapes(tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path / "model")
    architecture = read_architecture(checkpoint)
    state = weights(checkpoint)
    good = list(state.items())
    for bad, said in (
        ([(n, t[:-1] if "down_proj" in n else t) for n, t in good], "down_proj"),
        (good[1:], "lacks tensors of model.safetensors"),
    ):
        with pytest.raises(RuntimeError, match=said):
            writer.write_checkpoint(bad, architecture, tmp_path / "made", template=checkpoint, dtype=torch.float32)


def test_what_belongs_to_the_model_comes_along(tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path / "model")
    save_tokenizer(checkpoint)
    (checkpoint / "LICENSE").write_text("terms")
    (checkpoint / "generation_config.json").unlink()
    (checkpoint / "modeling_evil.py").write_text("raise SystemExit")
    writer.copy_companions(checkpoint, checkpoint.parent)
    made = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert made == {"tokenizer.json", "tokenizer_config.json", "LICENSE", "generation_config.json"}
    described = json.loads((tmp_path / "generation_config.json").read_text())
    assert described == {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0}


@pytest.mark.parametrize("kind", MODELS)
def test_a_students_config_is_consistent(tmp_path: Path, kind: str) -> None:
    checkpoint = save_model(tmp_path / "model", kind)
    edit_json(checkpoint / "config.json", dtype=None, torch_dtype="float32", _name_or_path="/home/someone", other=7)
    teacher = read_architecture(checkpoint)
    heads = teacher.attention_heads // teacher.query_groups
    prune = PruneConfig(
        hidden_size=32,
        ffn_hidden_size=64,
        attention_heads=teacher.query_groups * max(1, heads // 2),
        drop_layers=[2],
    )
    student = student_architecture(teacher, prune)
    made = member(student.family).configuration(student, read_config(checkpoint), "bfloat16")
    assert member(student.family).architecture(made) == student
    assert made["head_dim"] == teacher.head_dim
    assert made["torch_dtype"] == "bfloat16"
    assert "dtype" not in made
    assert made["other"] == 7
    assert "_name_or_path" not in made
    (tmp_path / "config.json").write_text(json.dumps(made))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert len(getattr(loaded, "layer_types", None) or [0, 0]) == student.layers
    model = AutoModelForCausalLM.from_config(loaded)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == {
        **expected_shapes(student),
        **({"lm_head.weight": (student.vocabulary_size, 32)} if student.tied_embeddings else {}),
    }


def test_defaults_are_those_of_transformers() -> None:
    for each in FAMILIES:
        config = AutoConfig.for_model(each.model_type)
        for field, value in each.defaults.items():
            found = getattr(config, field)
            # Qwen's configuration clears the window that use_sliding_window turns off.
            assert found == value or (field == "sliding_window" and found is None), (each.model_type, field)


def test_config_of_transformers_5_is_read() -> None:
    fields = {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}
    found = family_of_config(fields, "config.json").architecture(fields)
    assert found.rope_theta == 500000.0
    assert found.rope_scaling == LLAMA3


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("mistral", {"sliding_window": 64}, "sliding_window is 64, shorter than max_position_embeddings"),
        ("mistral", {"sliding_window": ..., "max_position_embeddings": 32768}, "sliding_window is 4096"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, "sliding_window is 64"),
        ("qwen3", {**WINDOW, "layer_types": [*["full_attention"] * 2, "sliding_attention"]}, "sliding_window is 64"),
        ("llama3", {"sliding_window": 64}, "sliding_window is 64"),
        ("llama3", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types has linear_attention"),
        ("llama3", {"rope_scaling": {"factor": 2.0}}, "has a factor"),
        ("llama3", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2', not a number"),
        ("llama3", {"rope_scaling": 8.0}, "rope_scaling is 8.0, not a JSON object"),
        ("llama3", {"rope_parameters": {"rope_theta": 10000.0}}, "given twice .rope_theta says 500000.0 and rope_para"),
        ("llama3", {"rope_parameters": LINEAR, "rope_scaling": {**LINEAR, "factor": 4.0}}, "rope_scaling and rope_p"),
        ("llama3", {"rope_parameters": {"full_attention": LINEAR}}, "differ by type of layer"),
        ("llama3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama3", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ("llama3", {"partial_rotary_factor": True}, "partial_rotary_factor is True"),
        ("nemotron", {"partial_rotary_factor": 0}, "partial_rotary_factor is 0, not a number above 0 and up to 1"),
        ("nemotron", {"rope_parameters": {"partial_rotary_factor": 0.25}, "partial_rotary_factor": 0.5}, "given twice"),
        ("nemotron", {"rope_scaling": LINEAR}, "rope_scaling is set"),
        ("nemotron", {"hidden_act": "silu"}, "hidden_act is silu, only relu2 is supported"),
        ("nemotron", {"norm_eps": "1e-5"}, "norm_eps is wrong"),
        ("llama3", {"quantization": {"bits": 4}}, "quantized"),
        ("llama3", {"hidden_size": "48"}, "hidden_size is wrong"),
        ("llama3", {"rms_norm_eps": "1e-5"}, "rms_norm_eps is wrong"),
        ("llama3", {"model_type": "mistral", "architectures": ["LlamaForCausalLM"]}, "model_type says mistral"),
        ("llama3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "type yarn is not supported"),
        ("llama3", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor"),
        ("llama3", {"attention_bias": True}, "attention_bias is true"),
        ("llama3", {"mlp_bias": True}, "mlp_bias is true"),
        ("llama3", {"hidden_act": "gelu"}, "hidden_act is gelu"),
        ("llama3", {"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        ("llama3", {"num_key_value_heads": 3}, "not a multiple"),
        ("llama3", {"num_hidden_layers": 0}, "layers is wrong"),
    ],
)
def test_what_would_not_round_trip_is_refused(kind: str, fields: dict[str, Any], sentence: str) -> None:
    values = {**BASE, **MODELS[kind], **fields}
    config = {key: value for key, value in values.items() if value is not ...}
    with pytest.raises(UserError, match=sentence) as caught:
        family_of_config(config, "x/config.json").architecture(config, "x/config.json")
    assert str(caught.value).startswith("x/config.json: ")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mistral", {"sliding_window": 128}),
        ("qwen2", {**WINDOW, "max_window_layers": 3}),
        ("qwen2", {**WINDOW, "max_window_layers": 0, "layer_types": ["full_attention"] * 3}),
        ("qwen3", {**WINDOW, "max_window_layers": 28}),
        ("llama3", {"use_sliding_window": False, "sliding_window": 64}),
        ("llama3", {"head_dim": None, "rope_scaling": None, "layer_types": None, "num_key_value_heads": None}),
        ("llama3", {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"partial_rotary_factor": 1.0}}),
        ("llama3", {"rope_scaling": {"rope_type": "default", "rope_theta": 500000.0}}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 64}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 128}),
        ("llama3", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("nemotron", {"partial_rotary_factor": ...}),
        ("nemotron", {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10000.0}}),
    ],
)
def test_what_changes_nothing_is_accepted(kind: str, fields: dict[str, Any]) -> None:
    values = {**BASE, **MODELS[kind], **fields}
    config = {key: value for key, value in values.items() if value is not ...}
    assert family_of_config(config, "config.json").architecture(config).hidden_size == 48


BASES = [
    {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    {"rope_theta": 77.0},
    {"rope_theta": 77.0, "rope_parameters": {"rope_theta": 77.0}},
    {"rope_scaling": {"rope_type": "default", "rope_theta": 77.0}},
    {"rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 77}},
]


# transformers' Nemotron scales no positions.
@pytest.mark.parametrize(
    ("kind", "spelling"),
    [(kind, base) for kind in MODELS for base in BASES if "linear" not in str(base) or "nemotron" not in kind],
)
def test_what_is_written_is_computed_alike_by_transformers(kind: str, spelling: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the spelling, the base and the windows that transformers takes from our config.json are ours."""
    values = {**BASE, **MODELS[kind], "rope_theta": None, "rope_scaling": None, **spelling, "return_dict": False}
    values |= {"attn_implementation": "flash_attention_2", "torch_dtype": "float16"}
    family = family_of_config(values, "x")
    architecture = family.architecture(values, "x")
    made = family.configuration(architecture, values, "float32")
    assert family.architecture(made, "x") == architecture
    (tmp_path / "config.json").write_text(json.dumps(made))
    loaded: Any = AutoConfig.from_pretrained(tmp_path)
    assert loaded.rope_theta == architecture.rope_theta == 77.0
    assert (loaded.rope_scaling or {}).get("factor") == (architecture.rope_scaling or {}).get("factor")
    assert (architecture.rope_scaling is not None) == ("linear" in str(spelling))
    assert getattr(loaded, "sliding_window", None) is None
    assert set(getattr(loaded, "layer_types", [])) <= {"full_attention"}
    assert (loaded.dtype, loaded.return_dict) == (torch.float32, True)
    assert "attn_implementation" not in made


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, "a mixture of experts, which would need"),
        ({"architectures": ["MixtralForCausalLM"]}, "a mixture of experts, which would need"),
        ({"architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": {}}, "it takes more than text"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"architectures": ["BertForMaskedLM"]}, "an encoder"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "a head for another task"),
        ({"architectures": ["LlamaModel"], "model_type": "llama"}, "without its output layer"),
        ({"architectures": None, "model_type": "gemma"}, "architecture gemma is not supported"),
    ],
)
def test_an_architecture_that_is_not_supported_is_told_by_what_it_is(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        family_of_config(fields, "config.json")


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"GPT2LMHeadModel is not supported.*LlamaForCausalLM, Mistral.*Qwen3ForCausal"):
        family_of_config({"architectures": ["GPT2LMHeadModel"], "model_type": "llama"}, "config.json")
    with pytest.raises(UserError, match="architecture none is not supported"):
        family_of_config({}, "config.json")
