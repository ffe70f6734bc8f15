"""The dashboard as terminals of three sizes show it; what they showed was captured from tmux and looked at.

To capture anew after a change: `python -m tests.pipeline.report.test_captures`, and look.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.report.frame import draw
from tests.paths import ROOT
from tests.pipeline.conftest import PATIENCE_S
from tests.pipeline.report.scene import LINES, view

CAPTURES = Path(__file__).parent / "captures"
SIZES = [(60, 15), (80, 24), (120, 40)]
PHASES = ("starting", "loading", "running")


def kept(phase: str, width: int, height: int) -> Path:
    return CAPTURES / f"{phase}-{width}x{height}.txt"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("width", "height"), SIZES, ids=lambda n: str(n))
def test_the_frame_is_the_one_that_was_looked_at(phase: str, width: int, height: int) -> None:
    shown = kept(phase, width, height).read_text(encoding="utf-8").splitlines()
    frame = ["".join(s.text for s in line).rstrip() for line in draw(view(phase), width, height - 1)]
    assert shown[-len(frame) :] == frame
    above = "".join(row.ljust(width) for row in shown[: -len(frame)]).rstrip()
    assert above.endswith(LINES[-1]), "lines of the run stand above the frame, whole"
    assert len(shown) <= height


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not here")
@pytest.mark.parametrize(("width", "height"), SIZES, ids=lambda n: str(n))
def test_a_terminal_shows_it(width: int, height: int, tmp_path: Path) -> None:
    """The same in a real terminal: lines printed while the frame is drawn leave it whole."""
    expected = kept("running", width, height).read_text(encoding="utf-8")
    assert capture("running", width, height, tmp_path, expected) == expected


def capture(phase: str, width: int, height: int, folder: Path, expected: str | None = None) -> str:
    """What tmux shows of the scene, at once when it is `expected` and else after some seconds."""
    tmux = ["tmux", "-S", str(folder / "socket"), "-f", "/dev/null"]
    scene = f"{sys.executable} -m tests.pipeline.report.scene {phase}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "screen-256color", "LC_ALL": "C.UTF-8"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TMUX"):
        env.pop(name, None)
    subprocess.run([*tmux, "new-session", "-d", "-x", str(width), "-y", str(height), scene], env=env, check=True)
    try:
        deadline, text = time.monotonic() + (5 if expected is None else PATIENCE_S), ""
        while time.monotonic() < deadline and text != expected:
            time.sleep(0.2)
            pane = subprocess.run([*tmux, "capture-pane", "-p"], env=env, check=True, capture_output=True)
            text = pane.stdout.decode().rstrip("\n") + "\n"
        return text
    finally:
        subprocess.run([*tmux, "kill-server"], env=env, check=False)


if __name__ == "__main__":
    import tempfile

    CAPTURES.mkdir(exist_ok=True)
    for size in SIZES:
        for name in PHASES:
            with tempfile.TemporaryDirectory() as made:
                kept(name, *size).write_text(capture(name, *size, Path(made)), encoding="utf-8")
