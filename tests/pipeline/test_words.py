"""Texts encoded word by word have the tokens that the tokenizer gives them, and whatever does not fit is left to it."""

import logging
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_parts import CONTENT, KINDS, LLAMA3, tokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from compression_pipeline.text import encode, patterns, words
from compression_pipeline.text.encode import Batch, EncodedBatch, Encoder
from compression_pipeline.text.tokenizer import CannotEncode, TeacherTokenizer, tokens_of

QWEN2 = LLAMA3.replace("{1,3}", "")
CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (  # Mistral Nemo's
    rf"[^\r\n\p{{L}}\p{{N}}]?{CASED}*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{CASED}+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FITTING = {"byte level": words.GPT2, "digits by threes": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN}
ADDED = "<|end|>"
STORED = np.dtype(np.uint16)

SIGNS = st.one_of(
    st.sampled_from(["'s", "'LL", "'\u017f", "'K", "  ", "\r\n", "\n\n", "\x1c", "\x85", "\u00a0", "\u2028", "\ufeff"]),
    st.sampled_from(
        [" the", "Def", "12345", "x²", "...", "//\n", "é", "e\u0301", "漢字", "🎉", "ŉ", "ﬁ", "\U000107bb"]
    ),
    st.characters(exclude_categories=("Cs",)),
    st.just(ADDED),
)


@cache
def made(kind: str) -> Tokenizer:
    """One with the pattern of a published tokenizer, and an added token."""
    found = tokenizer(kind if kind in KINDS else "digits by threes")
    if kind not in KINDS:
        split = pre_tokenizers.Split(Regex(FITTING[kind]), "isolated")
        found.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    found.add_special_tokens([ADDED])
    return found


@cache
def encoder(kind: str) -> words.WordEncoder:
    assert words.pattern_of(made(kind)) == FITTING[kind]
    return words.WordEncoder(made(kind), FITTING[kind], STORED)


@cache
def splitter(kind: str) -> patterns.Splitter:
    return patterns.Splitter(FITTING[kind])


def split(kind: str, text: str) -> list[str]:
    """The text's words as the tokenizer has them."""
    found = pre_tokenizers.Split(Regex(FITTING[kind]), "isolated").pre_tokenize_str(text)
    return [text[slice(*span)] for _, span in found]


@pytest.mark.parametrize("kind", FITTING)
@given(texts=st.lists(st.lists(SIGNS, max_size=40).map("".join), max_size=4))
def test_tokens_are_those_of_the_tokenizer(kind: str, texts: list[str]) -> None:
    assert encoder(kind).tokens(texts) == tokens_of(made(kind), texts, STORED)
    assert encoder(kind).agrees(texts)
    for text in texts:
        assert splitter(kind).split(text) in (split(kind, text), None)


@pytest.mark.parametrize("kind", FITTING)
def test_ordinary_text_is_encoded_by_its_words(kind: str) -> None:
    for name, text in CONTENT.items():
        found = encoder(kind).of_words(text)
        if found is None:  # a ligature may be two letters to a pattern that ignores case
            assert name == "marks"
        else:
            assert [found] == tokens_of(made(kind), [text], STORED), name


@pytest.mark.parametrize("kind", FITTING)
def test_every_character_is_split_as_the_tokenizer_splits_it_or_left_to_it(kind: str) -> None:
    """Between letters, digits and spaces, each of which goes on with its own kind alone."""
    every = [
        sign for sign in map(chr, [*range(0x10000), *range(0x10000, 0x20000, 7)]) if not "\ud800" <= sign <= "\udfff"
    ]
    left = [sign for sign in every if splitter(kind).split(sign) is None]
    text = "".join(f"a{sign}1{sign} {sign}" for sign in sorted(set(every) - set(left)))
    assert splitter(kind).split(text) == split(kind, text)
    # Those that are left to it are few: letters that may be ASCII's to a pattern that ignores case.
    assert len(left) <= 20 and all(re.search("[a-z]", sign.casefold() + sign.lower()) for sign in left)
    assert bool(left) == ("(?i:" in FITTING[kind])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FITTING])
