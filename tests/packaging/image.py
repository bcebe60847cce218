"""Builds the operator's image as images/operator says, without a registry: `python -m tests.packaging.image`.

Wheels are fetched by the machine's own pip (its index, its certificates) into a folder that the build mounts, so
nothing of the machine's configuration gets near the image. Every result lies in the cache under a hash of its inputs.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.paths import REPOSITORY, locked
from tests.packaging.base import PYTHON, CannotBuild, base_layer, folder, require_tools

OPERATOR = "localhost/compression-operator:test"
"""Name of the operator's image once its archive is imported."""

_CONTAINERFILE = "images/operator/Containerfile"
_IGNORED = "images/operator/Containerfile.dockerignore"
_REQUIREMENTS = "requirements/operator.txt"
_PACKAGES = ("operator/compression_operator", "pipeline/compression_pipeline")

_KEPT = 3
"""Images of one kind that stay in the cache."""


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


def operator_image(say: Callable[[str], None] = _say) -> Path:
    """The operator's image as a docker-archive, built where its inputs are new. Raises CannotBuild."""
    require_tools(say)
    base = base_layer(say)
    with locked("images"), tempfile.TemporaryDirectory(prefix="operator-", dir=folder()) as draft:
        # A copy, for the sources may be edited while they are built.
        context = _context(Path(draft) / "context")
        target = folder() / f"operator-{_key(context, base)}.tar"
        if not target.exists():
            build(context, Path(draft) / "image.tar", say)
            if not context_of(target).exists():
                context.rename(context_of(target))
            (Path(draft) / "image.tar").rename(target)
            _forget("operator")
        os.utime(target)
    return target


def context_of(image: Path) -> Path:
    """What an image in the cache was built from."""
    return image.with_suffix("")


def build(context: Path, target: Path, say: Callable[[str], None] = _say) -> None:
    """Build the operator's image from a copy of what it is made of. Raises CannotBuild."""
    base, wheels = base_layer(say), _wheels(context / _REQUIREMENTS, say)
    say(f"building {OPERATOR}")
    with _storage() as buildah:
        container = buildah("from", "scratch").strip()
        buildah("add", "--quiet", container, str(base), "/")
        plain = ["--quiet", "--identity-label=false", "--timestamp=0"]
        buildah("commit", *plain, "--rm", container, "localhost/base:test")
        buildah(
            "build",
            *plain,
            "--isolation=chroot",
            "--network=host",  # chroot knows no other; pip is told not to ask anybody
            "--pull-never",
            "--layers=false",
            f"--file={context / _CONTAINERFILE}",
            f"--ignorefile={context / _IGNORED}",
            f"--volume={wheels}:/wheels:ro",
            "--build-arg=BASE_IMAGE=localhost/base:test",
            "--build-arg=PIP_NO_INDEX=1",
            "--build-arg=PIP_FIND_LINKS=/wheels",
            f"--tag={OPERATOR}",
            str(context),
        )
        buildah("push", "--quiet", OPERATOR, f"docker-archive:{target}:{OPERATOR}")


def _context(target: Path) -> Path:
    """A copy of all that the operator's image is made of."""
    for path in (_CONTAINERFILE, _IGNORED, _REQUIREMENTS):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / path, target / path)
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


def _wheels(requirements: Path, say: Callable[[str], None]) -> Path:
    """A folder with the wheels of a lock file, each held against its hash."""
    key = _digest([PYTHON, os.uname().machine], {requirements.name: requirements})
    target = folder() / f"wheels-{key}"
    if target.is_dir():
        return target
    say(f"fetching the wheels of {requirements.name}")
    with tempfile.TemporaryDirectory(prefix="wheels-", dir=folder()) as name:
        tools, draft = Path(name) / "tools", Path(name) / "wheels"
        # The project's environment has no pip.
        subprocess.run([sys.executable, "-m", "venv", tools], check=True, capture_output=True)
        command = [tools / "bin" / "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
        command += ["--only-binary=:all:", f"--python-version={PYTHON}", f"--dest={draft}"]
        done = subprocess.run([*command, f"--requirement={requirements}"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuild(f"pip could not fetch the wheels of {requirements.name}: {done.stderr.strip()[-2000:]}")
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


def main() -> int:
    try:
        path = operator_image(_say)
    except CannotBuild as error:
        _say(f"error: {error}")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
