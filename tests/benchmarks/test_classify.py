"""The benchmark of the classify command measures what it says."""

from __future__ import annotations

import sys

import pytest

from benchmarks import classify
from benchmarks.classify import cost_of

HELD = 200 << 20
CHILD = f"held = bytearray({HELD}); sum(range(5_000_000)); import time; time.sleep(1)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], check=True); print('done')"


def test_a_cost_is_of_all_processes() -> None:
    """A process below the one that is started holds the memory and takes the time."""
    cost = cost_of([sys.executable, "-c", PARENT])
    assert cost.said == "done\n"
    assert HELD < cost.peak_bytes < 2 * HELD
    assert cost.wall_s > 1
    assert cost.cpu_s > 0.05


def test_a_command_that_fails_ends_the_benchmark_with_what_it_said() -> None:
    with pytest.raises(SystemExit, match="no luck"):
        cost_of([sys.executable, "-c", "raise SystemExit('no luck')"])


def test_its_sections_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert classify.main(["--sections", "memory,first", "--few", "20", "--keys", "2000", "--loaders", "1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()]
    small, large, one, many = lines[2], lines[3], lines[5], lines[6]
    assert (small[0], large[0], one[0], many[0]) == ("20", "200", "1,000", "2,000")
    assert float(small[1]) > 50
    assert all(0 < float(seconds) < 120 for seconds in (*one[1:], *many[1:]))
