"""What a teacher's files say of generation: plain transformers loads it, generates by it and saves it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import Preparation, rows
from tiny import CONFIG, texts
from tokenizers_of import FLAGS, ROWS, edit, tell, write_folder

from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.generation import Settled, _settings, settle
from compression_pipeline.huggingface.sample import continue_greedily
from compression_pipeline.huggingface.tokenizer import load
from compression_pipeline.text.tokenizer import TeacherTokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TeacherTokenizer:
    """Its end is 0, its begin is 5; it has no padding."""
    folder = write_folder(tmp_path_factory.mktemp("tokenizer"))
    token = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tell(folder, bos_token=next(text for text, number in token.items() if number == 5))
    return load(folder, ROWS).tokenizer


def settled(tokenizer: TeacherTokenizer, generation: dict[str, Any] | None = None, **config: Any) -> Settled:
    told = CONFIG | {"vocab_size": ROWS, "head_dim": 16, "bos_token_id": None, "eos_token_id": 0} | config
    return settle(told, generation, tokenizer, ROWS, "teacher")


@pytest.mark.parametrize(
    ("key", "given", "made", "said"),
    [
        ("pad_token_id", -1, None, "pad_token_id is -1, but the embedding has rows 0 to 511; students get no"),
        ("pad_token_id", 512, None, "pad_token_id is 512, but the embedding has rows 0 to 511; students get no"),
        ("bos_token_id", 128_000, 5, "bos_token_id is 128000, but the embedding has rows 0 to 511; students get 5, as"),
        ("eos_token_id", 512, 0, "eos_token_id is 512, but the embedding has rows 0 to 511; students get 0, as the"),
        ("eos_token_id", [600, 0, 7], [0, 7], "eos_token_id is [600, 0, 7], but the embedding has rows 0 to 511; "
         "students get [0, 7]"),
        ("eos_token_id", [], 0, "eos_token_id is [], but"),
        ("pad_token_id", [3, 4], 3, "pad_token_id is [3, 4]; it may be one only; students get 3"),
        ("pad_token_id", "0", None, 'pad_token_id is "0", but'),
        ("pad_token_id", True, None, "pad_token_id is true, but"),
        ("bos_token_id", 5.0, 5, "bos_token_id is 5.0, but"),
    ],
)  # fmt: skip
def test_ids_that_are_no_tokens(tokenizer: TeacherTokenizer, key: str, given: Any, made: Any, said: str) -> None:
    for file, found in (
        ("config.json", settled(tokenizer, **{key: given})),
        ("generation_config.json", settled(tokenizer, {"eos_token_id": 0, key: given})),
    ):
        content = found.config if file == "config.json" else found.generation
        assert content is not None and content[key] == made
        assert found.said[0].startswith(f"teacher/{file}: {said}")


def test_what_is_sound_is_left_as_it_is(tokenizer: TeacherTokenizer) -> None:
    ends = {"bos_token_id": 5, "eos_token_id": [7, 0], "pad_token_id": 3}
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "transformers_version": "4.40.0"}
    found = settled(tokenizer, ends | sampling | {"a": 1}, **ends)
    assert found.said == ()
    assert found.generation == ends | sampling | {"a": 1}
    assert settled(tokenizer).generation is None


@pytest.mark.parametrize(
    ("generation", "left"),
    [
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature", "top_p"}),
        ({"temperature": 0.6, "max_length": 4096}, {"temperature"}),
        ({"do_sample": True, "temperature": 0.0}, {"temperature"}),
        ({"do_sample": True, "temperature": "hot"}, {"temperature"}),
        ({"do_sample": True, "repetition_penalty": 2}, set()),
        ({"early_stopping": True}, {"early_stopping"}),
        ({"early_stopping": True, "num_beams": 4}, set()),
        ({"num_return_sequences": 2}, {"num_return_sequences"}),
        ({"use_cache": False, "cache_implementation": "static"}, {"cache_implementation"}),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": True}, {"penalty_alpha"}),
        ({"compile_config": {}}, {"compile_config"}),
        ({"streamer": 1}, {"streamer"}),
        ({"transformers_version": "main"}, {"transformers_version"}),
    ],
)
def test_settings_that_transformers_would_not_save(
    tokenizer: TeacherTokenizer, generation: dict[str, Any], left: set[str]
) -> None:
    found = settled(tokenizer, {"eos_token_id": 0} | generation)
    assert found.generation is not None
    assert found.generation.keys() == {"eos_token_id", *generation} - left
    if not left:
        assert found.said == ()
        return
    [said] = found.said
    assert said.startswith("teacher/generation_config.json: ") and all(f"{key}: " in said for key in left)


def test_settings_in_config_json(tokenizer: TeacherTokenizer) -> None:
    found = settled(tokenizer, temperature=0.6, do_sample=True)
    assert found.generation == {"eos_token_id": 0, "temperature": 0.6, "do_sample": True}
    assert "temperature" not in found.config
    [said] = found.said
    assert "temperature: 0.6, do_sample: true are settings of generation; students have them in generation_conf" in said
    found = settled(tokenizer, {"eos_token_id": 0}, temperature=0.6)
    assert found.generation == {"eos_token_id": 0}
    assert "they have no effect beside generation_config.json" in found.said[0]


def test_names_of_settings_are_the_librarys() -> None:
    from transformers import PretrainedConfig

    assert PretrainedConfig._get_global_generation_defaults().keys() - {
        "forced_bos_token_id",
        "forced_eos_token_id",
    } <= (_settings())


@pytest.mark.parametrize(
    ("generation", "config", "said"),
    [
        ({"eos_token_id": 0, "bos_token_id": 1}, {}, "bos_token_id is 1 in generation_config.json, 5 in the tokenizer"),
        ({"eos_token_id": 0, "pad_token_id": 1}, {"pad_token_id": 2}, "pad_token_id is 2 in config.json, 1 in gen"),
        ({"eos_token_id": [6, 7]}, {}, "eos_token_id is 0 in config.json, [6, 7] in generation_config.json, 0 in the "
         "tokenizer; documents end with the tokenizer's, and generation stops at [6, 7] alone"),
        (None, {"eos_token_id": None}, "eos_token_id is None in config.json, 0 in the tokenizer; documents end with "
         "the tokenizer's, and generation stops at none alone"),
    ],
)  # fmt: skip
def test_contradictions_stay_and_are_told(
    tokenizer: TeacherTokenizer, generation: dict[str, Any] | None, config: dict[str, Any], said: str
) -> None:
    found = settled(tokenizer, generation, **config)
    assert found.generation == generation
    [told] = found.said
    assert told.startswith(f"teacher: {said}") and "\n" not in told


def test_a_configuration_that_transformers_cannot_make(tokenizer: TeacherTokenizer) -> None:
    with pytest.raises(UserError, match=r"teacher/config.json: transformers can't use it \(.*problem_type"):
        settled(tokenizer, problem_type="poetry")


JUNK = st.sampled_from([None, True, False, -1, 0, 1, 2, 3, 0.0, 0.5, 1.0, 1.5, "x", [], [0], [0, 600], {}, {"a": 1}])
IDS = st.sampled_from([None, 0, 5, 511, 512, -1, [0, 7], [7], [600], [], "0", 2.0, True])
NAMED_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "forced_eos_token_id")
SETTINGS = (
    *(
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    ),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_return_sequences", "output_scores"),
    *("return_dict_in_generate", "remove_invalid_values", "num_beam_groups", "diversity_penalty", "use_cache"),
    *("max_new_tokens", "min_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha", "compile_config", "constraints"),
    *(
        "watermarking_config",
        "cache_implementation",
        "output_attentions",
        "streamer",
        "validate",
        "transformers_version",
    ),
    *("custom", "max_time", "min_new_tokens", "dola_layers"),
)
GENERATION = st.builds(
    lambda ids, told: ids | told,
    st.fixed_dictionaries({}, optional=dict.fromkeys(NAMED_IDS, IDS)),
    st.dictionaries(st.sampled_from(SETTINGS), JUNK, max_size=6),
)
OF_CONFIG = ("attention_dropout", "use_cache", "initializer_range", "num_labels", "problem_type", "id2label",
             "is_decoder", "task_specific_params", "pretraining_tp", "tokenizer_class", "custom")  # fmt: skip
CONFIGS = st.builds(
    lambda generation, told: generation | told,
    GENERATION,
    st.dictionaries(st.sampled_from(OF_CONFIG), JUNK, max_size=2),
)


@settings(max_examples=25, deadline=None)
@given(config=CONFIGS, generation=st.none() | GENERATION)
def test_what_is_accepted_loads_generates_and_can_be_saved(
    tokenizer: TeacherTokenizer,
    tiny_teacher: Path,
    tmp_path_factory: pytest.TempPathFactory,
    config: dict[str, Any],
    generation: dict[str, Any] | None,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        found = settled(tokenizer, generation, **config)
    except UserError as error:
        assert "config.json: transformers can't use it" in str(error)
        return
    assert settle(found.config, found.generation, tokenizer, ROWS, "x").config == found.config, "once is enough"
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "model.safetensors").symlink_to(tiny_teacher / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(found.config))
    if found.generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(found.generation))
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)
    model.save_pretrained(folder / "saved")
    AutoModelForCausalLM.from_pretrained(folder / "saved", local_files_only=True)


def test_a_sample_is_greedy_whatever_the_model_asks_for(tiny_teacher: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "model"))
    edit(folder / "generation_config.json", do_sample=True, temperature=50.0, top_k=0)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert len({continue_greedily(model, tokenizer, "def", 8) for _ in range(4)}) == 1


def test_prepare_settles_the_teachers_files(preparation: Preparation, tiny_teacher: Path) -> None:
    folder = Path(shutil.copytree(tiny_teacher, preparation.folder / "teacher"))
    edit(folder / "config.json", pad_token_id=-1)
    edit(folder / "generation_config.json", do_sample=False, temperature=0.6)
    tell(folder, added_tokens_decoder={"7": {"content": texts()[0][0], **FLAGS}})
    preparation.write("corpus.jsonl", *rows(*texts()[:9]))
    artifact = preparation.artifact(preparation.run("file:corpus.jsonl", teacher={"model": "file:teacher"}))
    said = [event["message"] for event in preparation.events("warning")]
    assert [one.partition(": ")[2].partition(": ")[0] for one in said] == [
        f"{folder / 'config.json'}",
        f"{folder / 'generation_config.json'}",
    ]
    assert json.loads((artifact.model / "config.json").read_text())["pad_token_id"] is None
    generation = json.loads((artifact.model / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 0, "do_sample": False}
