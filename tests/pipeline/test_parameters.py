"""Parameters of published models, to the last one."""

import pytest
from published import LLAMA_8B, NEMO_12B, NEMOTRON, NEMOTRON_15B, QWEN_8B, described

from compression_pipeline.config import PruneConfig, student_architecture

# Counted from the published checkpoints; Nemotron-4-15B's and Minitron's by the architecture of their papers.
PUBLISHED = {
    "Llama-3.1-8B": (LLAMA_8B, 8_030_261_248),
    "Mistral-NeMo-12B": (NEMO_12B, 12_247_782_400),
    "Nemotron-4-15B": (NEMOTRON_15B, 15_628_775_424),
    "Minitron-8B": (described(NEMOTRON, 32, 4096, 16384, 256000, num_attention_heads=48), 8_271_699_968),
    "Minitron-4B": (described(NEMOTRON, 32, 3072, 9216, 256000, num_attention_heads=24), 4_190_509_056),
    "Qwen3-8B": (QWEN_8B, 8_190_735_360),
}
PRUNED = {
    "Llama-3.1-Minitron-4B-Width": (LLAMA_8B, {"hidden_size": 3072, "ffn_hidden_size": 9216}, 4_512_746_496),
    "Llama-3.1-Minitron-4B-Depth": (LLAMA_8B, {"layers": 16}, 4_540_469_248),
    "Mistral-NeMo-Minitron-8B": (NEMO_12B, {"hidden_size": 4096, "ffn_hidden_size": 11520}, 8_414_105_600),
    "Minitron-8B": (NEMOTRON_15B, {"hidden_size": 4096, "ffn_hidden_size": 16384}, 8_271_699_968),
    "Minitron-4B": (
        NEMOTRON_15B,
        {"hidden_size": 3072, "ffn_hidden_size": 9216, "attention_heads": 24},
        4_190_509_056,
    ),
    "Qwen3-7B": (QWEN_8B, {"hidden_size": 3840, "layers": 32}, 6_955_265_792),
    "Qwen3-6B": (QWEN_8B, {"hidden_size": 3584, "ffn_hidden_size": 11776, "layers": 30}, 5_988_774_912),
    "Qwen3-6B-Width": (QWEN_8B, {"hidden_size": 3584, "ffn_hidden_size": 9216}, 5_977_809_408),
    "Qwen3-6B-Depth": (QWEN_8B, {"layers": 24}, 5_875_378_176),
    "Qwen3-28-layers": (QWEN_8B, {"drop_layers": [*range(27, 35)]}, 6_647_163_904),
    "Qwen3-22-layers": (QWEN_8B, {"layers": 22}, 5_489_485_312),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_teacher(name: str) -> None:
    architecture, parameters = PUBLISHED[name]
    assert architecture.parameters == parameters


@pytest.mark.parametrize("name", PRUNED)
def test_a_published_student(name: str) -> None:
    teacher, sizes, parameters = PRUNED[name]
    assert student_architecture(teacher, PruneConfig(**sizes)).parameters == parameters
