"""The dashboard's picture is of a run that was recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.report.dashboard import json_line
from tests.paths import ROOT
from tests.pipeline.report import scene
from tools.render_dashboard import main, view_at

AT_S = 30.0
KEPT = ROOT / "docs" / "dashboard.jsonl"


def words(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_picture_in_the_documentation_is_of_the_recorded_run(tmp_path: Path) -> None:
    assert main([str(KEPT), str(tmp_path / "dashboard.svg"), "--at", str(AT_S)]) == 0
    drawn = (tmp_path / "dashboard.svg").read_text(encoding="utf-8")
    # Coordinates and styles are rich's business; the words are the run's.
    assert words(drawn) == words((ROOT / "docs" / "dashboard.svg").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in KEPT.read_text().splitlines()]
    running = [r for r in records if r["phase"] == "running" and r["elapsed_s"] <= AT_S][-1]
    said = " ".join(words(drawn)).replace("&#160;", " ")
    for figure in (f"{running['completed']:,} / {running['expected']:,}", f"{running['rate_now']:,.0f}", "NVIDIA"):
        assert figure in said


def test_a_view_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text("".join(f"{json_line(scene.view(phase))}\n" for phase in ("starting", "loading", "running")))
    back, was = view_at(file), scene.view("running")
    assert (back.title, back.snapshot, back.load, back.expected) == (was.title, was.snapshot, was.load, was.expected)
    with pytest.raises(PipelineError, match="not running in any line"):
        view_at(file, at_s=3.0)


@pytest.mark.parametrize("text", ["no json", "{}", "[1]", '{"time": 1}'])
def test_what_is_no_recording_is_refused_by_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text(f"{text}\n")
    assert main([str(file), str(tmp_path / "out.svg")]) == 1
    assert f"{file}:1: not a line of a run with --json" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), str(tmp_path / "out.svg")]) == 1
