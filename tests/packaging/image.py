"""Builds the images as images/ says, without a registry: `python -m tests.packaging.image [operator|pipeline]`.

The pipeline's is built without the packages of several gigabytes, as on a base that provides them: a stub stands there
for torch.

Wheels are fetched by the machine's own pip (its index, its certificates) into a folder that the build mounts, so
nothing of the machine's configuration gets near the image. Every result lies in the cache under a hash of its inputs.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.paths import REPOSITORY, locked
from tests.packaging.base import PYTHON, CannotBuild, base_layer, folder, require_tools

OPERATOR = "localhost/compression-operator:test"
"""Name of the operator's image once its archive is imported."""

PIPELINE = "localhost/compression-pipeline:test"

_PACKAGES = ("operator/compression_operator", "pipeline/compression_pipeline")
_STUB = "/usr/lib/python3/dist-packages/torch"


@dataclass(frozen=True)
class Kind:
    """One of the two images."""

    folder: str  # in images/, and the lock file's name
    tag: str
    further: tuple[str, ...] = ()  # files that it alone is made of

    @property
    def containerfile(self) -> str:
        return f"images/{self.folder}/Containerfile"

    @property
    def requirements(self) -> str:
        return f"requirements/{self.folder}.txt"

    @property
    def files(self) -> tuple[str, ...]:
        """What it is made of, the packages aside."""
        ignored = f"{self.containerfile}.dockerignore"
        return (self.containerfile, ignored, self.requirements, "images/compression", *self.further)


_OPERATOR = Kind("operator", OPERATOR)
_PIPELINE = Kind("pipeline", PIPELINE, ("images/pipeline/without.awk",))
KINDS = {kind.folder: kind for kind in (_OPERATOR, _PIPELINE)}

_KEPT = 3
"""Images of one kind that stay in the cache."""


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


def operator_image(say: Callable[[str], None] = _say) -> Path:
    """The operator's image as a docker-archive, built where its inputs are new. Raises CannotBuild."""
    return image(_OPERATOR, say)


def image(kind: Kind, say: Callable[[str], None] = _say) -> Path:
    """One of the images as a docker-archive, built where its inputs are new. Raises CannotBuild."""
    require_tools(say)
    base = base_layer(say)
    with locked("images"), tempfile.TemporaryDirectory(prefix=f"{kind.folder}-", dir=folder()) as draft:
        # A copy, for the sources may be edited while they are built.
        context = _context(kind, Path(draft) / "context")
        target = folder() / f"{kind.folder}-{_key(context, base)}.tar"
        if not target.exists():
            build(kind, context, Path(draft) / "image.tar", say)
            if not context_of(target).exists():
                context.rename(context_of(target))
            (Path(draft) / "image.tar").rename(target)
            _forget(kind.folder)
        os.utime(target)
    return target


def context_of(image: Path) -> Path:
    """What an image in the cache was built from."""
    return image.with_suffix("")


def build(kind: Kind, context: Path, target: Path, say: Callable[[str], None] = _say) -> None:
    """Build an image from a copy of what it is made of. Raises CannotBuild."""
    provided = _provided(context) if kind is _PIPELINE else ""
    base, wheels = base_layer(say), _wheels(kind, context, provided, say)
    say(f"building {kind.tag}")
    with _storage() as buildah:
        container = buildah("from", "scratch").strip()
        buildah("add", "--quiet", container, str(base), "/")
        if kind is _PIPELINE:
            # This machine's Python, which pods get in place of the heavy packages, may lie in root's home.
            stub = f"mkdir -p {_STUB} && touch {_STUB}/__init__.py && chmod 755 /root"
            buildah("run", "--isolation=chroot", container, "sh", "-c", stub)
        plain = ["--quiet", "--identity-label=false", "--timestamp=0"]
        buildah("commit", *plain, "--rm", container, "localhost/base:test")
        buildah(
            "build",
            *plain,
            "--isolation=chroot",
            "--network=host",  # chroot knows no other; pip is told not to ask anybody
            "--pull-never",
            "--layers=false",
            f"--file={context / kind.containerfile}",
            f"--ignorefile={context / kind.containerfile}.dockerignore",
            f"--volume={wheels}:/wheels:ro",
            "--build-arg=BASE_IMAGE=localhost/base:test",
            "--build-arg=PIP_NO_INDEX=1",
            "--build-arg=PIP_FIND_LINKS=/wheels",
            *([f"--build-arg=PROVIDED={provided}"] if provided else []),
            f"--tag={kind.tag}",
            str(context),
        )
        buildah("push", "--quiet", kind.tag, f"docker-archive:{target}:{kind.tag}")


