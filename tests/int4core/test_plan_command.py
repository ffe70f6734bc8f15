"""`python -m int4core.plan`: the printed plan, for any chip, without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from int4core import plan
from int4core.backends.cuda.table import KNOWN_NUMBERS


def test_a_line_an_operation_and_their_floors(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--gpu", "h200", "--batch", "1024"]) == 0
    head, _, *lines, total = capsys.readouterr().out.splitlines()
    assert head.startswith("h200 (sm_90a), batch 1024: kernels tuned for batch 1, 8, 32, 128, 1024 (measured)")
    assert len(lines) == 52
    floors = [max(map(float, line.split()[-2:])) for line in lines]
    assert f"floors sum to {sum(floors):.0f} us" in total or abs(sum(floors) - 4846) < 5
    assert "4.089 G multiply-adds an image" in total


@pytest.mark.parametrize("chip", ["t4", "a100", "l4"])
def test_every_kind_of_chip(chip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--gpu", chip, "--batch", "8"]) == 0
    assert "52 operations" in capsys.readouterr().out


def test_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--batch", "2", "--size", "193", "201"]) == 0
    assert "193x201x3" in capsys.readouterr().out


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--table"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(KNOWN_NUMBERS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], "--batch 0: at least 1"),
        (["--size", "3", "3"], "error:"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_planned_is_an_error(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan.main(arguments) == 1
    assert said in capsys.readouterr().err
