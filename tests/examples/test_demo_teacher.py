"""The demo's teacher loads and writes the way everyone tries first; its students' tokenizer files are copies of it."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

TEACHER = Path(__file__).resolve().parents[2] / "examples" / "demo" / "teacher"


def test_the_obvious_lines_generate() -> None:
    model = AutoModelForCausalLM.from_pretrained(TEACHER)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    inputs = tokenizer("The function returns", return_tensors="pt")
    written = tokenizer.decode(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0])
    assert written.startswith("The function returns")
    assert len(written) > len("The function returns")
