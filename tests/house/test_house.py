"""The rules of the house that a machine can check: who imports whom, what is locked, how long a file is."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compression_operator.api.manifest import World, load
from compression_pipeline.config.engines import ENGINES

ROOT = Path(__file__).parents[2]
OPERATOR = ROOT / "operator" / "compression_operator"
PIPELINE = ROOT / "pipeline" / "compression_pipeline"
ENGINES_FOLDERS = [engine.implementation.split(".")[1] for engine in ENGINES.values()]

MAY_IMPORT = {
    "api": (),
    "core": ("api",),
    "joblog": ("api", "core"),
    "kube": ("api", "core"),
    "local": ("api", "core", "joblog"),
    "backends": ("api", "core", "joblog", "kube"),
    "cluster": ("api", "core", "joblog", "kube", "backends"),
    "cli": ("api", "core", "joblog", "kube", "local", "backends"),
}
"""Folders of the operator, and those that each may import beside itself. A new folder needs a line here."""

LONGEST = 400


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(path: Path, package: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, relative ones resolved."""
    here = path.relative_to(package.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def locked(name: str) -> dict[str, str]:
    """Package -> version of a lock file."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = (re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", line) for line in lines)
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def test_no_two_test_files_have_one_name() -> None:
    """Test folders are no packages, so pytest imports their files by name: of two alike it takes none."""
    names = [path.name for path in sources(ROOT / "tests") if path.name not in ("conftest.py", "__init__.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", sources(OPERATOR), ids=lambda path: str(path.relative_to(OPERATOR)))
def test_the_operator_takes_nothing_from_the_pipeline_but_configuration_sizing_and_store(path: Path) -> None:
    light = ("compression_pipeline.config", "compression_pipeline.sizing", "compression_pipeline.store")
    foreign = {
        name
        for name in imported(path, OPERATOR)
        if name.split(".")[0] in ("torch", "megatron", "modelopt", "transformers")
        or (name.startswith("compression_pipeline") and not name.startswith(light))
    }
    assert not foreign


@pytest.mark.parametrize("path", sources(PIPELINE), ids=lambda path: str(path.relative_to(PIPELINE)))
def test_the_pipeline_takes_nothing_from_the_operator(path: Path) -> None:
    assert not [name for name in imported(path, PIPELINE) if name.startswith("compression_operator")]


@pytest.mark.parametrize(
    "path",
    [path for path in sources(PIPELINE) if path.relative_to(PIPELINE).parts[0] not in ENGINES_FOLDERS],
    ids=lambda path: str(path.relative_to(PIPELINE)),
)
def test_what_is_no_part_of_an_engine_imports_none(path: Path) -> None:
    """The table names them by strings. Methods of importance run in Megatron's models, and in its groups of ranks."""
    own = [f"compression_pipeline.{folder}" for folder in ENGINES_FOLDERS]
    engines = (*own, "modelopt", *(["megatron"] if path.parent.name != "importance" else []))
    assert not [name for name in imported(path, PIPELINE) if f"{name}.".startswith(tuple(f"{e}." for e in engines))]


@pytest.mark.parametrize("path", sources(PIPELINE / "megatron"), ids=lambda path: path.name)
def test_private_names_of_megatron_and_modelopt_stand_in_one_module(path: Path) -> None:
    if path.name == "private.py":
        return
    assert not [name for name in imported(path, PIPELINE) if name.startswith("unittest")], "patch in private.py"
    foreign = {
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and re.match(r"_[^_]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    foreign |= {
        name
        for name in imported(path, PIPELINE)
        if name.split(".")[0] in ("megatron", "modelopt", "torch") and "._" in name
    }
    assert not foreign


def test_private_names_are_those_of_the_locked_versions() -> None:
    [pins] = [
        ast.literal_eval(node.value)
        for node in ast.parse((PIPELINE / "megatron" / "private.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PINNED"
    ]
    assert pins == {name: locked("pipeline")[name] for name in pins}


def test_every_module_of_the_operator_has_a_folder() -> None:
    assert {path.name for path in OPERATOR.glob("*.py")} == {"__init__.py", "__main__.py"}
    folders = {path.name for path in OPERATOR.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders == MAY_IMPORT.keys()


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_of_the_operator_run_one_way(folder: str) -> None:
    allowed = {folder, *MAY_IMPORT[folder]}
    upward = {
        f"{path.relative_to(OPERATOR)}: {name}"
        for path in sources(OPERATOR / folder)
        for name in imported(path, OPERATOR)
        if name.startswith("compression_operator.") and name.split(".")[1] not in {*allowed, "__version__"}
    }
    assert not upward


def test_tests_of_the_operator_stand_in_the_folders_of_what_they_test() -> None:
    tests = ROOT / "tests" / "operator"
    assert {path.parent.name for path in tests.rglob("test_*.py")} <= MAY_IMPORT.keys()
    assert not [*tests.glob("*.py")]


def test_what_the_operator_takes_from_the_pipeline_needs_pydantic_alone() -> None:
    code = (
        "import sys, compression_pipeline.config, compression_pipeline.sizing, compression_pipeline.store.watched; "
        "print(*{'torch', 'numpy', 'transformers', 'kopf', 'kubernetes', 'yaml'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_source_roots_are_no_packages() -> None:
    # An operator/__init__.py would shadow Python's own module.
    assert not (OPERATOR.parent / "__init__.py").exists()
    assert not (PIPELINE.parent / "__init__.py").exists()


@pytest.mark.parametrize("name", ["operator", "pipeline", "dev", "uv", "gpu"])
def test_locks_have_hashes_and_no_addresses(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert not re.search(r"https?://|--index|--find-links", text)
    pins = re.findall(r"(?m)^[A-Za-z0-9].*\n.*", text)
    assert len(pins) >= len(locked(name)) > (0 if name == "uv" else 10)
    assert [pin for pin in pins if "--hash=sha256:" not in pin] == []


@pytest.mark.parametrize("path", [ROOT / "Makefile", *sorted(ROOT.glob("images/*/Containerfile"))], ids=str)
def test_whatever_is_installed_from_an_index_is_held_against_its_hash(path: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    commands = [line for line in text.splitlines() if re.search(r"\bpip\b.* (install|sync|download) ", line)]
    assert commands
    # Our own sources come from no index.
    assert not [line for line in commands if "--require-hashes" not in line and "--no-deps" not in line]


def test_the_operator_installs_without_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    heavy = {"torch", "megatron-core", "nvidia-modelopt", "transformers", "numpy"}
    assert not heavy & set(locked("operator"))
    assert not heavy & {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}


@pytest.mark.parametrize(("use", "extra"), [("operator", None), ("pipeline", "pipeline")])
def test_what_is_locked_is_what_the_project_asks_for(use: str, extra: str | None) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    pins = locked(use)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("folder", ["operator", "pipeline", "examples", "benchmarks", "tests"])
def test_files_are_short_enough_to_be_read(folder: str) -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in sources(ROOT / folder)
        if (count := len(path.read_text().splitlines())) > LONGEST
    }
    assert not long


def test_the_readme_names_only_commands_that_exist() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^\$ make ([a-z-]+)", readme))
    assert targets
    assert targets <= set(re.findall(r"(?m)^([a-z-]+):", makefile))


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert page != "README.md" or "SECURITY.md" in links


@pytest.mark.parametrize("world", list(World))
def test_the_readme_s_manifest_is_valid_everywhere(world: World, tmp_path: Path) -> None:
    text = re.search(r"## The manifest\n\n```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert text
    path = tmp_path / "run.yaml"
    path.write_text(text[1])
    assert load(path, world).metadata.name == "llama-8b"


def test_no_example_of_hypothesis_is_judged_by_the_clock() -> None:
    assert settings.default is not None and settings.default.deadline is None


def test_no_phase_is_named_outside_the_tables() -> None:
    """A phase is an entry of PHASES and one of STEPS: what depends on a phase asks one of these what it is like."""
    table = OPERATOR / "core" / "phase_steps.py"
    naming = [
        str(path) for path in sources(OPERATOR) if path != table and re.search(r"\bPhase\.[A-Z]", path.read_text())
    ]
    assert naming == []
