"""Which files belong to which split, by their names (`readme`: where a dataset's README tells)."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from compression_pipeline.config import TextConfig
from compression_pipeline.errors import UserError, one_of

KEYWORDS: Mapping[str, Sequence[str]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in names that tell a split, as Hugging Face's `datasets` reads them: in lower case alone."""

_AROUND = "[-._ 0-9]"  # what sets such a word off from others
_SHARD = re.compile(r"data/(?P<split>[^/]+)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*", re.DOTALL)
_SHARDED_SPLIT = re.compile(r"\w+(\.\w+)*")


def by_name(names: Iterable[str], extra: Iterable[str] = ()) -> dict[str, list[str]]:
    """Files by split, sorted, by the rules of `datasets`: the first of these that tells anything tells everything.

    1. `data/<split>-00000-of-00001*.<ending>`: the split may have any name.
    2. A folder's name has a word of KEYWORDS, set off by its ends, `-`, `.`, `_`, a space or a digit.
    3. A file's name has such a word, and one of those signs after it.
    4. Everything is train.

    A name may tell several splits, and files that tell none belong to none. Other than there, they are train where no
    file tells that it is. `extra`: splits that the manifest names; where the rules find none of that name it is a word
    like those, and the files that it tells belong to no other split.
    """
    ordered = sorted(names)
    found = _sharded(ordered) or _with_train(_by_words(ordered, KEYWORDS), ordered)
    for split in extra:
        if split not in found and split not in KEYWORDS:
            told = _by_words(ordered, {split: [split]}).get(split, [])
            found = {one: [name for name in files if name not in told] for one, files in found.items()} | {split: told}
    return {split: files for split, files in found.items() if files}


def tells(name: str) -> bool:
    """Whether a name tells a split on its own."""
    return bool(_sharded([name]) or _by_words([name], KEYWORDS))


def _sharded(names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            found.setdefault(match["split"], []).append(name)
    return found if all(_SHARDED_SPLIT.fullmatch(split) for split in found) else {}


def _by_words(names: Sequence[str], words: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    for tells in (_folder_tells, _file_tells):
        found = {split: [name for name in names if tells(name, told)] for split, told in words.items()}
        if any(found.values()):
            return {split: files for split, files in found.items() if files}
    return {}


def _with_train(found: dict[str, list[str]], names: Sequence[str]) -> dict[str, list[str]]:
    told = {name for files in found.values() for name in files}
    return found if "train" in found else {"train": [name for name in names if name not in told]} | found


def _folder_tells(name: str, words: Sequence[str]) -> bool:
    form = re.compile(rf"(.*{_AROUND})?({_any(words)})({_AROUND}.*)?", re.DOTALL)
    return any(form.fullmatch(folder) for folder in name.split("/")[:-1])


def _file_tells(name: str, words: Sequence[str]) -> bool:
    form = rf"(.*{_AROUND})?({_any(words)}){_AROUND}.*"
    return re.fullmatch(form, name.rsplit("/", 1)[-1], re.DOTALL) is not None


def _any(words: Sequence[str]) -> str:
    return "|".join(map(re.escape, words))


def choose(known: list[str], wanted: str | None, where: str, default: str | None = None) -> str:
    """The configuration (subset) to take: the wanted one, the default, the only one. Raises UserError."""
    if wanted is not None:
        if wanted in known:
            return wanted
        raise UserError(f"{where} has no configuration {wanted}; set dataset.config to {one_of(known)}")
    if default is None and "default" in known:
        default = "default"
    if default is None and len(known) == 1:
        default = known[0]
    if default is None:
        raise UserError(f"{where} has several configurations; set dataset.config to {one_of(known)}")
    return default


def warnings(names: Iterable[str], found: Mapping[str, list[str]], dataset: TextConfig) -> Iterator[str]:
    """What a person should know of how files were split by their names, a sentence each."""
    used = {name for files in found.values() for name in files}
    unused = sorted(set(names) - used)
    if unused:
        yield (
            f"{len(unused)} files are not used, because their names give no split and other files' names do (the "
            f"first: {unused[0]})"
        )
    train = found.get(dataset.train_split, [])
    if len(found) > 1 and train and dataset.train_split == "train" and not any(map(tells, train)):
        yield (
            f"{len(train)} files are trained on although their names give no split and other files' names do (the "
            f"first: {train[0]})"
        )
    for split in (dataset.train_split, dataset.validation_split or "validation"):
        strange = [(name, word) for name in found.get(split, []) for word in _other_words(name, split)]
        if strange:
            name, word = strange[0]
            yield (
                f"{len({name for name, _ in strange})} files are in the split {split} though their names hold a word "
                f"of another (the first: {name}, which holds {word}); a split's word stands in lower case between "
                "signs, and the first rule that tells a split tells all"
            )


def _other_words(name: str, split: str) -> list[str]:
    """Words of other splits than this that a name holds, however they are written (`TestSet`, `my.Dev.txt`)."""
    own = {one for one, words in KEYWORDS.items() if {one, *words} & set(_words(split))}
    found = _words(name)
    return [w for one, told in KEYWORDS.items() if one not in own for w in found if w.removesuffix("set") in told]


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def wanted(found: Mapping[str, list[str]], dataset: TextConfig, where: str) -> tuple[list[str], list[str]]:
    """The files of the splits for training and validation (none: it is held out). Raises UserError."""
    for field, split in (("trainSplit", dataset.train_split), ("validationSplit", dataset.validation_split)):
        if split is not None and not found.get(split):
            known = ", ".join(name for name, files in found.items() if files) or "none"
            raise UserError(f"{where} has no split {split}; set dataset.{field} to one of its splits: {known}")
    validation = dataset.validation_split or "validation"
    train, held = found[dataset.train_split], found.get(validation, [])
    if validation == dataset.train_split:
        return train, []
    both = next((name for name in train if name in set(held)), None)
    if both is not None:
        raise UserError(
            f"{where}: {both} tells two splits by its name, {dataset.train_split} and {validation}, and what "
            "is trained on can't be validated on; rename it, or name others in dataset.trainSplit and validationSplit"
        )
    return train, held
