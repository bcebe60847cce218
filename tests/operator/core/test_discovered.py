"""What steps find and other steps are planned by."""

from dataclasses import replace

import pytest
from jobs_world import manifest

from compression_operator.api.resolved import Resolved
from compression_operator.api.spec import Student
from compression_operator.core.phase_steps import STEPS
from compression_operator.core.plan import Plan, plan
from compression_operator.core.step_spec import Discovery
from compression_pipeline.config import Phase

SOURCE = {"source": "hf://owner/x", "digest": "d"}
RESOLVED = Resolved.model_validate({"key": "k" * 32, "teacher": SOURCE, "dataset": SOURCE})


def names(of: Plan) -> list[str]:
    return [step.name for step in of.steps]


def test_what_a_step_has_found_may_add_students(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a search for a size would: it is planned by what it finds, and so are those who come after it."""
    searches = replace(
        STEPS[Phase.FINETUNE],
        discovery=Discovery(read=lambda status: status.teacher, forget=lambda status: status),
    )
    candidate = Student.model_validate({"name": "found", "prune": {"hiddenSize": 64}})
    cuts = replace(
        STEPS[Phase.PRUNE],
        students=lambda spec, found: [*spec.students, *([candidate] if "finetune" in found else [])],
    )
    monkeypatch.setattr("compression_operator.core.plan.STEPS", {**STEPS, Phase.FINETUNE: searches, Phase.PRUNE: cuts})
    spec, found = manifest().spec, {"prepare": RESOLVED}
    assert "prune-found" not in names(plan(spec, discovered=found))
    later = plan(spec, discovered={**found, "finetune": RESOLVED})
    assert names(later)[2:5] == ["prune-width", "prune-depth", "prune-found"] and "found" in later.students
    assert later.steps[4].fingerprint
