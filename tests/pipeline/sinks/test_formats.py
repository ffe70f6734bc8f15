"""Rows written and read back, bit for bit, whatever is in the keys; and as other programs read them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.sinks.base import About
from pipeline.sinks.parquet import ParquetFormat
from pipeline.sinks.rows import COLUMNS, Rows
from pipeline.sinks.text import CsvFormat, JsonlFormat
from tests.pipeline.sinks.made import CLASSES, IDENTITY, as_tuples, made

FORMATS = (ParquetFormat, CsvFormat, JsonlFormat)
ABOUT = About(IDENTITY, {"gpu": "none", "versions": "numpy 2, é"})
KEYS = (
    "a.jpg", "d/b,c.jpg", 'q"uote.jpg', "new\nline.jpg", "cr\r.jpg", "crlf\r\n.jpg", "\udcff\udcfe.jpg", "\\xff.jpg",
    "é.jpg", " space ", "tab\t", "", "\u2028", "😀.jpg", "nul\0.jpg", "'single'", "#comment", "\ufeffbom", "null",
    "1e5", "\ud800",
)  # fmt: skip


@pytest.fixture(params=FORMATS, ids=lambda made: made.suffix)
def made_by(request: pytest.FixtureRequest) -> Any:
    if request.param is ParquetFormat:
        pytest.importorskip("pyarrow")
    return request.param


def written(fmt: Any, path: Path, rows: Rows) -> Path:
    with open(path, "wb") as file:
        fmt.write(file, rows, ABOUT)
        assert not file.closed
    return path


def read(fmt: Any, path: Path) -> list[tuple[object, ...]]:
    return [row for rows in fmt.read(path) for row in as_tuples(rows)]


@pytest.mark.parametrize("k", [1, 5])
def test_rows_come_back(made_by: Any, tmp_path: Path, k: int) -> None:
    fmt = made_by(CLASSES)
    rows = made(KEYS, k)
    assert 0 < len(rows.errors) < len(rows)
    path = written(fmt, tmp_path / "a", rows)
    # A reason is for reading: what UTF-8 does not have is escaped in it for good.
    found = read(fmt, path)
    assert [row for row in found if len(row) > 2] == [row for row in as_tuples(rows) if len(row) > 2]
    assert [row[0] for row in found] == list(KEYS)
    assert {row[0] for row in found if len(row) == 2} == {KEYS[n] for n in rows.errors}
    chunks = list(fmt.keys(path))
    assert sum(errors for _, errors in chunks) == len(rows.errors)
    assert len([key for keys, _ in chunks for key in keys]) == len(KEYS)


def test_all_scores_come_back(made_by: Any, tmp_path: Path) -> None:
    bits = np.random.default_rng(1).integers(0, 0x7F800000, (500, 2), dtype=np.uint32)
    bits[:4, 0] = 0, 1, 0x3F800000, 0x00800000
    scores = bits.view(np.float32)
    rows = Rows(
        [str(n) for n in range(500)], np.zeros(500, np.int32), scores[:, 0], np.zeros((500, 2), np.int32), scores
    )
    assert read(made_by(None), written(made_by(None), tmp_path / "a", rows)) == as_tuples(rows)


def test_a_key_longer_than_the_csv_module_takes_unasked(made_by: Any, tmp_path: Path) -> None:
    fmt, rows = made_by(CLASSES), made(["a.jpg", "long/" * 100_000])
    assert read(fmt, written(fmt, tmp_path / "rows", rows)) == as_tuples(rows)


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.text(st.characters(exclude_categories=()) | st.sampled_from(',"\r\n\0\\\udcff'))))
def test_any_key(keys: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("any")
    for made_by in FORMATS:
        fmt = made_by(CLASSES)
        assert read(fmt, written(fmt, folder / "a", made(keys, errors=False))) == as_tuples(made(keys, errors=False))


@pytest.mark.parametrize("errors", [{}, {0: "one", 1: "two"}])
def test_nothing_or_nothing_but_errors(made_by: Any, tmp_path: Path, errors: dict[int, str]) -> None:
    fmt, n = made_by(CLASSES), len(errors)
    zeros = np.zeros((n, 3), np.float32)
    ids = np.full((n, 3), 99, np.int32)  # of no account, beyond the names
    rows = Rows([str(i) for i in range(n)], ids[:, 0], zeros[:, 0], ids, zeros, errors)
    assert read(fmt, written(fmt, tmp_path / "a", rows)) == as_tuples(rows)


def test_parts_are_joined(made_by: Any, tmp_path: Path) -> None:
    fmt = made_by(CLASSES)
    keys = [f"{n}\n.jpg" for n in range(90)]
    parts = [written(fmt, tmp_path / str(n), made(keys[n * 30 : n * 30 + 30])) for n in range(3)]
    for count in (3, 0):
        with open(tmp_path / "all", "wb") as file:
            fmt.join(parts[:count], file, ABOUT)
        assert read(fmt, tmp_path / "all") == as_tuples(made(keys[: count * 30]))


def test_what_others_see_in_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    fmt = ParquetFormat(CLASSES)
    rows = made([f"d/{n}.jpg" for n in range(50)])
    table = parquet.read_table(written(fmt, tmp_path / "a.parquet", rows))
    assert table.column_names == list(COLUMNS)
    assert [str(kind) for kind in table.schema.types] == [
        "string", "int32", "string", "float", "list<element: int32>", "list<element: float>", "string",
    ]  # fmt: skip
    for n, row in enumerate(table.to_pylist()):
        assert row["key"] == f"d/{n}.jpg"
        if n in rows.errors:
            assert row["error"] == rows.errors[n]
            assert {row[name] for name in COLUMNS[1:-1]} == {None}
        else:
            assert row["error"] is None
            assert row["class_id"] == row["top_ids"][0] == rows.class_ids[n]
            assert row["class_name"] == CLASSES[rows.class_ids[n]]
            assert row["score"] == row["top_scores"][0] == rows.scores[n]
    assert table.schema.metadata[b"classify.model"] == b"5f3a"
    assert table.schema.metadata[b"classify.versions"] == "numpy 2, é".encode()
    assert fmt.about(tmp_path / "a.parquet") == ABOUT
    assert ParquetFormat(None).about(tmp_path / "a.parquet") == ABOUT


def test_what_others_see_in_text(tmp_path: Path) -> None:
    rows = made(KEYS)
    with open(written(CsvFormat(CLASSES), tmp_path / "a.csv", rows), newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    text = written(JsonlFormat(CLASSES), tmp_path / "a.jsonl", rows).read_bytes()
    objects = [json.loads(line) for line in text.split(b"\n")[:-1]]
    for n, (line, got) in enumerate(zip(lines, objects, strict=True)):
        assert list(line) == list(got) == list(COLUMNS)
        assert line["key"] == got["key"]
        if n in rows.errors:
            assert line["error"] == got["error"]
            assert {line[name] for name in COLUMNS[1:-1]} == {""}
            assert {got[name] for name in COLUMNS[1:-1]} == {None}
        else:
            assert line["error"] == ""
            assert got["error"] is None
            assert int(line["class_id"]) == got["class_id"] == rows.class_ids[n]
            assert line["class_name"] == got["class_name"] == CLASSES[rows.class_ids[n]]
            assert [int(i) for i in line["top_ids"].split()] == got["top_ids"] == rows.top_ids[n].tolist()
            assert (
                np.float32(got["top_scores"][2]) == np.float32(line["top_scores"].split()[2]) == rows.top_scores[n, 2]
            )
    assert lines[6]["key"] == r"\xff\xfe.jpg"


def test_without_class_names(made_by: Any, tmp_path: Path) -> None:
    rows = made([f"{n}" for n in range(20)])
    fmt = made_by(None)
    assert read(fmt, written(fmt, tmp_path / "a", rows)) == as_tuples(rows)
    buffer = io.BytesIO()
    JsonlFormat(None).write(buffer, rows, ABOUT)
    assert all(json.loads(line)["class_name"] is None for line in buffer.getvalue().splitlines())


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(PipelineError, match=r"needs pyarrow.*pip install.*\[data\]"):
        ParquetFormat(None)
    CsvFormat(None)
    JsonlFormat(None)


def test_rows_that_do_not_fit_together() -> None:
    rows = made(["a", "b"])
    for change in ({"keys": ["a"]}, {"errors": {2: "x"}}, {"scores": rows.scores.astype(np.float64)}):
        with pytest.raises(ValueError, match=r"error in a row|is int32|is float"):
            Rows(**{**{name: getattr(rows, name) for name in Rows.__dataclass_fields__}, **change})
    both = Rows.concatenate([rows, made(["c", "d", "e"]), made([])])
    assert as_tuples(both) == as_tuples(made(["a", "b", "c", "d", "e"]))
