"""Names of files may hold anything; a terminal gets none of it but what can be seen, and no line of theirs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from int4core.errors import EngineError, printable, printed
from pipeline.errors import ImageError
from pipeline.loadgen.command import BadImages, command
from pipeline.loadgen.options import parse
from pipeline.loadgen.samples import BadFile
from pipeline.session.supervisor import Supervisor
from tests.paths import ROOT
from tools import compare_log

HOSTILE = "a\x1b]0;title\x07\x1b[31m\nerror: forged\r\u202e\udcff.jpg"
SEEN = "a\\x1b]0;title\\x07\\x1b[31m\\nerror: forged\\r\\u202e\\udcff.jpg"


def test_what_cannot_be_seen_is_escaped() -> None:
    assert printable(HOSTILE) == SEEN
    assert printable("Ünïcode 片 name's.jpg") == "Ünïcode 片 name's.jpg"
    assert printed(ImageError(HOSTILE, "cut off")) == f"{SEEN}: cut off"


def test_only_an_errors_own_lines_are_lines() -> None:
    bad = BadImages([BadFile(0, Path(HOSTILE), "cut off"), BadFile(3, Path("b.jpg"), HOSTILE)], 5)
    assert printed(bad).split("\n") == [
        "2 of 5 files cannot be read:",
        f"  {SEEN}: cut off",
        f"  b.jpg: {SEEN}",
        "fix or remove them, or leave them out with --skip-bad-images",
    ]
    assert printed(EngineError("no: it", "line 1\nline \x1b2\n")) == "no: it\nline 1\nline \\x1b2"
    assert printed(EngineError(HOSTILE)) == SEEN


@pytest.mark.parametrize(
    "options",
    [["--images", HOSTILE], ["--model", HOSTILE], ["-a", HOSTILE], ["--images", ".", "-m", HOSTILE]],
    ids=lambda options: options[-2],
)
def test_the_command_escapes_names(options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["--gpu", "cpu", "--output-dir", str(tmp_path), *options], Supervisor()) == 1
    said = capfd.readouterr()
    assert SEEN in said.err
    assert len(said.err.splitlines()) == 1
    assert not any(c in said.out + said.err for c in "\x1b\x07\r\u202e\udcff")


def test_a_wrong_option_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse([f"--{HOSTILE}"])
    assert SEEN in capsys.readouterr().err


def test_tools_escape_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_log.main([HOSTILE, HOSTILE]) == 2
    assert SEEN in capsys.readouterr().err
    log = tmp_path / HOSTILE
    log.write_text('[{"qsl_idx": 0, "data": "01000000"}, {"qsl_idx": 0, "data": "01000000"}]')
    compare_log.main([str(log), str(log)])
    said = capsys.readouterr().out
    assert said.count(f"{SEEN}: 1 repeated records") == 2
    assert "\x1b" not in said


@pytest.mark.parametrize("room", ["pipeline", "tools", "int4core", "benchmarks"])
def test_no_message_is_printed_as_it_is(room: str) -> None:
    """Messages hold names: what prints an error goes through `printed`."""
    bare = re.compile(r"print\(.*\{error\}")
    for file in (ROOT / room).rglob("*.py"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if bare.search(line) and "printable(" not in line:
                raise AssertionError(f"{file}:{number}: {line.strip()}")
