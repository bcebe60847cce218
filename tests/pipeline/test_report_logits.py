"""What a report tells of logits that students read in place of their teacher."""

from dataclasses import replace
from pathlib import Path

from pages import Page
from report_run import DEPTH, WIDTH, Run

from compression_pipeline.report.write import write_report


def text_of(run: Run) -> str:
    page = write_report(run.run_yaml, run.store, run.folder / "report")
    return " ".join(Page(page.read_text(encoding="utf-8")).text.split())


def test_what_was_kept_of_the_teachers_logits_is_told(tmp_path: Path) -> None:
    students = [replace(WIDTH, kept=0.853), replace(DEPTH, kept=0.971)]
    text = text_of(Run(tmp_path / "cached", students=students).write())
    for share in ("85.3 %", "97.1 %"):
        assert f"probability keptmean share of the teacher's probability{share}" in text
    assert text.count("size324 bytes a token79.6 MB") == 2
    assert text.count("Read in place of the teacherthe teacher's 64 likeliest tokens") == 1
    assert "width: it learnt from its teacher's 64 likeliest tokens, which have 85.3 %" in text
    assert "depth: it learnt from" not in text
    live = text_of(Run(tmp_path / "live").write())
    assert "probability kept" not in live and "in place of" not in live
