"""The teacher's tokenizer has the ids that AutoTokenizer gives, or is refused in a sentence that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import END, texts
from tokenizers_of import FLAGS, NEED_A_CHANGE, ROWS, edit, tell, with_a_gap, write_folder

from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.tokenizer import SIZE_LIMIT, LoadedTokenizer, load
from compression_pipeline.text.encode import encode
from compression_pipeline.text.indexed import token_type
from compression_pipeline.text.tokenizer import TeacherTokenizer

PLENTY = 100_000
PROBES = (texts()[0][:300], "a <|more|> b<|im_start|>user <pad>", f"x{END}y", " ünï 漢字 🎉\n\n\tz", "<unk></s><s>", "")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tokenizer") / "original")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "teacher"))


def plain(folder: Path) -> Any:
    """As a user of a student loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def same(ours: TeacherTokenizer, theirs: Any) -> bool:
    told = (ours.vocabulary, ours.largest, ours.end_of_document)
    backend = ours.backend()
    return told == (len(theirs), max(theirs.get_vocab().values()), theirs.eos_token_id) and all(
        backend.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False)["input_ids"]
        for text in PROBES
    )


def normalised(found: LoadedTokenizer, folder: Path) -> Path:
    """The folder with what prepare writes instead."""
    if found.config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(found.config))
    return folder


@pytest.mark.parametrize("change", NEED_A_CHANGE, ids=lambda change: change.__name__)
def test_what_plain_transformers_cannot_load_is_made_so_that_it_can(
    folder: Path, change: Callable[[Path], None]
) -> None:
    before = load(folder, ROWS).tokenizer.backend()
    change(folder)
    found = load(folder, ROWS)
    assert found.config is not None
    assert found.changes.startswith(f"{folder / 'tokenizer_config.json'}: ") and "\n" not in found.changes
    assert same(found.tokenizer, plain(normalised(found, folder)))
    assert load(folder, ROWS).config is None, "once is enough"
    for text in PROBES:
        ids = found.tokenizer.backend().encode(text, add_special_tokens=False).ids
        assert ids == before.encode(text, add_special_tokens=False).ids


def test_a_token_to_begin_with_is_kept(folder: Path) -> None:
    tell(folder, tokenizer_class="LlamaTokenizer", add_prefix_space=True, add_bos_token=True, bos_token=END)
    assert plain(normalised(load(folder, ROWS), folder))("a")["input_ids"][0] == 0


def test_an_added_token_beyond_the_embedding_is_refused(folder: Path) -> None:
    assert load(folder, ROWS).tokenizer.largest == ROWS - 1
    tell(folder, added_tokens_decoder={"512": {"content": "<pad>", **FLAGS}}, pad_token="<pad>")  # noqa: S106
    said = rf"tokenizer_config.json: token id 512 \('<pad>'\) is outside of the model's embedding of {ROWS} rows"
    with pytest.raises(UserError, match=said):
        load(folder, ROWS)
    assert load(folder, ROWS + 1).tokenizer.largest == ROWS


def test_added_tokens_json_counts(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 512, "<|im_end|>": 513}))
    found = load(folder, 514).tokenizer
    assert found.backend().encode("<|im_start|>", add_special_tokens=False).ids == [512]
    assert same(found, plain(folder))
    with pytest.raises(UserError, match=r"added_tokens.json: token id 513 \('<\|im_end\|>'\) is outside"):
        load(folder, 513)


@pytest.mark.parametrize(
    ("number", "kind"), [(65_000, "uint16"), (65_498, "uint16"), (65_499, "int32"), (66_000, "int32")]
)
def test_tokens_are_stored_by_the_largest_id(
    folder: Path, number: int, kind: str, capfd: pytest.CaptureFixture
) -> None:
    with_a_gap(folder, number)
    found = load(folder, PLENTY).tokenizer
    assert (found.vocabulary, found.largest, found.end_of_document) == (ROWS, number, number)
    assert token_type(found.largest) == np.dtype(kind)
    batch = next(encode(found, ["some text"], None, workers=1))
    assert np.frombuffer(batch.kept.tokens, kind)[-1] == number
    assert capfd.readouterr().out == "", "stdout is for events"


