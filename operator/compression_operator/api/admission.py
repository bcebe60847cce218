"""The chart's ValidatingAdmissionPolicy for pod templates, written from the table that the operator judges them by:
`python -m compression_operator.api.admission`.

The CRD's own rules cannot see into a podTemplate, because its fields are unknown to the schema.
"""

from pathlib import Path
from typing import Any

import yaml

from .cel import LISTED, Place, joined, part, sentences, split, text
from .phase_settings import PhaseSettingsByPhase
from .shapes import Check, Images
from .templates import IMAGE_PATH, NO_TEMPLATES, PodTemplates, TemplatePolicy, template_check

DEFAULT_FILE = Path("charts") / "compression-operator" / "files" / "podtemplates.yaml"
HEADER = """\
# Written by `make crds` from operator/compression_operator/api/templates.py. Do not edit.
# What a ValidatingAdmissionPolicy says, by the chart's value jobs.podTemplate.
"""

PART = 2000
"""Characters of one expression: the API server takes long over a long one."""

_TOP = Place("x0")

LONGEST = 4000
"""Characters of an answer; the API server drops a longer one than 5 KiB, and one of several lines."""

MESSAGE = "has a podTemplate or jobTemplate.image that this installation of the operator does not allow"


def policies() -> dict[str, dict[str, Any]]:
    """`variables` and `validations` of the policy for each value of jobs.podTemplate."""
    return {value.value: _policy(value) for value in PodTemplates}


def policies_text() -> str:
    """The YAML file that is checked in."""
    dumper = type("Blocks", (yaml.SafeDumper,), {})
    dumper.add_representer(str, _block)
    return HEADER + yaml.dump(policies(), Dumper=dumper, sort_keys=False, width=1_000_000)


def _policy(templates: PodTemplates) -> dict[str, Any]:
    check = None if templates is PodTemplates.FORBIDDEN else template_check(TemplatePolicy(templates))
    parts = _parts(check)
    variables = {
        "indexes": f"[{', '.join(map(str, range(LISTED)))}]",
        "templates": _templates("object"),
        "templatesBefore": f"oldObject == null ? [] : ({_templates('oldObject')})",
        "image": _images("object"),
        "imageBefore": f"oldObject == null ? [] : {_images('oldObject')}",
        "changed": "variables.templates.filter(x0, !(x0 in variables.templatesBefore))",
        "imageFindings": _image_findings(),
        **{f"findings{number}": part for number, part in enumerate(parts)},
        "findings": joined(
            (f"[variables.{name}]" for name in ("imageFindings", *(f"findings{n}" for n in range(len(parts))))), _TOP
        ),
    }
    cut = f"variables.findings.substring(0, {LONGEST}) + ' ...'"
    validation = {
        "expression": "variables.findings == ''",
        "message": MESSAGE,
        "messageExpression": f"variables.findings.size() > {LONGEST} ? {cut} : variables.findings",
    }
    return {
        "variables": [{"name": name, "expression": expression} for name, expression in variables.items()],
        "validations": [validation],
    }


def _templates(source: str) -> str:
    """CEL for the pod templates of a run, each with its path. `dyn`: the schema knows no fields of theirs."""
    phases, names = (
        f"dyn({source}).spec[?'phases'].orValue({{}})",
        ", ".join(map(text, PhaseSettingsByPhase.model_fields)),
    )
    there = "[?'podTemplate'].orValue({}).size() > 0"
    shared = part(text("spec.jobTemplate.podTemplate"), "j['podTemplate']")
    of_phase = part("'spec.phases.' + n + '.podTemplate'", f"{phases}[n]['podTemplate']")
    return (
        f"{_job_template(source)}.map(j, j{there}, {shared})\n"
        f"+ [{names}].map(n, {phases}[?n].orValue({{}}){there}, {of_phase})"
    )


def _images(source: str) -> str:
    """CEL for the image that a run names, in a list, with its path."""
    image = part(text(IMAGE_PATH), "j['image']")
    return f"{_job_template(source)}.map(j, j[?'image'].orValue(null) != null, {image})"


def _job_template(source: str) -> str:
    return f"[dyn({source}).spec[?'jobTemplate'].orValue({{}})]"


def _image_findings() -> str:
    """CEL for what is wrong with the image, unless the run named it before."""
    sentence = sentences(Images(()), _TOP)
    return joined([f"variables.image.filter(x0, !(x0 in variables.imageBefore)).map(x0, {sentence})"], _TOP)


def _parts(check: Check | None) -> list[str]:
    """CEL for everything that is wrong with the templates that a run did not have before, in parts. What it had before
    it may keep: the operator tells of it, and whoever changes another field is not to be stopped by that.
    """
    if check is None:
        return [joined([f"variables.changed.map(x0, x0.p + {text(' ' + NO_TEMPLATES)})"], _TOP)]
    return [joined([f"variables.changed.map(x0, {sentences(one, _TOP)})"], _TOP) for one in split(check, PART)]


def _block(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    """Texts of several lines as they are."""
    style = "|" if "\n" in data else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)  # pyright: ignore[reportUnknownMemberType]


if __name__ == "__main__":
    DEFAULT_FILE.write_text(policies_text())
