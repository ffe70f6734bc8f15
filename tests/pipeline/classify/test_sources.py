"""What newcomers point the command at: odd names, their own table, nothing at all; and labels that sources bring."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.classify.evaluation import Evaluation
from pipeline.classify.options import parse
from pipeline.errors import PipelineError
from pipeline.samples.keys import unescape
from pipeline.samples.labels import KeptLabels
from pipeline.session.session import Session
from pipeline.sinks.base import About, Format
from pipeline.sinks.opening import belongs_to
from pipeline.sinks.text import CsvFormat, JsonlFormat
from tests.pipeline.classify.conftest import Classify, rows_in
from tests.pipeline.conftest import IMAGES
from tests.pipeline.sinks.made import made


@pytest.fixture(autouse=True)
def nothing_left(clean: None) -> None:
    """After each test."""


@pytest.fixture
def ended_early(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Runs end in the middle until this is undone."""
    real = Session.classify_in_batches

    def broken(self: Session, *args: Any, **kwargs: Any) -> Iterator[list[Any]]:
        seen = 0
        for answers in real(self, *args, **kwargs):
            yield answers
            seen += len(answers)
            if seen >= 3:
                raise PipelineError("the machine was needed for something else")

    monkeypatch.setattr(Session, "classify_in_batches", broken)
    return monkeypatch


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_names_of_any_kind_come_out_as_they_went_in(
    ending: str, classify: Classify, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "odd", tmp_path / f"rows.{ending}"
    (folder / "empty").mkdir(parents=True)
    names = [
        b"new\nline",
        b"\x1b[31mred",
        b"\xff\xfe",
        'größe,"q"'.encode(),
        b" space ",
        b"back\\slash",
        b"%s%d",
        b"@-",
    ]
    for name in names:
        os.link(images / "0.jpg", os.fsencode(folder) + b"/" + name + b".jpg")
    options = ("--top", 1, "--unordered")
    assert classify(folder, "--out", out, *options) == 0
    found = [os.fsencode(unescape(row["key"])) for row in rows_in(out)]
    assert sorted(found) == sorted(os.fsencode(folder) + b"/" + name + b".jpg" for name in names)
    assert all(len(row["top_ids"]) == 1 for row in rows_in(out))
    assert classify(folder, "--out", "none", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "8 sources to classify" in said


def test_a_table_among_its_own_sources(
    classify: Classify,
    images: Path,
    tmp_path: Path,
    ended_early: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither the parts of a run that goes on nor what lies beside them are sources, or worth a word."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        os.link(images / f"{number}.jpg", folder / f"{number}.jpg")
    out, summary = folder / "rows.parquet", folder / "about.json"
    options = ("--out", out, "--summary", summary)
    assert classify(folder, *options) == 1
    assert list(folder.glob("rows.parquet.parts/part-*.parquet"))
    ended_early.undo()
    capsys.readouterr()
    # Its column of keys would do as a column of paths.
    assert classify(folder, f"{folder}/**/*.parquet", "--column", "key", *options) == 0
    assert "ignored" not in capsys.readouterr().out
    assert sorted(os.path.basename(row["key"]) for row in rows_in(out)) == [f"{n}.jpg" for n in range(8)]
    assert not [row for row in rows_in(out) if row["error"]]


def test_what_belongs_to_an_output(tmp_path: Path) -> None:
    belongs = belongs_to(str(tmp_path / "a.csv"), tmp_path / "b.html", None)
    names = ("a.csv", "a.csv.lock", "a.csv.about.json", "a.csv.parts", "a.csv.parts/part-000000.csv", "b.html")
    assert all(belongs(str(tmp_path / name)) for name in names)
    assert not [n for n in ("a.csv.jpg", "b.csv", "a.csv.partsy/x") if belongs(str(tmp_path / n))]
    assert belongs_to(f"{tmp_path}/out/")(f"{tmp_path}/out/part-000000.parquet")
    assert not belongs_to("none")(f"{tmp_path}/none")


def test_nothing_to_classify_is_a_mistake(
    classify: Classify, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    assert classify(tmp_path / "texts", "--out", tmp_path / "rows.csv") == 1
    assert "there is no image in what was named: ignored 1 file (.txt 1)" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["texts"]
    assert classify(tmp_path / "texts", "--shard", "0/2", "--out", tmp_path / "rows.csv") == 0  # a part may be empty


def test_a_finished_output_says_what_to_do_for_other_sources(
    classify: Classify, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    assert classify(images / "0.jpg", "--out", out) == 0
    assert classify(images / "1.jpg", "--out", out) == 0
    assert "is complete: 1 row, 0 of them errors; for other sources give --out another name" in capsys.readouterr().out


@pytest.mark.parametrize(("out", "why"), [("", "an empty name"), ("s3://bucket/rows.csv", "is a URL")])
def test_no_place_for_a_table(out: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["a.jpg", "--out", out])
    assert why in capsys.readouterr().err


def test_files_that_are_written_at_the_end_are_tried_before(
    classify: Classify, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--summary", "--trace"):
        assert classify(images, "--out", tmp_path / "rows.csv", option, tmp_path / "none" / "x.json") == 1
        assert f"{option} {tmp_path}/none/x.json: there is no folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def shard_with_labels(images: Path, path: Path, labels: list[int]) -> None:
    """One sample for each label, as WebDataset packs it."""
    with tarfile.open(path, "w") as shard:
        for number, label in enumerate(labels):
            shard.add(images / f"{number}.jpg", f"{number:03}.jpg")
            member = tarfile.TarInfo(f"{number:03}.cls")
            member.size = len(str(label))
            shard.addfile(member, io.BytesIO(str(label).encode()))


def top1(out: Path) -> dict[str, Any]:
    return json.loads(Path(f"{out}.summary.json").read_text())["accuracy"]["top1"]


def test_labels_that_shards_bring(
    classify: Classify, images: Path, tmp_path: Path, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """They count unasked; one that is no class of the model does not."""
    labels = [int(c) if n % 3 else (int(c) + 1) % 10 for n, c in enumerate(expected)]
    right = sum(n % 3 > 0 for n in range(IMAGES))
    shard_with_labels(images, tmp_path / "a.tar", labels)
    for out, options in ((tmp_path / "a.csv", ()), (tmp_path / "b.csv", ("--labels", "cls"))):
        assert classify(tmp_path / "a.tar", images / "0.jpg", "--out", out, *options) == 0
        assert (top1(out)["correct"], top1(out)["total"]) == (right, IMAGES)
        assert f"top-1: {right}/{IMAGES}" in capsys.readouterr().out
    shard_with_labels(images, tmp_path / "b.tar", [*labels[:-1], 10])
    assert classify(tmp_path / "b.tar", "--out", tmp_path / "c.csv") == 0
    assert top1(tmp_path / "c.csv")["total"] == IMAGES - 1
    assert "1 label left out: the model has 10 classes" in capsys.readouterr().out
    assert classify(images / "0.jpg", "--labels", "cls", "--out", tmp_path / "d.csv") == 0
    assert "--labels cls: no source has a label" in capsys.readouterr().out


def test_labels_that_shards_bring_count_for_rows_of_an_earlier_run(
    classify: Classify, images: Path, tmp_path: Path, expected: Any, ended_early: pytest.MonkeyPatch
) -> None:
    labels = [int(c) if n % 3 else (int(c) + 1) % 10 for n, c in enumerate(expected)]
    shard_with_labels(images, tmp_path / "a.tar", labels)
    out = tmp_path / "a.csv"
    assert classify(tmp_path / "a.tar", "--out", out) == 1
    ended_early.undo()
    assert classify(tmp_path / "a.tar", tmp_path / "a.tar", "--out", out) == 0
    assert (top1(out)["correct"], top1(out)["total"]) == (sum(n % 3 > 0 for n in range(IMAGES)), IMAGES)


@pytest.mark.parametrize("file_format", [CsvFormat(None), JsonlFormat(None)])
def test_rows_of_an_earlier_run_that_are_all_errors_leave_top_5_to_the_others(
    file_format: Format, tmp_path: Path
) -> None:
    good = made(["a.jpg", "b.jpg"], k=5, errors=False)
    bad = replace(good, errors={0: "damaged", 1: "damaged"})
    evaluation = Evaluation()
    for rows in (good, bad):
        with (tmp_path / "rows").open("wb") as file:
            file_format.write(file, rows, About({}, {}))
        for read in file_format.read(tmp_path / "rows"):
            evaluation.add(read, [int(ids[4]) for ids in good.top_ids])
    scores = evaluation.scores()
    assert scores is not None
    assert scores.top5 is not None
    assert [(s.correct, s.total) for s in (scores.top1, scores.top5)] == [(0, 4), (2, 4)]


def test_kept_labels() -> None:
    kept = KeptLabels()
    assert kept.of(["a"]) == [None]
    for number in range(1000):
        kept.add(f"{number * 7 % 1000}\udcff.jpg", number)
    assert kept.of(["0\udcff.jpg", "none", "7\udcff.jpg"]) == [0, None, 1]
    kept.add("later", 5)
    assert kept.of(["later"]) == [5]
    assert len(kept) == 1001
