"""What a loader's process keeps to itself: what is printed past Python, and how much it may allocate."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.pipeline.conftest import PATIENCE_S

PRINTING = r"""
import ctypes, os, sys
from pipeline.stages.confined import NativeOutput

libc = ctypes.CDLL(None)
printed = NativeOutput()
assert printed.take() == ""
libc.dprintf(2, b"Bad code\x1b[2J at\nline %d.\n", 7)
libc.dprintf(1, b"And\xff more.")
print("from Python", file=sys.stderr)
print("to stdout")
found = [printed.take(), printed.take()]
os.write(2, b"dropped")
printed.drop()
os.write(2, b"x" * 100_000)
long = printed.take()
printed.close()
assert found == ["Bad code [2J at line 7. And\ufffd more.", ""], found
assert len(long) == 203 and long.endswith("x..."), long
"""

ALLOCATING = r"""
import os
import numpy as np
from pipeline.stages.confined import limit_memory

limit_memory(100 * 2**20)
np.ones(40 * 2**20, dtype=np.uint8)
try:
    np.ones(140 * 2**20, dtype=np.uint8)
except MemoryError:
    print("refused")
try:
    import pyarrow
    print(pyarrow.default_memory_pool().backend_name)
except ImportError:
    print("system")
"""


def run(code: str, closed: str = "") -> subprocess.CompletedProcess[str]:
    line = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_what_c_code_prints_is_taken_and_what_python_prints_is_not() -> None:
    done = run(PRINTING)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "from Python\n"
    assert done.stdout == "to stdout\n"


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    done = run(PRINTING, closed)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_beyond_the_limit_is_refused() -> None:
    done = run(ALLOCATING)
    assert done.stdout == "refused\nsystem\n", done.stderr
