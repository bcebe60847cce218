"""Long texts are encoded in parts; what comes out is what the whole text gives."""

import pytest
from tiny import texts
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from compression_pipeline.text.parts import parts

KINDS = ["byte level", "byte level with a space", "digits by threes", "metaspace", "no words", "word piece", "unigram"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNKNOWN = "[UNK]"


def tokenizer(kind: str) -> Tokenizer:
    """A small one that cuts text as published ones do."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 700, "show_progress": False, "special_tokens": [UNKNOWN]}
    if kind == "word piece":
        made = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**options)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(**options, unk_token=UNKNOWN)
    else:
        made = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=kind == "no words"))
        trainer = trainers.BpeTrainer(**options, initial_alphabet=alphabet, max_token_length=12)
        if kind == "metaspace":
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        elif kind == "no words":  # Llama 2: the whole text is one word, after a space
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        elif kind == "digits by threes":
            split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
            made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        else:
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "byte level with a space")
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator([line for text in texts()[:20] for line in text.split("\n")], trainer)
    return made


CONTENT = {
    "prose": "\n\n".join(texts()[:20]),
    "code": "def f(x):\n        return  x[12345] + 67890123  # ...!?\n\n\n\tif x:\n" * 400,
    "numbers": "1234567 89 1011121314151617 " * 700,
    "no spaces": "漢字とかなの文章。次の文、" * 1500,
    "spaces": "a" + " " * 3000 + "b" + "\n" * 3000 + "c d e " * 1000,
    "marks": "e\u0301 ü 🎉 ﬁ -- ((( --- " * 700,
}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_parts_are_those_of_the_whole(kind: str) -> None:
    backend = tokenizer(kind)
    for name, text in CONTENT.items():
        placed = list(parts([text], backend, 2000))
        found = [part for _, part in placed]
        assert all(text[place:].startswith(part) for place, part in placed)
        whole = backend.encode(text, add_special_tokens=False).ids
        pieces = [backend.encode(part, add_special_tokens=False).ids for part in found]
        assert [id for ids in pieces for id in ids] == whole, name
        assert len("".join(found)) >= len(text) - len(found)
        if name in ("prose", "code", "numbers"):
            assert max(map(len, found)) <= 4000, name


def test_a_text_without_a_place_to_cut_is_one_part() -> None:
    backend = tokenizer("byte level")
    assert list(parts(["a" * 20_000], backend, 2000)) == [(0, "a" * 20_000)]
    assert list(parts(["short"], backend, 2000)) == [(0, "short")]
    assert list(parts([], backend, 2000)) == [(0, "")]
