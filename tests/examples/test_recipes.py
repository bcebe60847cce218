"""The published recipes among the examples: valid, planned to the last published parameter, rendered for a cluster."""

import json
import re
from pathlib import Path

import pytest

from compression_operator.cli.__main__ import main

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
TEACHERS = {
    "llama-3.1-minitron-4b": "llama-3.1-8b",
    "mistral-nemo-minitron-8b": "mistral-nemo-12b",
    "minitron-15b-8b-4b": "nemotron-4-15b",
    "qwen3-8b-6b": "qwen3-8b",
    "qwen3-8b-6b-50b": "qwen3-8b",
    "size-search": "llama-3.1-8b",
}
TOKENS = {
    "llama-3.1-minitron-4b": 94e9,
    "mistral-nemo-minitron-8b": 380e9,
    "minitron-15b-8b-4b": 94e9,
    "qwen3-8b-6b": 1.6e6,
    "qwen3-8b-6b-50b": 50e9,
    "size-search": 2.1e9,
}
PARAMETERS = {
    "llama-3.1-minitron-4b": {"width": 4_512_746_496, "depth": 4_540_469_248},
    "mistral-nemo-minitron-8b": {"width": 8_414_105_600},
    "minitron-15b-8b-4b": {"minitron-8b": 8_271_699_968, "minitron-4b": 4_190_509_056},
    "qwen3-8b-6b": {"width-7b": 6_955_265_792, "layers-28": 6_647_163_904, "layers-22": 5_489_485_312},
    "qwen3-8b-6b-50b": {"search": 5_988_774_912, "width": 5_977_809_408, "depth": 5_875_378_176},
    "size-search": {"half": 4_499_289_344, "fits-9gi": 4_310_775_168},
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_recipe_is_planned_as_published(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = EXAMPLES / f"{name}.yaml"
    teacher = HERE / "teachers" / f"{TEACHERS[name]}.json"
    assert main(["plan", str(file), "--cluster", "--teacher-config", str(teacher), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    students = {student["name"]: student["parameters"] for student in found["students"]}
    assert students == PARAMETERS[name]
    for parameters in (found["teacher"]["parameters"], *students.values()):
        assert f"{parameters:,}" in file.read_text(), "the example's own header says the same"
    distillations = [training for step, training in found["trainings"].items() if step.startswith("distill-")]
    assert len(distillations) == len(students)
    for training in distillations:
        assert training["tokens"] == pytest.approx(TOKENS[name], rel=0.03)
        assert training["gpuHours"] > 0
    assert found["warnings"] == [], "it fits the GPUs that it asks for"


@pytest.mark.parametrize("name", TEACHERS)
def test_a_recipe_is_rendered(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(EXAMPLES / f"{name}.yaml")]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"(?m)^kind: PyTorchJob$", printed)) >= 1 + 3 * len(PARAMETERS[name])
