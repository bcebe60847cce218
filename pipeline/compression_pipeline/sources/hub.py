"""Sources on the Hugging Face Hub (`hf://owner/name`), or on a mirror that HF_ENDPOINT names.

Only files are taken: no code of a repository is ever run. The token comes from HF_TOKEN alone.
"""

import hashlib
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from compression_pipeline.config import TextConfig
from compression_pipeline.config.schemes import Role
from compression_pipeline.config.schemes.hub import ENDPOINT_VARIABLE, HubScheme
from compression_pipeline.errors import PhaseError, TransientError, UserError, causes, disk_full
from compression_pipeline.huggingface.terms import CARD
from compression_pipeline.redaction import Redactor
from compression_pipeline.store.files import sha256
from compression_pipeline.store.published import Asked
from compression_pipeline.text.files import FORMATS, is_text

from . import checkpoint, corpus, readme, splits
from .base import Offline, Place, SourceFile, Splits, Unreachable
from .token import hub_token

PARQUET_BRANCH = "refs/convert/parquet"
"""Where the Hub keeps Parquet files that it made of a dataset of any layout, as <config>/<split>/<n>.parquet."""

DOWNLOADS = 4
RESUMES = 10
"""How often a broken download is taken up again before the attempt fails; the next attempt goes on from there, too."""

PROGRESS_SECONDS = 2.0

_QUERY = re.compile(r"\?[^\s'\")?]*=[^\s'\")]*")


