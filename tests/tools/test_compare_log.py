from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.paths import SHARED, needs_shared
from tools.compare_log import main


def log(path: Path, records: Iterable[tuple[int, int]]) -> str:
    """A file as LoadGen writes it: one record a line."""
    lines = (
        json.dumps({"seq_id": n, "qsl_idx": i, "data": c.to_bytes(4, "little", signed=True).hex().upper()})
        for n, (i, c) in enumerate(records)
    )
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    return str(path)


def label_map(path: Path, labels: Iterable[int]) -> str:
    path.write_text("".join(f"image {n}.jpg\t{label}\n" for n, label in enumerate(labels)))
    return str(path)


def test_equal_logs_in_another_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = log(tmp_path / "a.json", [(0, 5), (1, 6), (2, 7)])
    b = log(tmp_path / "b.json", [(2, 7), (0, 5), (1, 6)])
    assert main([a, b]) == 0
    assert capsys.readouterr().out == "agreement 3/3 of the samples that both have\n"


def test_differing_logs_with_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = log(tmp_path / "a.json", [(0, 5), (1, 6), (2, 7), (3, 8)])
    b = log(tmp_path / "b.json", [(0, 5), (1, 60), (2, 70), (3, 8)])
    labels = label_map(tmp_path / "map.txt", [5, 6, 70, 0])
    assert main([a, b, "-m", labels, "--show", "1"]) == 1
    out = capsys.readouterr().out
    assert "a.json: top-1 2/4 = 50.000 %" in out
    assert "b.json: top-1 2/4 = 50.000 %" in out
    assert "agreement 2/4" in out
    assert "first differing samples (of 2):\n  sample 1: a.json 6, b.json 60  label 6\n" in out
    assert "sample 2" not in out


@pytest.mark.parametrize("swapped", [False, True])
def test_one_log_against_a_map(
    swapped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = log(tmp_path / "a.json", [(0, 5), (1, 6), (2, 7)])
    labels = label_map(tmp_path / "map.txt", [5, 6, 9])
    assert main([labels, a] if swapped else [a, labels]) == 0
    out = capsys.readouterr().out
    assert "2/3 = 66.667 %" in out
    assert "first wrong samples (of 1):\n  sample 2: label 9, a.json 7\n" in out


def test_missing_and_repeated_samples_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = log(tmp_path / "a.json", [(0, 5), (0, 5), (3, 8), (3, 9)])
    b = log(tmp_path / "b.json", [(0, 5), (1, 6), (2, 7), (3, 8)])
    labels = label_map(tmp_path / "map.txt", [5, 6, 7, 8])
    assert main([a, b, "-m", labels]) == 1
    out = capsys.readouterr().out
    assert "a.json: 2 repeated records" in out
    assert "a.json: records of one sample disagree: 3\n" in out
    assert "a.json: no prediction for 2 of 4: 1, 2\n" in out
    assert "a.json: top-1 2/4" in out
    assert "b.json: top-1 4/4" in out
    assert "agreement 2/2 of the samples that both have" in out
    assert "sample 1: a.json none, b.json 6  label 6" in out


def test_a_log_of_other_samples_than_the_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = log(tmp_path / "a.json", [(7, 5)])
    labels = label_map(tmp_path / "map.txt", [5, 6])
    assert main([a, labels]) == 2
    assert "sample 7 is logged and there are 2" in capsys.readouterr().err


def test_mistakes_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = log(tmp_path / "a.json", [(0, 5)])
    labels = label_map(tmp_path / "map.txt", [5])
    empty = log(tmp_path / "empty.json", [])
    for arguments, says in [
        ([a, str(tmp_path / "none")], "none: cannot be read"),
        ([labels, labels], "both are map files"),
        ([a, labels, "-m", labels], "leave out -m"),
        ([empty, empty], "no predictions"),
    ]:
        assert main(arguments) == 2
        assert says in capsys.readouterr().err


@needs_shared
def test_the_published_log(capsys: pytest.CaptureFixture[str]) -> None:
    published = SHARED / "published"
    arguments = [str(published / "t4x8_mlperf_log_accuracy.json"), str(published / "val_map.txt")]
    assert main(arguments) == 0
    assert "38052/50000" in capsys.readouterr().out
