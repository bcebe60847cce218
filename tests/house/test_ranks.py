"""Ranks are computed in `config/layout.py` and nowhere else, and what the job is told of them is read in few places."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "pipeline" / "compression_pipeline"
LAYOUT = PIPELINE / "config" / "layout.py"
SOURCES = [
    path
    for folder in (PIPELINE, ROOT / "operator" / "compression_operator")
    for path in sorted(folder.rglob("*.py"))
    if path != LAYOUT
]

COUNTS = {"nodes", "per_node", "gpus_per_node", "processes_per_node", "world_size"}
TOLD = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
READERS = {"context.py", "worker.py", "launcher/ranks.py", "megatron/runtime.py"}
"""Modules of the pipeline that read or set what torchrun tells a process of its rank."""


def name_of(node: ast.AST) -> str:
    """The last part of a name: `per_node` of `settings.layout.per_node`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def computed_ranks(tree: ast.AST) -> Iterator[int]:
    """Lines that multiply nodes by processes, choose the processes of a node, or share work among all ranks.

    Processors may be shared among the ranks of a node, operations and a list's entries among all ranks.
    """
    for node in ast.walk(tree):
        match node:
            case ast.BinOp(left=left, op=ast.Mult(), right=right) if not isinstance(left, ast.List):
                found = {name_of(left), name_of(right)} & COUNTS
            case ast.BinOp(op=ast.FloorDiv() | ast.Mod(), right=right):
                found = {name_of(right)} & {"nodes", "world_size"}
            case ast.BoolOp(values=values):
                found = {name_of(value) for value in values} & {"gpus_per_node", "processes_per_node"}
            case ast.Call(func=ast.Name(id="range"), args=arguments):
                found = {name_of(argument) for argument in arguments} & COUNTS
            case _:
                continue
        if found:
            yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_computes_ranks(path: Path) -> None:
    allowed = {"gpus_per_node or processes_per_node"} if path.name == "phase_settings.py" else set[str]()
    lines = path.read_text().splitlines()
    found = [f"{line}: {lines[line - 1].strip()}" for line in computed_ranks(ast.parse(path.read_text()))]
    assert [line for line in found if not any(one in line.replace("self.", "") for one in allowed)] == []


def test_few_modules_read_what_torchrun_tells() -> None:
    def reads(path: Path) -> bool:
        nodes = ast.walk(ast.parse(path.read_text()))
        return any(isinstance(node, ast.Constant) and node.value in TOLD for node in nodes)

    assert {str(path.relative_to(PIPELINE)) for path in PIPELINE.rglob("*.py") if reads(path)} == READERS


@pytest.mark.parametrize("code", [
    "settings.nodes * (settings.gpus_per_node or settings.processes_per_node)",
    "nodes * layout.per_node",
    "batch // runtime.world_size",
    "batch % runtime.world_size",
    "range(runtime.rank, count, runtime.world_size)",
    "first + runtime.rank * size if world_size * size else 0",
])  # fmt: skip
def test_computing_ranks_by_hand_is_found(code: str) -> None:
    assert list(computed_ranks(ast.parse(code)))
