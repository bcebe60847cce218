"""The teacher's part of prepare: `model/`, made of what its source holds.

Whoever may write the source's volume may exchange a file at any time. So each small file is copied once, from the file
that was checked as it was opened, and only the copies are read from then on. Weights are too large to be copied before
they are known to be sound: each look at them opens them anew, checked, and what is copied at last has the digest that
the key was made of.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path

from compression_pipeline.artifact import Draft
from compression_pipeline.config import Architecture
from compression_pipeline.config.schemes import scheme_of
from compression_pipeline.context import Context
from compression_pipeline.errors import TransientError, UserError
from compression_pipeline.huggingface import tokenizer
from compression_pipeline.huggingface.files import CONFIG, GENERATION_CONFIG, inspect, read_json, write_json
from compression_pipeline.huggingface.generation import settle
from compression_pipeline.huggingface.values import check_values
from compression_pipeline.sources import Source, SourceFile
from compression_pipeline.store.files import link
from compression_pipeline.text.tokenizer import TeacherTokenizer

WEIGHTS = ".safetensors"
"""The ending of the files that are no small ones."""

_CHUNK = 8 * 1024**2


class Teacher:
    """A teacher on its way into a draft: first what it is, at last its weights."""

    def __init__(self, source: Source, files: Sequence[SourceFile], name: str, draft: Draft, context: Context) -> None:
        """Fetches the files, copies the small ones, and looks at all of them.

        `name`: the source as the manifest names it. Raises PhaseError where the checkpoint can't be used.
        """
        self._source = source
        self._draft = draft
        self._context = context
        paths = dict(zip(files, source.fetch(files), strict=True))
        original = next((path.parent for file, path in paths.items() if file.name == CONFIG), None)
        if original is None:
            raise UserError(f"spec.teacher.model: {name} has no {CONFIG}; name a Hugging Face checkpoint")
        # A download lies in a cache whose path says nothing to a person.
        self._called = name if scheme_of(name).downloads else str(original)
        self.folder = draft.path / "model"
        self.folder.mkdir()
        self._weights = {file: path for file, path in paths.items() if file.name.endswith(WEIGHTS)}
        for file in files:
            context.stop_if_requested()
            if file not in self._weights:
                _copy(source.open(paths[file]), self._place(file), file)
        with self._faults_named():
            self.architecture, self.tokenizer = self._look()

    def copy_weights(self) -> None:
        """Complete the folder. Raises PhaseError where the source has changed meanwhile."""
        for file, path in self._weights.items():
            self._context.stop_if_requested()
            target = self._place(file)
            if self._source.private and link(path.resolve(), target):
                found = file.digest if len(file.digest) == 64 else None
            else:
                found = _copy(self._source.open(path), target, file)
            if found is not None:
                self._draft.hashed(target, found)
        with self._faults_named():
            inspect(self.folder)

    def _place(self, file: SourceFile) -> Path:
        """Where a file goes, in a folder that is there."""
        place = self.folder / file.name
        place.parent.mkdir(exist_ok=True, parents=True)
        return place

    def _look(self) -> tuple[Architecture, TeacherTokenizer]:
        """Check everything, and write anew what plain transformers could not use as it is."""
        elsewhere = {file.name: partial(self._source.open, path) for file, path in self._weights.items()}
        whole = inspect(self.folder, elsewhere)
        check_values(whole, self._context)
        rows = whole.architecture.vocabulary_size
        loaded = tokenizer.load(self.folder, rows)
        generates = self.folder / GENERATION_CONFIG
        given = read_json(generates) if generates.is_file() else None
        settled = settle(whole.normalized(), given, loaded.tokenizer, rows, str(self.folder))
        for said in (*([loaded.changes] if loaded.config is not None else []), *settled.said):
            self._context.events.warning(f"spec.teacher.model: {self._named(said)}")
        write_json(self.folder / CONFIG, settled.config)
        if loaded.config is not None:
            write_json(self.folder / tokenizer.CONFIG, loaded.config)
        if settled.generation is not None and settled.generation != given:
            write_json(generates, settled.generation)
        return whole.architecture, loaded.tokenizer

    @contextmanager
    def _faults_named(self) -> Iterator[None]:
        """Faults of the teacher's files, as of `spec.teacher.model`."""
        try:
            yield
        except UserError as error:
            if str(error).startswith("spec.teacher.model"):  # of the source, which knows its field
                raise
            raise UserError(f"spec.teacher.model: {self._named(str(error))}") from None

    def _named(self, said: str) -> str:
        return said.replace(str(self.folder), self._called)


def _copy(original: BufferedReader, target: Path, file: SourceFile) -> str:
    """Copy a file into the draft; its SHA-256."""
    found = hashlib.sha256()
    with original as source, target.open("wb") as copy:
        while piece := source.read(_CHUNK):
            copy.write(piece)
            found.update(piece)
    if len(file.digest) == 64 and found.hexdigest() != file.digest:
        raise TransientError(f"{file.name} changed while it was read; try again")
    return found.hexdigest()
