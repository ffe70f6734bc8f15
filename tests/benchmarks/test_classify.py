"""The benchmark of the classify command measures what it says."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import classify
from benchmarks.classify import cost_of

HELD = 200 << 20
# Holds the memory until somebody has seen it.
CHILD = f"""
import pathlib, sys, time
held = bytearray(b"x") * {HELD}
while time.process_time() < 0.1: pass
while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)
"""
PARENT = (
    f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}, sys.argv[1]], check=True); print('done')"
)


def test_a_cost_is_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process below the one that is started holds the memory and takes the time."""
    pss = classify._pss

    def seen(process: psutil.Process) -> int:
        found = pss(process)
        if found > HELD:
            (tmp_path / "seen").touch()
        return found

    monkeypatch.setattr(classify, "_pss", seen)
    began = time.perf_counter()
    cost = cost_of([sys.executable, "-c", PARENT, tmp_path / "seen"])
    assert cost.said == "done\n"
    assert HELD < cost.peak_bytes < 2 * HELD
    assert cost.cpu_s > 0.1
    assert 0.1 < cost.wall_s <= time.perf_counter() - began


def test_a_command_that_fails_ends_the_benchmark_with_what_it_said() -> None:
    with pytest.raises(SystemExit, match="no luck"):
        cost_of([sys.executable, "-c", "raise SystemExit('no luck')"])


def test_its_sections_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert classify.main(["--sections", "memory,first", "--few", "5", "--keys", "2000", "--loaders", "1",
                          "--cpu-backend", "numpy"]) == 0  # fmt: skip
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()]
    small, large, one, many = lines[2], lines[3], lines[5], lines[6]
    assert (small[0], large[0], one[0], many[0]) == ("5", "50", "1,000", "2,000")
    assert float(small[1]) > 50
    assert all(float(seconds) > 0 for seconds in (*one[1:], *many[1:]))
