"""What is set up is not walked over by the collector any more, in any process that is at work."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.classify import command
from pipeline.classify.__main__ import main
from pipeline.collector import spared
from tests.paths import ROOT
from tests.pipeline.application import CPU

# Of a process that has set up an engine, loaders or a dashboard; without any care there is none.
LEAST = 1000

# LoadGen is there once for a process.
OFFLINE = """
import gc, sys
from pipeline import offline
from pipeline.loadgen.binding import Completions
complete, seen = Completions.complete, []
def watched(self, ids, classes):
    seen.append(gc.get_freeze_count())
    complete(self, ids, classes)
Completions.complete = watched
status = offline.main()
print("frozen:", min(seen), gc.get_freeze_count())
sys.exit(status)
"""


def test_what_is_there_is_spared_until_the_end_of_the_block() -> None:
    with spared():
        assert gc.get_freeze_count() > LEAST
    assert gc.get_freeze_count() == 0


def test_while_files_are_classified(
    model_dir: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    rows_of = command.rows_of
    monkeypatch.setattr(command, "rows_of", lambda answers: (seen.append(gc.get_freeze_count()), rows_of(answers))[1])
    given = [images, "--model", model_dir, *CPU, "--loaders", 1, "-b", 4, "--out", tmp_path / "rows.csv"]
    assert main(list(map(str, given))) == 0
    assert min(seen) > LEAST
    assert gc.get_freeze_count() == 0


def test_while_loadgen_asks(model_dir: Path, images: Path, tmp_path: Path) -> None:
    given = [*CPU, "--model", model_dir, "--images", images, "--loaders", 1, "--output-dir", tmp_path / "out"]
    quick = ["--lgts_min_duration_ms", 100, "--lgts_offline_expected_qps", 10]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *map(str, [*given, *quick])],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    during, afterwards = map(int, done.stdout.split("frozen:")[1].split())
    assert during > LEAST
    assert afterwards == 0
