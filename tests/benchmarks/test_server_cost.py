"""What a query of the Server scenario costs is measured through the command's own way."""

from __future__ import annotations

import re

import pytest

from benchmarks.server_cost import main


def test_every_rate_is_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rates", "200,400", "--seconds", "0.2"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^(\d+) asked for, 1 engines: [\d,]+ samples/s, p50 [\d.]+ ms, p99 ", said, re.MULTILINE) == [
        "200",
        "400",
    ]
    assert len(re.findall(r"^  together +[\d.]+$", said, re.MULTILINE)) == 2