class HubSource:
    """A repository at a commit."""

    def __init__(self, place: Place) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # progress is told as events
        self._place = place
        self._repo = place.without_prefix
        self._where = f"{place.field}: {place.source}"
        self._redactor = Redactor.of()
        self._token = hub_token(os.environ, on_cluster=place.on_cluster)
        self._endpoint = HubScheme().address(os.environ)
        # False: a token that lies on this machine for someone else's use is left alone.
        self._api = HfApi(endpoint=self._endpoint, token=self._token or False)
        self._kind: Role = "model"
        self._commit: str | None = None
        self._asked: str | None = None  # the commit of what was asked for, where files come from the Hub's own branch

    @property
    def private(self) -> bool:
        return True

    @property
    def revision(self) -> str | None:
        return self._commit

    def model_files(self) -> tuple[SourceFile, ...]:
        self._kind = "model"
        listed = self._list(self._place.revision)
        chosen = checkpoint.select(listed, lambda name: self.fetch([listed[name]])[0].read_bytes(), self._where)
        return tuple(listed[name] for name in chosen)

    def text_files(self, dataset: TextConfig) -> Splits:
        self._kind = "dataset"
        listed = self._list(self._place.revision)
        found = self._by_readme(listed, dataset) or self._by_folder(listed, dataset)
        if found is None:
            listed, found = self._converted(listed, dataset)
        train, validation = splits.wanted(found, dataset, self._where)
        wrong = next((name for name in [*train, *validation] if not is_text(name)), None)
        if wrong is not None:
            raise UserError(f"{self._where}: {wrong} is of an unsupported type; give one of {', '.join(FORMATS)}")
        return Splits(tuple(listed[name] for name in train), tuple(listed[name] for name in validation))

    def missing_bytes(self, files: Sequence[SourceFile]) -> int:
        # The cache names a file by its digest; what has come of one that was broken off has another ending.
        blobs = [self._blobs / name for file in files for name in (file.digest, f"{file.digest}.incomplete")]
        return max(0, sum(file.size for file in files) - sum(map(_size, blobs)))

    def fetch(self, files: Sequence[SourceFile]) -> list[Path]:
        """Into the store's cache, several at a time. What earlier attempts got is kept, half a file is gone on with."""
        if not files:
            return []
        with self._faults_in_words():
            pool = ThreadPoolExecutor(DOWNLOADS)
            try:
                futures = [pool.submit(self._download, file) for file in files]
                self._watch(files, futures)
                return [future.result() for future in futures]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def open(self, path: Path) -> BufferedReader:
        return path.open("rb")

    def name_of(self, file: SourceFile) -> str:
        return f"{self._place.source}/{file.name}"

    def watched(self) -> None:
        return

    def asked(self) -> Asked:
        return Asked(
            scheme=HubScheme.prefix,
            endpoint=self._endpoint,
            revision=self._place.revision,
            commit=self._asked or self._commit,
        )

    def _list(self, revision: str | None) -> dict[str, SourceFile]:
        """Every file of the repository at a revision, which is resolved to its commit."""
        from huggingface_hub.hf_api import RepoFile

        with self._faults_in_words(revision):
            self._commit = self._api.repo_info(self._repo, repo_type=self._kind, revision=revision).sha
            tree = self._api.list_repo_tree(
                self._repo, repo_type=self._kind, revision=self._commit, recursive=True, expand=False
            )
            return {
                entry.path: SourceFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
                for entry in tree
                if isinstance(entry, RepoFile)
            }

    def _by_readme(self, listed: dict[str, SourceFile], dataset: TextConfig) -> dict[str, list[str]] | None:
        if CARD not in listed:
            return None
        text = self.fetch([listed[CARD]])[0].read_text(encoding="utf-8", errors="replace")
        found = readme.files_of(readme.header(text, self._where), listed, dataset, self._where)
        return None if found is None or readme.unreadable(found, dataset) else found

    def _by_folder(self, listed: dict[str, SourceFile], dataset: TextConfig) -> dict[str, list[str]] | None:
        """By the names of the data files themselves; a configuration is a folder."""
        folder = f"{dataset.config}/" if dataset.config is not None else ""
        names = [
            name.removeprefix(folder)
            for name in listed
            if name.startswith(folder) and is_text(name) and not any(part.startswith(".") for part in name.split("/"))
        ]
        scripted = f"{self._repo.rsplit('/', 1)[-1]}.py" in listed  # only its script knows what the files are
        if scripted or not names:
            return None
        left = corpus.beside(names)
        kept = [name for name in names if name not in left]
        found = splits.by_name(kept, _named(dataset))
        warnings = [
            *corpus.warnings(left, {name: listed[folder + name].size for name in kept}),
            *splits.warnings(kept, found, dataset),
        ]
        for warning in warnings:
            self._place.context.events.warning(f"{self._where}: {warning}")
        return {split: [folder + name for name in files] for split, files in found.items()}

    def _converted(
        self, original: dict[str, SourceFile], dataset: TextConfig
    ) -> tuple[dict[str, SourceFile], dict[str, list[str]]]:
        self._asked = self._commit
        try:
            listed = self._list(PARQUET_BRANCH)
        except UserError as error:
            kinds = sorted({Path(name).suffix for name in original if not name.startswith(".")} - {"", ".md"})
            inside = f" in folder {dataset.config}" if dataset.config else ""
            raise UserError(
                f"{self._where} has no files of a supported type{inside} (it has {', '.join(kinds) or 'none at all'}) "
                f"and the Hub made no Parquet files of it; give one with {', '.join(FORMATS)}"
            ) from error
        if self._place.revision is not None:
            self._place.context.events.warning(
                f"{self._where}: the files are those that the Hub made of the dataset as it is now; dataset.revision "
                "does not pin them"
            )
        configs = sorted({name.split("/")[0] for name in listed if name.count("/") == 2})
        chosen = splits.choose(configs, dataset.config, self._where)
        found: dict[str, list[str]] = {}
        for name in sorted(listed):
            parts = name.split("/")
            if len(parts) == 3 and parts[0] == chosen and is_text(name):
                found.setdefault(parts[1].removeprefix("partial-"), []).append(name)
        return listed, found

    def _download(self, file: SourceFile) -> Path:
        """One file, whole: its content is held against the digest that the Hub told."""
        for force in (False, True):
            path = self._fetch_file(file, force=force)
            if _digest(path, file) == file.digest:
                return path
        raise TransientError(f"{self._where}: {file.name} arrived damaged twice; try again")

    def _fetch_file(self, file: SourceFile, *, force: bool) -> Path:
        """One file, into the cache. A connection that breaks is taken up again where it broke."""
        import requests
        from huggingface_hub import hf_hub_download

        for attempt in range(RESUMES + 1):
            try:
                return Path(
                    hf_hub_download(
                        self._repo,
                        file.name,
                        repo_type=self._kind,
                        revision=self._commit,
                        cache_dir=self._place.cache,
                        endpoint=self._endpoint,
                        token=self._token or False,
                        force_download=force and attempt == 0,
                    )
                )
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                # The client resumes after some faults itself, but not after a body that ends too soon.
                if attempt == RESUMES or self._place.context.stop_requested():
                    raise
                time.sleep(min(2**attempt, 10))
        raise AssertionError("the last attempt returns or raises")

    def _watch(self, files: Sequence[SourceFile], futures: Sequence["Future[Path]"]) -> None:
        """Wait for the downloads; say how far they are, and stop when told to."""
        context, total, start = self._place.context, sum(file.size for file in files), time.monotonic()
        before, said = None, time.monotonic()
        while True:
            _, missing = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
            if not missing or any(f.done() and f.exception() for f in futures):
                return
            context.stop_if_requested()
            if time.monotonic() - said < PROGRESS_SECONDS:
                continue
            said = time.monotonic()
            done = sum(f.size for f, one in zip(files, futures, strict=True) if one.done())
            done = min(total, done + sum(map(_size, self._blobs.glob("*.incomplete"))))
            before = done if before is None else before
            rate = (done - before) / max(said - start, 1e-9)
            eta = (total - done) / rate if rate > 0 else None
            context.events.progress(done, total, unit="bytes", eta_seconds=eta, doing=f"download {self._place.source}")

    @contextmanager
    def _faults_in_words(self, revision: str | None = None) -> Iterator[None]:
        """Turn what the Hub's client raises into sentences."""
        try:
            yield
        except PhaseError:
            raise
        except Exception as error:
            if disk_full(error):
                raise
            fault = self._sentence(error, revision)
            raise type(fault)(self._redactor.text(str(fault))) from error

    def _sentence(self, error: Exception, revision: str | None) -> PhaseError:
        import requests
        from huggingface_hub import errors

        response: Any = getattr(error, "response", None)
        status = response.status_code if response is not None else None
        asked = "the token in HF_TOKEN" if self._token else "no token (set secretRef)"
        block = self._place.field.rpartition(".")[0]
        if isinstance(error, errors.GatedRepoError) or (
            status == 403 and not isinstance(error, errors.EntryNotFoundError)
        ):
            return UserError(
                f"{self._where} is gated ({status}): ask for access at {self._endpoint}/{self._web_path()}, and set "
                f"spec.teacher.secretRef to a token that has it; this was asked with {asked}"
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
            refused = f"was refused ({status})" if status == 401 else f"was not found ({status})"
            return UserError(
                f"{self._where} {refused}: there is no such {self._kind} at {self._endpoint}, or it is private; "
                f"correct the name, or set spec.teacher.secretRef to a token that may read it; this was asked with "
                f"{asked}"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return UserError(f"{self._where} has no revision {revision}; correct {block}.revision")
        wrong = requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema
        if isinstance(error, wrong):
            return UserError(f"{self._where}: {ENDPOINT_VARIABLE} is no address of a server; write https://host")
        if isinstance(error, errors.HFValidationError):
            return UserError(f"{self._where} is no name of a repository; write hf://owner/name")
        if isinstance(error, errors.OfflineModeIsEnabled):
            return Offline(f"{self._where} can't be read while HF_HUB_OFFLINE is set; unset it for prepare")
        if isinstance(error, errors.EntryNotFoundError) and status == 404:
            return UserError(f"{self._where} lost a file while it was read ({_line(error)}); try again")
        if status is not None:
            return Unreachable(f"{self._where}: {self._endpoint} answered {status}; try again later")
        if isinstance(error, (requests.RequestException, errors.LocalEntryNotFoundError, OSError)):
            # For who reads the log: the client's own words.
            sys.stderr.write(self._redactor.text(_QUERY.sub("?...", f"{error!r}\n")))
            host = urlsplit(self._endpoint).netloc.rpartition("@")[2] or self._endpoint
            return Unreachable(f"{self._where}: {host} can't be reached: {_obstacle(error)}")
        return TransientError(f"{self._where}: {type(error).__name__}: {_line(error)}")

    @property
    def _blobs(self) -> Path:
        """Where the cache keeps the repository's files."""
        return self._place.download(self._kind) / "blobs"

    def _web_path(self) -> str:
        return f"datasets/{self._repo}" if self._kind == "dataset" else self._repo


def _named(dataset: TextConfig) -> list[str]:
    return [name for name in (dataset.train_split, dataset.validation_split) if name]


def _size(path: Path) -> int:
    """Bytes of a file; 0 where it is not there. That of a download gets another name when it is whole."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _digest(path: Path, file: SourceFile) -> str:
    """The file's digest, of the kind that the Hub told: SHA-256 of large files, git's SHA-1 of small ones."""
    if len(file.digest) == 64:
        return sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _obstacle(error: Exception) -> str:
    """Why a server can't be reached, from what the sockets said."""
    import requests

    chain = causes(error)
    if any(isinstance(one, socket.gaierror) for one in chain):
        return "its name cannot be resolved (is the network up?)"
    if any(isinstance(one, ConnectionRefusedError) for one in chain):
        return "it refuses the connection (is HF_ENDPOINT right?)"
    if any(isinstance(one, (TimeoutError, requests.Timeout)) for one in chain):
        return "it does not answer in time (is the network up?)"
    if (refused := next((one for one in chain if isinstance(one, ssl.SSLError)), None)) is not None:
        return f"its certificate is not accepted ({refused.reason or 'TLS failed'}); set REQUESTS_CA_BUNDLE"
    if any(isinstance(one, requests.exceptions.ProxyError) for one in chain):
        return "the proxy does not let it through (is HTTPS_PROXY right?)"
    said = next((one.strerror for one in reversed(chain) if isinstance(one, OSError) and one.strerror), None)
    return f"{said or 'the connection broke'} (is the network up?)"


def _line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # Links to content are signed: what follows the question mark would open it to every reader of a log.
    return _QUERY.sub("?...", line)[:300]
