"""Which files a source may read: on a cluster, whoever may write a volume could else have a job read the job's own."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from compression_pipeline.errors import UserError
from compression_pipeline.untrusted_files import kernels, open_once


class Bounds:
    """Where the files of a source may really lie."""

    def __init__(self, where: str, folder: Path, *, volume: Path | None, named: bool) -> None:
        """`volume`: the mounted claim that files must not lead out of; None: a user's own links may lead anywhere.

        `named`: the file itself was named, else a folder that files are taken from.
        """
        self._where = where
        self._within: list[list[Path]] = []  # a file lies in one folder of each
        if volume:
            base = folder.resolve()
            # In a cache of the Hub, what a snapshot names are links to the repository's blobs.
            blobs = [above.parent / "blobs" for above in (base, *base.parents) if above.name == "snapshots"]
            self._within = [[volume.resolve()], *([] if named else [[base, *blobs]])]

    def check(self, path: Path) -> None:
        """Raises UserError where this is no regular file, or leads to where it must not."""
        try:
            real = path.resolve(strict=True)
            mode = real.stat().st_mode
        except (FileNotFoundError, RuntimeError) as error:
            raise UserError(f"{self._where}: {path} is a link that leads nowhere; remove it") from error
        self._judge(path, real, mode)

    def open(self, path: Path) -> BufferedReader:
        """The file to read: what is opened is what was checked, whatever comes of the path. Raises UserError."""
        self.check(path)  # opening a device may do something
        file, real = open_once(path)
        try:
            self._judge(path, real, os.fstat(file.fileno()).st_mode)
        except BaseException:
            file.close()
            raise
        return file

    def _judge(self, path: Path, real: Path, mode: int) -> None:
        if not stat.S_ISREG(mode):
            raise UserError(f"{self._where}: {path} is no regular file (a pipe, a socket or a device); remove it")
        if kernels(real):
            raise UserError(
                f"{self._where}: {path} is a link into {Path(*real.parts[:2])}, which is no text; remove it"
            )
        if not all(any(map(real.is_relative_to, folders)) for folders in self._within):
            raise UserError(
                f"{self._where}: {path} is a link that leads out of the source ({real}), which no job on a cluster "
                "follows; copy the file, or name the folder where it lies"
            )
