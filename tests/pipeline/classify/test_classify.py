"""The classify command, in this process: every kind of source and sink, resuming, labels, what ends it and how."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from int4core.model import Model
from int4core.scores import top_k
from pipeline.classify import command as command_module
from pipeline.classify.__main__ import main
from pipeline.classify.options import parse
from pipeline.session import session as session_module
from pipeline.session.answers import Answers
from pipeline.session.session import Session
from pipeline.sinks.answers import rows_of
from tests.paths import SHARED, needs_shared
from tests.pipeline.application import CPU
from tests.pipeline.conftest import IMAGES, PATIENCE_S
from tests.pipeline.report.parsed import Page

TOP = 5


@pytest.fixture(autouse=True)
def nothing_left(clean: None) -> None:
    """After each test."""


@pytest.fixture(scope="module")
def best(model_dir: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The rows of a first run over the images' folder, by the file's name: what all others must equal."""
    out = tmp_path_factory.mktemp("first") / "rows.jsonl"
    assert classify(model_dir, images, "--out", out) == 0
    return {os.path.basename(row["key"]): row for row in read(out)}


def classify(model: Path, *arguments: object) -> int:
    """The command on the tiny model, a loader; its exit status."""
    return main([*map(str, arguments), "--model", str(model), *CPU, "--loaders", "1", "-b", "4"])


def read(path: Path) -> list[dict]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open(newline="")))
    return pq.read_table(path).to_pylist()


def same(row: dict, wanted: dict) -> bool:
    """Whether two rows are equal, scores as the float32 that they are."""

    def bits(values: object) -> bytes:
        return np.array(values, np.float32).tobytes()

    exact = all(row[f] == wanted[f] for f in ("class_id", "top_ids", "error"))
    return exact and all(bits(row[f]) == bits(wanted[f]) for f in ("score", "top_scores"))


def test_a_folder_becomes_rows_in_its_order(best: dict[str, dict], expected: np.ndarray) -> None:
    assert list(best) == sorted(f"{n}.jpg" for n in range(IMAGES))
    for number in range(IMAGES):
        row = best[f"{number}.jpg"]
        assert row["class_id"] == row["top_ids"][0] == expected[number]
        assert row["score"] == row["top_scores"][0] == max(row["top_scores"])
        assert len(row["top_ids"]) == TOP
        assert row["error"] is None


def test_every_kind_of_source_gives_the_same_rows(
    model_dir: Path, images: Path, best: dict[str, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n}.jpg" for n in range(IMAGES)]
    with tarfile.open(tmp_path / "shard-000.tar", "w") as shard:
        for name in names[:6]:
            shard.add(images / name, name)
    table = pa.table({"image": [(images / name).read_bytes() for name in names[6:12]], "id": list(range(6))})
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=4)
    (tmp_path / "list.txt").write_text("".join(f"{images / name}\n" for name in names[12:15]))
    (tmp_path / "broken.jpg").write_bytes((images / names[0]).read_bytes()[:500])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{images / names[15]}\n".encode())))
    out = tmp_path / "rows.parquet"
    sources = [
        tmp_path / "shard-{000..000}.tar", tmp_path / "table.parquet", f"@{tmp_path / 'list.txt'}", "-",
        tmp_path / "broken.jpg", images / "1[6-9].jpg", *(images / n for n in names[20:]),
    ]  # fmt: skip
    assert classify(model_dir, *sources, "--column", "image", "--out", out) == 0
    rows = read(out)
    bad = rows.pop(16)
    assert bad["key"] == str(tmp_path / "broken.jpg")
    assert bad["error"]
    assert bad["class_id"] is None
    assert [row["key"] for row in rows[:6]] == [f"{tmp_path}/shard-000.tar/{n}" for n in names[:6]]
    assert [row["key"] for row in rows[6:12]] == [f"{tmp_path}/table.parquet#{n}" for n in range(6)]
    for row, name in zip(rows, names, strict=True):
        assert same(row, best[name]), name
    metadata = pq.read_schema(out).metadata
    assert metadata[b"classify.model"].decode() == Model.load(model_dir).digest


