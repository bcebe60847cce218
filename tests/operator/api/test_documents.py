"""YAML is read as kubectl reads it. The expected values are what sigs.k8s.io/yaml 1.6.0 answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression_operator.api.documents import MalformedYaml, read_documents, scalar

NUMBERS = {
    "1e-4": 1e-4, "1E4": 10000, "1.0": 1, "1.": 1, "-0": 0, ".5": 0.5, "+.5": 0.5, "0777": 511, "08": 8, "0o17": 15,
    "0x1F": 31, "-0x1f": -31, "0b101": 5, "1_000": 1000, "1e20": 10**20, "1e21": 1e21, "+1": 1, "007": 7, "09.5": 9.5,
    "18446744073709551615": 2**64 - 1, "123456789012345678901234567890": 1.2345678901234568e29,
}  # fmt: skip
STRINGS = [
    "1e400", "yEs", "tRUE", "2001-01-01", "2001-01-01T00:00:00Z", "12:30:45", "1:30", "0.1e", "+", "-x", "..", "1.5.2",
    "1,000", "0x", "0xg", "0b2", "5GB", "16Gi", "nan", "inf", "Infinity", "hf://a/b", "a",
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_numbers(text: str, number: float) -> None:
    assert read_documents(f"a: {text}") == [{"a": number}]
    assert type(scalar(text)) is type(number)


@pytest.mark.parametrize("text", STRINGS)
def test_words_stay_strings(text: str) -> None:
    assert scalar(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: yes", True),
        ("a: On", True),
        ("a: n", False),
        ("a: OFF", False),
        ("a: ~", None),
        ("a:", None),
        ("a: 'yes'", "yes"),
        ("a: !!str 5", "5"),
        ("a: !!float 1", 1),
        ("a: >\n  x\n  y\n", "x y\n"),
    ],
)
def test_values(text: str, value: object) -> None:
    assert read_documents(text) == [{"a": value}]


def test_keys_become_strings() -> None:
    assert read_documents("1: a\nyes: b\n1.5: c") == [{"1": "a", "true": "b", "1.5": "c"}]


def test_merge_keys_give_way_to_own_keys() -> None:
    assert read_documents("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}")[0] == {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}


def test_of_several_merged_objects_the_first_wins() -> None:
    assert read_documents("a: {<<: [{b: 1}, {b: 2, c: 3}]}") == [{"a": {"b": 1, "c": 3}}]


def test_empty_documents_are_left_out() -> None:
    assert read_documents("---\n# nothing\n---\na: 1\n---\n") == [{"a": 1}]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\na: 2", 2, "a is given twice; keep one"),
        ("a:\n  b: [1,\nc: 2", 3, "is not YAML"),
        ("\ta: 1", 1, "a tab; indent with spaces"),
        ("a: *b", 1, "undefined alias"),
        ("a: &x [*x]", 1, "an alias contains itself"),
        ("a: .inf", 1, "give a finite one"),
        ("a: !!int x", 1, "x is no int; remove the tag"),
        ("a: !!binary aGk=", 1, "is not supported; remove it"),
        ("? [a]\n: b", 1, "a key must be a word"),
        ("a: {<<: 5}", 1, "<< takes an object"),
    ],
)
def test_mistakes_name_their_line(text: str, line: int, words: str) -> None:
    with pytest.raises(MalformedYaml) as caught:
        read_documents(text)
    assert caught.value.line == line
    assert words in caught.value.message


def test_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(MalformedYaml, match="aliases multiply it"):
        read_documents("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "words"), [("a: \x08", "control characters"), ("[" * 5000 + "]" * 5000, "nested too deeply")]
)
def test_mistakes_without_a_line(text: str, words: str) -> None:
    with pytest.raises(MalformedYaml, match=words) as caught:
        read_documents(text)
    assert caught.value.line is None


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_documents(text)
    except MalformedYaml as error:
        assert "\n" not in error.message
