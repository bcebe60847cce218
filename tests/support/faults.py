"""What the manifests of `tests/operator/invalid` say of themselves at their tops."""

from pathlib import Path

from compression_operator.api.job_kinds import JOB_KINDS
from compression_pipeline.config.losses import LOSSES
from compression_pipeline.config.schemes import forms

MEMBERS = {
    "models": forms("model", places=True),
    "local_models": forms("model", "local"),
    "backends": ", ".join(JOB_KINDS),
    "tempered_losses": ", ".join(name for name, loss in LOSSES.items() if "temperature" in loss.model_fields),
}
"""What sentences list of tables, by its name in the headers of the manifests."""


def header(path: Path, key: str) -> list[str]:
    """The values of `# key: value` lines at the top of a manifest."""
    mark = f"# {key}: "
    return [line.removeprefix(mark) for line in path.read_text().splitlines() if line.startswith(mark)]


def faults_of(path: Path) -> list[str]:
    """The faults of a manifest, with what their sentences list of tables."""
    return [_with_members(fault) for fault in header(path, "fault")]


def _with_members(fault: str) -> str:
    for name, words in MEMBERS.items():
        fault = fault.replace(f"{{{name}}}", words)
    return fault
