"""What a long query costs: what it refuses, and an end where LoadGen would wait for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.query_cost import main
from tests.paths import ROOT
from tests.pipeline.conftest import PATIENCE_S

# A piece of a query that there is no memory for.
LACKS = """
import sys
from benchmarks import query_cost
from pipeline.loadgen import binding

def lack(_values):
    raise MemoryError("of a piece")

binding._unsigned = lack
sys.exit(query_cost.main(["--one", "1000"]))
"""


@pytest.mark.parametrize("sizes", ["0", "1000,0", "1e6", ""])
def test_sizes_that_are_none(sizes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--samples", sizes])
    assert "is not a whole number from 1 to" in capsys.readouterr().err


def test_a_query_that_fails_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LACKS], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "LoadGen's callback failed: MemoryError: of a piece\n"


def test_each_size_is_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--samples", "2000,3000"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["2,000", "3,000"]
