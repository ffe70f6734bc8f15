"""Standard streams that are closed, full, or of another encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from int4core.streams import LOST, Stream, run_command
from tests.paths import ROOT


def strict(encoding: str) -> tuple[Stream, io.BytesIO]:
    data = io.BytesIO()
    return Stream(io.TextIOWrapper(data, encoding=encoding, errors="strict")), data


def test_a_name_of_any_bytes_can_be_printed() -> None:
    stream, data = strict("utf-8")
    print(os.fsdecode(b"caf\xe9.jpg \xc3\xa9"), file=stream)
    stream.flush()
    assert data.getvalue() == b"caf\\udce9.jpg \xc3\xa9\n"
    assert stream.error == ""
    stream, data = strict("ascii")
    print("é …", file=stream, flush=True)
    assert data.getvalue() == b"\\xe9 \\u2026\n"


def test_the_first_error_is_kept_and_nothing_more_is_written() -> None:
    with open("/dev/full", "w") as full:
        stream = Stream(full)
        assert stream.write("some words\n") == 11
        assert stream.error == ""
        stream.flush()
        assert stream.error == os.strerror(28)
        assert stream.write("more\n") == 5
        stream.flush()
        # Closing `full` flushes what it still holds, and raises nothing.
    closed = io.StringIO()
    closed.close()
    stream = Stream(closed)
    print("words", file=stream, flush=True)
    assert "closed" in stream.error
    assert not Stream(None).isatty()


@pytest.mark.parametrize(
    ("main", "status"),
    [
        (lambda: print("x"), LOST),
        (lambda: print("x") or 0, LOST),
        (lambda: print("x") or 3, 3),
        (lambda: 0, 0),
        (lambda: sys.exit(0), 0),
        (lambda: sys.exit(2), 2),
        (lambda: sys.exit(print("x")), LOST),
    ],
)
def test_output_that_is_lost_is_an_exit_status(
    main: Callable[[], Any], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", said)
        assert run_command(main) == status
        assert (sys.stdout, sys.stderr) == (full, said)
    lost = "error: standard output cannot be written: No space left on device\n"
    assert said.getvalue() == (lost if status == LOST else "")


COMMANDS = ["int4core.plan", "pipeline.offline", "pipeline.doctor", "tools.compare_log", "tools.shapes"]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_to_a_full_device(module: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


def test_a_closed_standard_output_is_nobody_else_s_file(tmp_path: Path) -> None:
    code = (
        "import os, sys; from int4core.streams import run_command\n"
        f"def main(): file = open({str(tmp_path / 'file')!r}, 'w'); os.write(1, b'lost'); print('x'); file.close()\n"
        "sys.exit(run_command(main))"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (tmp_path / "file").read_text() == ""
    assert (done.returncode, done.stderr) == (1, "error: standard output cannot be written: it is closed\n")
