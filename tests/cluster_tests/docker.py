"""`docker build` and `docker save` for the commands that README shows, where there is no docker and no registry.

The images are those of tests.packaging.image, built as images/ says; what `--build-arg` gives must be an ARG of the
file. `python docker.py FOLDER build|save ...`: FOLDER remembers which archive has which name.
"""

import argparse
import io
import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.cluster.paths import REPOSITORY
from tests.packaging.image import KINDS, image


def build(folder: Path, file: str, tag: str, arguments: list[str]) -> None:
    """Build an image and remember its name."""
    given = {argument.partition("=")[0] for argument in arguments}
    taken = set(re.findall(r"(?m)^ARG ([A-Z_]+)", (REPOSITORY / file).read_text()))
    if given - taken:
        raise SystemExit(f"{file} has no ARG {', '.join(sorted(given - taken))}")
    archive = image(KINDS[Path(file).parent.name])
    (folder / "images.json").write_text(json.dumps(_known(folder) | {tag: str(archive)}))


def save(folder: Path, output: Path, tags: list[str]) -> None:
    """Write images into one docker-archive, under the names that they were built by."""
    manifests: list[dict[str, Any]] = []
    with tarfile.open(output, "w") as target:
        written: set[str] = set()
        for tag in tags:
            with tarfile.open(_known(folder)[tag]) as archive:
                (manifest,) = json.load(archive.extractfile("manifest.json"))  # pyright: ignore[reportArgumentType] - it is a file
                manifests.append(manifest | {"RepoTags": [tag]})
                for name in (manifest["Config"], *manifest["Layers"]):
                    if name not in written:
                        target.addfile(archive.getmember(name), archive.extractfile(name))
                        written.add(name)
        content = json.dumps(manifests).encode()
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(content)
        target.addfile(entry, io.BytesIO(content))


def _known(folder: Path) -> dict[str, str]:
    file = folder / "images.json"
    return json.loads(file.read_text()) if file.exists() else {}


def main(folder: Path, words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="docker")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build")
    building.add_argument("-f", dest="file", required=True)
    building.add_argument("-t", dest="tag", required=True)
    building.add_argument("--build-arg", dest="arguments", action="append", default=[])
    building.add_argument("context", choices=["."])
    saving = commands.add_parser("save")
    saving.add_argument("--output", type=Path, required=True)
    saving.add_argument("tags", nargs="+")
    given = parser.parse_args(words)
    if given.command == "build":
        build(folder, given.file, given.tag, given.arguments)
    else:
        save(folder, given.output, given.tags)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