def test_a_tokenizer_of_another_kind_is_asked_itself(kind: str) -> None:
    assert words.pattern_of(tokenizer(kind)) is None


def bytes_split_by(pattern: str, *, behavior: str = "isolated", invert: bool = False) -> Tokenizer:
    found = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior, invert)
    found.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return found


def test_what_changes_text_before_its_words_or_beyond_them_does_not_fit() -> None:
    assert words.pattern_of(bytes_split_by(r"\p{L}+")) == r"\p{L}+"
    assert words.pattern_of(bytes_split_by(r"\p{L}+", behavior="removed")) is None
    assert words.pattern_of(bytes_split_by(r"\p{L}+", invert=True)) is None
    normalising, dropping = bytes_split_by(r"\p{L}+"), bytes_split_by(r"\p{L}+")
    normalising.normalizer = normalizers.NFC()
    dropping.model = models.BPE(dropout=0.1)
    assert words.pattern_of(normalising) is None and words.pattern_of(dropping) is None


@pytest.mark.parametrize("pattern", [r"(?<=a)b", r"\w+$", r"a{1,3}+", r"[[a]b]", r"[a&&b]", r"(?x)a b", r"\bword", "."])
def test_a_pattern_that_libraries_may_read_otherwise_does_not_fit(pattern: str) -> None:
    assert words.pattern_of(bytes_split_by(pattern)) is None


@pytest.mark.parametrize("pattern", [r"(\p{L}+)|(\s+)", r"\p{L}+|[\s\p{Deseret}]|\p{Deseret}"])
def test_a_text_of_which_the_pattern_finds_a_part_alone_is_left_to_the_tokenizer(pattern: str) -> None:
    assert patterns.understood(pattern)
    one = patterns.Splitter(pattern)
    assert one.split("two words") == ["two", " ", "words"]
    assert one.split("two, words") is None
    assert one.split("two\U00010400") in (["two\U00010400"], None)


def test_words_are_forgotten_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "WORDS", 10)
    few = words.WordEncoder(made("byte level"), words.GPT2, STORED)
    text = " ".join(f"word{number}" for number in range(1000))
    assert [few.of_words(text)] == tokens_of(made("byte level"), [text], STORED)
    assert few.kept <= 10


def test_a_text_without_tokens_is_named() -> None:
    with pytest.raises(CannotEncode) as raised:
        encoder("byte level").tokens(["a", "b \ud800"])
    assert raised.value.number == 1


class Backend(TeacherTokenizer):
    """A teacher's tokenizer that is the test's own."""

    def backend(self) -> Tokenizer:
        return made("digits by threes")


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> TeacherTokenizer:
    monkeypatch.setattr(encode, "WORTHWHILE", 1)
    return Backend(
        file=Path("none"),
        end_of_document=0,
        begin=None,
        padding=None,
        largest=700,
        vocabulary=701,
        split_special=False,
        added=(),
        normalizer=None,
        pre_tokenizer=None,
    )


def encoded(teacher: TeacherTokenizer) -> list[EncodedBatch]:
    batches = [Batch(0, list(CONTENT.values())), Batch(len(CONTENT), list(CONTENT.values()))]
    one = Encoder(teacher)
    return [one.encode(batch, None) for batch in batches]


def test_an_encoder_takes_to_words_once_that_pays(
    teacher: TeacherTokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(words.WordEncoder, "of_words", lambda self, text: asked.append(len(text)))
    first, second = encoded(teacher)
    assert first.kept == second.kept and len(asked) >= len(CONTENT)
    assert not caplog.records


def test_words_that_give_other_tokens_are_not_taken(
    teacher: TeacherTokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encode, "pattern_of", lambda _: r"\p{L}|[^\p{L}]")
    with caplog.at_level(logging.WARNING):
        first, second = encoded(teacher)
    assert first.kept == second.kept
    assert "words are not kept" in caplog.text
