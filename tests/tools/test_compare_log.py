from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.loadgen.sample_list import write_sample_list
from pipeline.samples.library import SampleLibrary
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
    assert "first differing samples (of 2):\n  sample 1 (image 1.jpg): a.json 6, b.json 60  label 6\n" in out
    assert "sample 2" not in out


@pytest.mark.parametrize("swapped", [False, True])
def test_one_log_against_a_map(swapped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = log(tmp_path / "a.json", [(0, 5), (1, 6), (2, 7)])
    labels = label_map(tmp_path / "map.txt", [5, 6, 9])
    assert main([labels, a] if swapped else [a, labels]) == 0
    out = capsys.readouterr().out
    assert "2/3 = 66.667 %" in out
    assert "first wrong samples (of 1):\n  sample 2 (image 2.jpg): label 9, a.json 7\n" in out


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
    assert "sample 1 (image 1.jpg): a.json none, b.json 6  label 6" in out


def test_a_log_of_other_samples_than_the_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = log(tmp_path / "a.json", [(7, 5)])
    labels = label_map(tmp_path / "map.txt", [5, 6])
    assert main([a, labels]) == 2
    assert "sample 7 is logged and there are 2" in capsys.readouterr().err


def listed(log_path: Path, samples: Sequence[str], labels: Sequence[int] | None = None) -> None:
    """The list of samples of a log that is called NAME_accuracy.json."""
    known = None if labels is None else np.array(labels, dtype=np.int32)
    library = SampleLibrary(tuple(Path("images") / name for name in samples), known, "images", tuple(samples))
    write_sample_list(log_path.with_name(log_path.name.replace("accuracy.json", "samples.tsv")), library)


def test_samples_of_a_run_that_left_files_out_are_known_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = label_map(tmp_path / "map.txt", range(8))
    kept = [n for n in range(8) if n not in (1, 3)]
    a = log(tmp_path / "a_accuracy.json", [(number, n) for number, n in enumerate(kept[:-1])] + [(5, 99)])
    listed(Path(a), [f"image {n}.jpg" for n in kept], kept)
    assert main([a, labels]) == 0
    out = capsys.readouterr().out
    assert "a_accuracy.json: top-1 5/6 = 83.333 %" in out
    assert "2 of 8 are not among its samples: image 1.jpg, image 3.jpg\n" in out
    assert "first wrong samples (of 1):\n  sample 7 (image 7.jpg): label 7, a_accuracy.json 99\n" in out

    # Another run, which left another file out and numbers in another order.
    others = [7, 5, 4, 3, 2, 1, 0]
    b = log(tmp_path / "b_accuracy.json", [(number, n) for number, n in enumerate(others)])
    listed(Path(b), [f"image {n}.jpg" for n in others])
    for arguments in ([a, b, "-m", labels], [a, b]):
        assert main(arguments) == 1
        out = capsys.readouterr().out
        assert "agreement 4/5 of the samples that both have\n" in out
        assert "(image 6.jpg): a_accuracy.json 6, b_accuracy.json none" in out
    assert main([b, b]) == 0


def test_a_log_whose_samples_are_not_those_of_the_map_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = label_map(tmp_path / "map.txt", [5, 6, 7])
    a = log(tmp_path / "a_accuracy.json", [(0, 5), (1, 6)])
    listed(Path(a), ["image 0.jpg", "other\x1b.jpg"])
    assert main([a, labels]) == 2
    err = capsys.readouterr().err
    assert "1 of its 2 samples are not in" in err
    assert "(other\\x1b.jpg); is this the map of that run?" in err
    listed(Path(a), ["image 0.jpg"])
    assert main([a, labels]) == 2
    assert "sample 1 is logged and there are 1; is this the list" in capsys.readouterr().err
    listed(Path(a), ["image 0.jpg", "image 2.jpg"], [5, 8])
    assert main([a, labels]) == 0
    assert "1 labels of its run are not those of" in capsys.readouterr().out


def test_numbers_without_a_list_are_those_of_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = label_map(tmp_path / "map.txt", [5, 6])
    a = log(tmp_path / "a_accuracy.json", [(0, 6), (1, 5)])
    listed(Path(a), ["image 1.jpg", "image 0.jpg"])
    b = log(tmp_path / "b.json", [(0, 5), (1, 6)])
    assert main([a, b]) == 2
    assert "b.json: no list of its samples is beside it" in capsys.readouterr().err
    assert main([a, b, "-m", labels]) == 0
    assert "agreement 2/2" in capsys.readouterr().out


def test_missing_predictions_are_a_difference_from_the_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = label_map(tmp_path / "map.txt", [5, 6])
    assert main([log(tmp_path / "a.json", [(0, 5)]), labels]) == 1
    assert "no prediction for 1 of 2: 1\n" in capsys.readouterr().out
    assert main([log(tmp_path / "a.json", [(0, 5), (1, 6), (1, 7)]), labels]) == 1
    assert main([log(tmp_path / "a.json", []), labels]) == 1
    assert "top-1 0/2" in capsys.readouterr().out


def test_mistakes_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = log(tmp_path / "a.json", [(0, 5)])
    labels = label_map(tmp_path / "map.txt", [5])
    empty = log(tmp_path / "empty.json", [])
    (tmp_path / "bare").write_text("a.jpg\n")
    bare = str(tmp_path / "bare")
    for arguments, says in [
        ([a, str(tmp_path / "none")], "none: cannot be read"),
        ([labels, labels], "both are map files"),
        ([a, labels, "-m", labels], "leave out -m"),
        ([a, bare], "without labels"),
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
