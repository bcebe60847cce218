"""A pipeline image of a few megabytes: this machine's Python, the modules that the stand-in needs, and the stand-in.

`python -m compression_pipeline PHASE` in it is tests/operator/support/standin.py, which speaks a job's contract
without torch.
How it behaves stands in `behaviour.json` at the top of the run's store, see there.
"""

import subprocess
import sys
import tarfile
from pathlib import Path

from tests.cluster.images import add_file, add_folder, add_link, write_archive

NAME = "localhost/standin:1"

STANDIN = Path(__file__).parents[1] / "operator" / "support" / "standin.py"

LAUNCHER = """\
import json, os, sys, threading
from pathlib import Path
from compression_pipeline import standin

os.environ.setdefault("COMPRESSION_TERMINATION_MESSAGE", "/dev/termination-log")
store = Path(json.loads(os.environ["COMPRESSION_CONFIG"])["store"])
file = store / "behaviour.json"
job = standin.Job(sys.argv[1], json.loads(file.read_text()) if file.exists() else {})
if os.environ.get("RANK", "0") != "0":
    # Ranks other than the first go along until they are told to stop; "worker" says how they end.
    import signal
    signal.signal(signal.SIGTERM, job.stop)
    ended = job.behaviour.get("worker", {"class": "Done", "message": "", "after": 1})
    if job.stopping.wait(ended["after"]):
        sys.exit(job.end("Interrupted", "worker told to stop"))
    sys.exit(job.end(ended["class"], ended["message"]))
sys.exit(job.run())
"""

# What the stand-in and its start import, found by importing it.
_FIND = """\
import sys, runpy
sys.argv = ["standin"]
import json, os, signal, threading, pathlib, subprocess, datetime, time, typing, runpy, encodings.idna
runpy.run_path({standin!r}, run_name="standin")
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None)
    if file:
        print(file)
"""


def write(target: Path) -> Path:
    """Write the image as a docker-archive."""
    write_archive(target, NAME, ["python"], _fill)
    return target


def _fill(layer: tarfile.TarFile) -> None:
    prefix = Path(sys.base_prefix)
    interpreter = prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = interpreter.resolve()
    found = subprocess.run(
        [interpreter, "-I", "-S", "-c", _FIND.format(standin=str(STANDIN))], capture_output=True, text=True, check=True
    )
    files = {Path(line) for line in found.stdout.splitlines() if line.startswith(str(prefix))}
    # Without this folder Python does not find its prefix.
    files.add(prefix / "lib" / interpreter.name / "os.py")
    folders: set[str] = set()

    def folder(path: str) -> None:
        parts = Path(path).parts
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if name not in folders:
                folders.add(name)
                add_folder(layer, name, 0o1777 if name == "tmp" else 0o755)

    def copy(path: Path, to: str) -> None:
        folder(str(Path(to).parent))
        add_file(layer, to, path.read_bytes(), 0o755)

    for name in ("etc", "tmp", "dev", "proc", "sys", "compression", "usr/local/bin", "usr/local/lib"):
        folder(name)
    add_file(layer, "etc/passwd", b"root:x:0:0:root:/:/\ncompression:x:1000:1000::/:/\n")
    copy(interpreter, f"usr/local/bin/{interpreter.name}")
    add_link(layer, "usr/local/bin/python", interpreter.name)
    for file in sorted(files):
        copy(file, f"usr/local/{file.relative_to(prefix)}")
    for library in _libraries([interpreter, *(file for file in files if file.suffix == ".so")]):
        copy(library, str(library).lstrip("/"))
    packages = f"usr/local/lib/{interpreter.name}/compression_pipeline"
    folder(packages)
    add_file(layer, f"{packages}/__init__.py", b"")
    add_file(layer, f"{packages}/__main__.py", LAUNCHER.encode())
    add_file(layer, f"{packages}/standin.py", STANDIN.read_bytes())


def _libraries(files: list[Path]) -> list[Path]:
    """The shared libraries of these files and the loader, by the names that they are asked for."""
    told = subprocess.run(["ldd", *files], capture_output=True, text=True, check=True).stdout
    words = {word for line in told.splitlines() for word in line.split() if word.startswith("/")}
    return sorted(Path(word) for word in words if not word.endswith(":"))