def test_a_table_in_csv_and_the_summary_beside_it(
    model_dir: Path, images: Path, best: dict[str, dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.txt").write_text("".join(f"class, {n}\n" for n in range(10)))
    out = tmp_path / "rows.csv"
    options = ("--classes", tmp_path / "classes.txt", "--labels", images / "map.txt", "--top", 6)
    assert classify(model_dir, images, *options, "--out", out) == 0
    rows = read(out)
    assert [int(row["class_id"]) for row in rows] == [best[os.path.basename(r["key"])]["class_id"] for r in rows]
    assert all(row["class_name"] == f"class, {row['class_id']}" for row in rows)
    summary = json.loads((tmp_path / "rows.csv.summary.json").read_text())
    labels = {line.split()[0]: int(line.split()[1]) for line in (images / "map.txt").read_text().splitlines()}
    right = sum(best[name]["class_id"] == label for name, label in labels.items())
    among = sum(label in best[name]["top_ids"] for name, label in labels.items())
    assert (summary["accuracy"]["top1"]["correct"], summary["accuracy"]["top5"]["correct"]) == (right, among)
    assert summary["rows"] == IMAGES
    assert summary["verdict"]["bound"] in ("engine", "decode", "overheads", "unknown")
    assert summary["energy"] is None
    said = capsys.readouterr().out
    assert "images/J" not in said
    assert f"top-1: {right}/{IMAGES}" in said
    assert f"{IMAGES} rows in {out}" in said


def test_rows_on_standard_output_and_everything_else_beside_it(
    model_dir: Path, images: Path, best: dict[str, dict], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert classify(model_dir, images / "3.jpg", images / "4.jpg", "--out", "-") == 0
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [same(row, best[name]) for row, name in zip(rows, ("3.jpg", "4.jpg"), strict=True)] == [True, True]


def test_a_key_that_comes_twice_is_answered_once(
    model_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    assert classify(model_dir, images / "0.jpg", images / "1.jpg", images / "0.jpg", "--out", out) == 0
    assert [os.path.basename(row["key"]) for row in read(out)] == ["0.jpg", "1.jpg"]
    assert "1 source answered before or named twice" in capsys.readouterr().out


def test_a_run_goes_on_where_it_was_and_a_finished_one_does_nothing(
    model_dir: Path,
    images: Path,
    best: dict[str, dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "rows.parquet"
    # The run ends in the middle: what was answered by then is kept.
    real, seen = Session.classify_in_batches, []

    def broken(self: Session, *args: object, **kwargs: object) -> Iterator[list]:
        for answers in real(self, *args, **kwargs):  # type: ignore[arg-type]
            seen.extend(answers)
            yield answers
            if len(seen) > IMAGES // 3:
                raise session_module.PipelineError("the machine was needed for something else")

    with monkeypatch.context() as patched:
        patched.setattr(Session, "classify_in_batches", broken)
        assert classify(model_dir, images, "--out", out) == 1
    assert not out.exists()
    capsys.readouterr()
    report = ("--labels", images / "map.txt", "--report", tmp_path / "page.html")
    assert classify(model_dir, images, "--out", out, *report) == 0
    said = capsys.readouterr().out
    assert f"going on after {len(seen)} rows" in said
    # The page is of all rows, those of the run before included, and shows their pictures where keys are files.
    assert f"report: {tmp_path / 'page.html'}" in said
    page = Page((tmp_path / "page.html").read_text())
    least = sorted(best, key=lambda name: best[name]["score"])
    assert [os.path.basename(a["title"]) for a in page.all("span", "key")] == least
    assert len(page.all("img")) == IMAGES
    assert f"{IMAGES}\nimages answered" in page.words
    assert f"{len(seen)} rows of earlier runs included" in page.words
    wrong = sum(best[name]["class_id"] != int(os.path.splitext(name)[0]) % 10 for name in best)
    assert (len(page.all("span", "wrong")), len(page.all("span", "right"))) == (wrong, IMAGES - wrong)
    assert f"of {IMAGES}" in page.words
    assert page.all("section", "chart")
    (tmp_path / "page.html").unlink()
    rows = read(out)
    assert sorted(os.path.basename(row["key"]) for row in rows) == sorted(best)
    assert all(row["class_id"] == best[os.path.basename(row["key"])]["class_id"] for row in rows)
    before = out.stat().st_mtime_ns
    assert classify(model_dir, images, "--out", out, *report) == 0
    said = capsys.readouterr().out
    assert f"is complete: {IMAGES} rows" in said
    assert "no page is written" in said
    assert not (tmp_path / "page.html").exists()
    assert out.stat().st_mtime_ns == before


def test_an_output_of_another_kind_is_not_gone_on_with(
    model_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.parquet"
    assert classify(model_dir, images / "0.jpg", "--out", out) == 0
    assert classify(model_dir, images, "--top", 3, "--out", out) == 1
    assert "top" in capsys.readouterr().err


def test_shards_are_disjoint_and_together_all(model_dir: Path, images: Path, tmp_path: Path) -> None:
    keys: list[str] = []
    for number in range(2):
        out = tmp_path / f"rows-{number}.jsonl"
        assert classify(model_dir, images, "--shard", f"{number}/2", "--out", out) == 0
        keys += [row["key"] for row in read(out)]
    assert sorted(keys) == sorted(str(images / f"{n}.jpg") for n in range(IMAGES))


def test_errors_are_rows_and_an_exit_status_if_asked(
    model_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"<b>text\xff\x1b[0m.jpg")
    (tmp_path / name).write_text("not an image")
    sources = (images / "0.jpg", tmp_path / name)
    assert classify(model_dir, *sources, "--out", tmp_path / "a.csv", "--report", tmp_path / "page.html") == 0
    page = Page((tmp_path / "page.html").read_text())
    assert page.all("span", "key")[1]["title"] == f"{tmp_path}/<b>text\\xff\\x1b[0m.jpg"
    assert "not an image, or none of" in page.words
    assert (len(page.all("img")), len(page.all("div", "none"))) == (1, 1)
    assert "1 row has an error" in capsys.readouterr().out
    assert classify(model_dir, *sources, "--strict", "--out", tmp_path / "b.csv") == 4
    assert classify(model_dir, *sources, "--strict", "--out", tmp_path / "b.csv") == 4  # complete, and no better
    assert "not an image" in read(tmp_path / "a.csv")[1]["error"]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    model_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classify(model_dir, images, "--dry-run", "--out", tmp_path / "rows.parquet") == 0
    said = capsys.readouterr().out
    assert f"{IMAGES} sources to classify" in said
    assert f"and {IMAGES - 10} more" in said
    assert "ignored 1 file (.txt 1)" in said
    assert not (tmp_path / "rows.parquet").exists()


def test_the_first_answer_comes_before_the_sources_end(
    model_dir: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is a pipe, whose writer waits for rows before it writes the rest."""
    pipe, out = tmp_path / "pipe", tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    came, in_time = threading.Event(), list[bool]()

    def write() -> None:
        with pipe.open("w") as end:
            end.write("".join(f"{images / f'{number}.jpg'}\n" for number in range(4)))
            end.flush()
            in_time.append(came.wait(PATIENCE_S))
            end.write(f"{images / '4.jpg'}\n")

    def rows_of_(answers: Answers) -> object:
        came.set()
        return rows_of(answers)

    monkeypatch.setattr(command_module, "rows_of", rows_of_)
    writer = threading.Thread(target=write)
    writer.start()
    assert classify(model_dir, f"@{pipe}", "--out", out) == 0
    writer.join(PATIENCE_S)
    assert in_time == [True]
    assert len(read(out)) == 5


@pytest.mark.parametrize(
    ("first", "second"),
    [("--out", "--report"), ("--out", "--summary"), ("--out", "--trace"), ("--report", "--summary"),
     ("--report", "--trace"), ("--summary", "--trace")],
)  # fmt: skip
def test_two_files_of_one_name_are_refused(
    first: str, second: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = [] if first == "--out" else ["--out", "none"]
    with pytest.raises(SystemExit) as caught:
        parse(["images", *out, first, "a.csv", second, str(tmp_path / "a.csv")])
    assert caught.value.code == 2
    said = f"{first} a.csv and {second} {tmp_path}/a.csv are one file; give one of them another name"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["/no/such/folder"], "no such file or folder"),
        (["{images}", "--top", "11"], "the model has 10 classes"),
        (["{images}", "--labels", "{images}/0.jpg"], "not a text file"),
        (["{images}", "--classes", "{images}/map.txt"], "it takes a name a line"),
        (["{images}", "--out", "rows.txt"], "its ending says the format"),
        (["{images}", "--report", "none/page.html"], "--report none/page.html: there is no folder none"),
        (["{images}", "--report", "."], "--report .: is a folder"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str],
    sentence: str,
    model_dir: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [a.replace("{images}", str(images)) for a in arguments]
    out = [] if "--out" in given else ["--out", "rows.csv"]
    assert classify(model_dir, *given, *out) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


@needs_shared
def test_the_published_model_on_every_kind_of_source(tmp_path: Path) -> None:
    """Golden classes and scores of real images: from files, a shard, a table of bytes, with a damaged one between."""
    folder, model = SHARED / "imagenet" / "sample200", SHARED / "model-v0.5" / "model"
    names = [line.split()[0] for line in (folder / "map.txt").read_text().splitlines()]
    some = names[::9][:18]
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in some[6:12]:
            shard.add(folder / name, name)
    pq.write_table(pa.table({"bytes": [(folder / n).read_bytes() for n in some[12:]]}), tmp_path / "table.parquet")
    (tmp_path / "bad.jpg").write_bytes((folder / some[0]).read_bytes()[:2000])
    sources = [
        *(folder / n for n in some[:6]),
        tmp_path / "bad.jpg",
        tmp_path / "shard.tar",
        tmp_path / "table.parquet",
    ]
    out = tmp_path / "rows.parquet"
    arguments = [*map(str, sources), "--model", str(model), *CPU, "--out", str(out)]
    assert main(arguments) == 0
    rows = read(out)
    assert rows.pop(6)["error"]
    golden = np.load(SHARED / "golden" / "sample200_logits.npz")["logits"]
    scale = Model.load(model).network.scale.out_scale
    ids, scores = top_k(golden[[names.index(n) for n in some]], scale, TOP)
    for row, best, share in zip(rows, ids.tolist(), scores.tolist(), strict=True):
        assert row["top_ids"] == best
        assert row["top_scores"] == share