def test_processes_make_the_very_same_tokenizer(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 512}))
    tell(folder, add_prefix_space=True, split_special_tokens=True)
    with_a_gap(folder)
    found = load(folder, PLENTY).tokenizer
    assert same(found, plain(folder))
    alone, spread = ([*encode(found, PROBES, None, workers=workers)] for workers in (1, 2))
    assert alone == spread


def test_without_an_end_of_text(folder: Path) -> None:
    (folder / "special_tokens_map.json").unlink()
    tell(folder, eos_token=...)
    with pytest.raises(UserError, match=r"tokenizer_config.json names no eos_token, which marks where a document ends"):
        load(folder, PLENTY)


def test_a_missing_or_huge_file(folder: Path) -> None:
    with (folder / "added_tokens.json").open("wb") as file:
        file.truncate(SIZE_LIMIT + 1)
    with pytest.raises(UserError, match=r"added_tokens.json has 268,435,457 bytes, more than"):
        load(folder, ROWS)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json is missing; load the model's tokenizer once"):
        load(folder, ROWS)


@pytest.mark.parametrize("kind", ["begin token and truncation", "metaspace", "unigram", "words"])
def test_every_kind_of_tokenizer(folder: Path, kind: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    told = {"special_tokens": [END], "show_progress": False}
    match kind:
        case "begin token and truncation":
            backend.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
            backend.enable_truncation(16)  # some files come with it; text is never cut
            backend.enable_padding(length=16)
            tell(folder, add_bos_token=True, bos_token=END)
        case "metaspace":
            backend = Tokenizer(models.BPE(unk_token=END, byte_fallback=True))
            backend.pre_tokenizer = pre_tokenizers.Metaspace()
            backend.train_from_iterator(texts()[:9], trainers.BpeTrainer(vocab_size=600, **told))
        case "unigram":
            backend = Tokenizer(models.Unigram())
            backend.train_from_iterator(texts()[:9], trainers.UnigramTrainer(vocab_size=600, unk_token=END, **told))
        case "words":
            backend = Tokenizer(models.WordLevel(unk_token=END))
            backend.pre_tokenizer = pre_tokenizers.Whitespace()
            backend.train_from_iterator(texts()[:9], trainers.WordLevelTrainer(vocab_size=600, **told))
    backend.save(str(folder / "tokenizer.json"))
    found = load(folder, PLENTY)
    assert found.config is None
    assert same(found.tokenizer, plain(folder))


def token(content: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """As these files spell one: its text, an object, or null."""
    typed = content.map(lambda text: {"__type": "AddedToken", "content": text, **FLAGS})
    return st.one_of(st.none(), content, typed, content.map(lambda text: {"content": text, **FLAGS}))


CONTENTS = st.sampled_from([END, "<s>", "</s>", "<unk>", "<pad>", "<|more|>", "<|im_start|>", "the", "漢"])
TOKENS = token(CONTENTS)
FLAGGED = st.fixed_dictionaries({"content": CONTENTS}, optional={name: st.booleans() for name in FLAGS})
CLASSES = ["PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "GPT2TokenizerFast"]
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "tokenizer_class": st.sampled_from([*CLASSES, "TokenizersBackend"]),
        "eos_token": TOKENS,
        "bos_token": TOKENS,
        "pad_token": TOKENS,
        "unk_token": TOKENS,
        "additional_special_tokens": st.lists(TOKENS.filter(bool), max_size=2),
        "extra_special_tokens": st.one_of(st.just({}), st.lists(CONTENTS, max_size=2)),
        "added_tokens_decoder": st.dictionaries(st.sampled_from(["0", "511", "512", "600"]), FLAGGED, max_size=3),
        "add_prefix_space": st.sampled_from([None, False, True]),
        "add_bos_token": st.booleans(),
        "add_eos_token": st.booleans(),
        "split_special_tokens": st.booleans(),
        "clean_up_tokenization_spaces": st.booleans(),
        "legacy": st.booleans(),
    },
)
MAPS = st.none() | st.fixed_dictionaries(
    {}, optional={name: token(CONTENTS).filter(bool) for name in ("eos_token", "bos_token", "pad_token", "unk_token")}
)
ADDED = st.none() | st.dictionaries(CONTENTS, st.integers(509, 514), max_size=3)
WHOLE = st.lists(
    st.sampled_from([{"id": 512, "content": "<|more|>", **FLAGS}, {"id": 513, "content": "<pad>", **FLAGS}]), max_size=2
)


@settings(max_examples=60)
@given(config=st.none() | CONFIGS, special=MAPS, added=ADDED, whole=WHOLE, spaced=st.booleans())
def test_ids_are_those_of_auto_tokenizer(
    original: Path,
    tmp_path_factory: pytest.TempPathFactory,
    config: dict[str, Any] | None,
    special: dict[str, Any] | None,
    added: dict[str, int] | None,
    whole: list[dict[str, Any]],
    spaced: bool,
) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(original / name, folder / name)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] += whole
    content["pre_tokenizer"]["add_prefix_space"] = spaced
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for name, told in zip(FILES[1:], (config, special, added), strict=True):
        if told is not None:
            (folder / name).write_text(json.dumps(told))
    try:
        theirs = plain(folder)
    except Exception:
        theirs = None
    try:
        found = load(folder, PLENTY)
    except UserError as error:
        assert theirs is None or theirs.eos_token_id is None, error
        return
    if theirs is not None:
        assert found.config is None or theirs.eos_token_id is None
        assume(theirs.eos_token_id is not None)
        assert same(found.tokenizer, theirs)
    assert same(found.tokenizer, plain(normalised(found, folder)))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**70) | st.floats() | st.text(max_size=3) | st.just(END),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value; of long lists and objects to a few."""
    inner = list(content.items())[:12] if isinstance(content, dict) else []
    inner = list(enumerate(content[:3])) if isinstance(content, list) else inner
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = changed(content[path[0]], path[1:], value)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return copy


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_is_wrong_in_a_file_is_told_as_a_fault_of_it(
    original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("fuzzed") / "teacher"))
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 512}))
    tell(folder, chat_template=[{"name": "a", "template": "b"}], model_input_names=["input_ids"], padding_side="left")
    decoder = {"0": {"content": END, **FLAGS}}
    if data.draw(st.booleans()):
        tell(folder, added_tokens_decoder=decoder, additional_special_tokens=[END], extra_special_tokens={"a": END})
    name = data.draw(st.sampled_from(FILES))
    content = json.loads((folder / name).read_text())
    path = data.draw(st.sampled_from(places(content)))
    raw = json.dumps(changed(content, path, data.draw(ANYTHING)))
    cut = data.draw(st.none() | st.integers(0, len(raw)))
    (folder / name).write_text(raw[:cut])
    try:
        found = load(folder, PLENTY)
    except UserError as error:
        assert "\n" not in str(error)
        assert any(f"{folder / one}" in str(error) for one in FILES)
    else:
        assert same(found.tokenizer, plain(normalised(found, folder)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b'{"model": ', "tokenizer.json is not valid JSON"),
        ("tokenizer.json", b'{"model": {"type": "Nothing"}, "added_tokens": []}', "tokenizer.json: transformers can't"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", b"[" * 100_000, "tokenizer_config.json is not valid JSON (maximum recursion"),
        (
            "tokenizer_config.json",
            b'{"eos_token": "\xff"}',
            "tokenizer_config.json is not valid JSON ('utf-8' codec can't decode",
        ),
        ("tokenizer_config.json", b'{"added_tokens_decoder": []}', "tokenizer_config.json: transformers can't"),
        ("special_tokens_map.json", b'{"eos_token": ["a"]}', "special_tokens_map.json: transformers can't"),
        ("added_tokens.json", b'{"a": "b"}', "added_tokens.json: transformers can't"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
        ("additional_chat_templates/rag.jinja", b"\xff", "additional_chat_templates/rag.jinja is not UTF-8"),
    ],
)
def test_the_file_at_fault_is_named(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        load(folder, PLENTY)
    assert str(raised.value).startswith(f"{folder}/{said}")


def test_edits_keep_the_rest(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="TokenizersBackend", chat_template="{{ messages }}")
    config = load(folder, ROWS).config
    assert config is not None
    assert (config["chat_template"], config["eos_token"], config["model_max_length"]) == ("{{ messages }}", END, 512)