def _context(kind: Kind, target: Path) -> Path:
    """A copy of all that an image is made of; the pipeline's has the operator's lock, too, to tell what is heavy."""
    for path in (*kind.files, _OPERATOR.requirements):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / path, target / path)
    for path in _PACKAGES:
        shutil.copytree(REPOSITORY / path, target / path, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def _key(context: Path, base: Path) -> str:
    """Twelve hexadecimal digits over all that goes into the image, and how it is built."""
    files = sorted(path for path in context.rglob("*") if path.is_file())
    named = {str(file.relative_to(context)): file for file in files}
    return _digest([base.name], named | {"image.py": Path(__file__)})


@contextmanager
def _storage() -> Iterator[Callable[..., str]]:
    """buildah with a storage of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="storage-", dir=folder()) as name:
        places = [f"--root={name}/root", f"--runroot={name}/run"]

        def buildah(*arguments: str) -> str:
            done = subprocess.run(["buildah", *places, *arguments], capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stdout + done.stderr).strip()
                raise CannotBuild(f"buildah {arguments[0]} failed: {said[-2000:]}")
            return done.stdout

        try:
            yield buildah
        finally:
            for kind in ("--containers", "--images"):
                command = ["rm", "--all"] if kind == "--containers" else ["rmi", "--all", "--force"]
                subprocess.run(["buildah", *places, *command], capture_output=True, check=False)


def _provided(context: Path) -> str:
    """The packages of the pipeline's lock that the operator's has not, as the Containerfile takes them."""
    pipeline, operator = (
        set(re.findall(r"^([A-Za-z0-9][^= ]*)==", (context / kind.requirements).read_text(), re.MULTILINE))
        for kind in (_PIPELINE, _OPERATOR)
    )
    return "|".join(sorted(pipeline - operator))


def _wheels(kind: Kind, context: Path, provided: str, say: Callable[[str], None]) -> Path:
    """A folder with the wheels of a lock file, each held against its hash."""
    lock = context / kind.requirements
    key = _digest([PYTHON, os.uname().machine, provided], {lock.name: lock})
    target = folder() / f"wheels-{key}"
    if target.is_dir():
        return target
    say(f"fetching the wheels of {lock.name}")
    with tempfile.TemporaryDirectory(prefix="wheels-", dir=folder()) as name:
        tools, draft, requirements = Path(name) / "tools", Path(name) / "wheels", Path(name) / "requirements.txt"
        without = ["awk", "-v", f"provided={provided}", "-f", REPOSITORY / "images" / "pipeline" / "without.awk", lock]
        requirements.write_bytes(subprocess.run(without, capture_output=True, check=True).stdout)
        # The project's environment has no pip.
        subprocess.run([sys.executable, "-m", "venv", tools], check=True, capture_output=True)
        command = [tools / "bin" / "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
        command += ["--only-binary=:all:", f"--python-version={PYTHON}", f"--dest={draft}"]
        done = subprocess.run([*command, f"--requirement={requirements}"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuild(f"pip could not fetch the wheels of {lock.name}: {done.stderr.strip()[-2000:]}")
        draft.rename(target)
    return target


def _digest(words: Iterable[str], files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for name, file in files.items():
        digest.update(f"\0{name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _forget(name: str) -> None:
    """Remove the images of one kind that have not been asked for longest."""
    newest = sorted(folder().glob(f"{name}-*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in newest[_KEPT:]:
        old.unlink()
        shutil.rmtree(context_of(old), ignore_errors=True)


def main(arguments: list[str]) -> int:
    try:
        path = image(KINDS[arguments[0]] if arguments else _OPERATOR, _say)
    except CannotBuild as error:
        _say(f"error: {error}")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
