"""Parquet: its rows, columns and damage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.samples.expand import expand
from pipeline.samples.sources import RowLocator
from tests.paths import ROOT
from tests.pipeline.samples.expanded import error, failures, keys, left_out, read_all, touch

pytestmark = pytest.mark.usefixtures("in_a_folder")


class TestTables:
    @pytest.fixture(autouse=True)
    def _pyarrow(self) -> None:
        self.pa = pytest.importorskip("pyarrow")

    def write(self, path: str, rows: int = 3, **columns: Any) -> None:
        import pyarrow.parquet as parquet

        parquet.write_table(self.pa.table(columns), path, row_group_size=rows)

    def test_rows(self) -> None:
        data = [bytes([n]) for n in range(7)]
        self.write("t.parquet", image=data, label=list(range(7)))
        sources = list(expand(["t.parquet"]))
        assert [s.key for s in sources] == [f"t.parquet#{n}" for n in range(7)]
        assert sources[4].locator == RowLocator("t.parquet", 1, 1, "image")
        assert list(read_all(sources).values()) == data

    def test_which_column(self) -> None:
        touch("a.jpg")
        both = [{"bytes": b"x", "path": "p"}]
        self.write("t.parquet", a=[b"x"], b=[b"y"], n=[1], p=["a.jpg"], s=both)
        assert "images may be in a or b or s; say which with --column" in error("t.parquet")
        assert "no column z; its columns are a, b, n, p, s" in error("t.parquet", column="z")
        assert "column n holds int64; an image is" in error("t.parquet", column="n")
        assert [next(iter(read_all(expand(["t.parquet"], column=c)).values())) for c in "abps"] == [
            b"x", b"y", b"a.jpg", b"x",
        ]  # fmt: skip
        self.write("u.parquet", n=[1], p=["a.jpg"])
        assert read_all(expand(["u.parquet"])) == {"u.parquet#0": b"a.jpg"}
        self.write("v.parquet", n=[1])
        assert "no column of bytes or of paths; its columns are n" in error("v.parquet")

    @pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "struct"])
    def test_names_that_are_not_utf_8(self, kind: str) -> None:
        pa = self.pa
        names = [b"a.jpg", b"\xff\n.jpg"]
        for name in names:
            Path(os.fsdecode(name)).write_bytes(name)
        paths = pa.array(names, pa.large_binary() if kind == "large_string" else pa.binary())
        paths = paths.view(pa.large_string() if kind == "large_string" else pa.string())
        if kind == "string_view":
            paths = pa.array(names, pa.binary_view()).view(pa.string_view())
        elif kind == "struct":
            paths = pa.StructArray.from_arrays([pa.nulls(2, pa.binary()), paths], ["bytes", "path"])
        self.write("t.parquet", image=paths)
        assert list(read_all(expand(["t.parquet"])).values()) == names

    def test_a_struct_whose_bytes_are_a_number(self) -> None:
        touch("a.jpg")
        self.write("t.parquet", image=[{"bytes": 5, "path": "a.jpg"}])
        assert read_all(expand(["t.parquet"])) == {"t.parquet#0": b"a.jpg"}

    def test_columns_of_one_name(self) -> None:
        import pyarrow.parquet as parquet

        columns = [self.pa.array(["a.jpg"]), self.pa.array([b"x"])]
        parquet.write_table(self.pa.Table.from_arrays(columns, ["image", "image"]), "t.parquet")
        for column in (None, "image"):
            said = error("t.parquet", column=column)
            assert said == "t.parquet: 2 columns are called image; give each a name of its own"

    @pytest.mark.parametrize("kind", ["large_binary", "binary_view", "large_string", "string_view", "dictionary"])
    def test_kinds_of_columns(self, kind: str) -> None:
        pa = self.pa
        touch("a.jpg")
        cell: Any = "a.jpg" if kind.endswith(("string", "string_view", "dictionary")) else b"a.jpg"
        arrow = pa.dictionary(pa.int32(), pa.string()) if kind == "dictionary" else getattr(pa, kind)()
        self.write("t.parquet", image=pa.array([cell, cell], arrow))
        assert list(read_all(expand(["t.parquet"])).values()) == [b"a.jpg", b"a.jpg"]

    def test_tables_in_a_folder(self) -> None:
        os.mkdir("d")
        self.write("d/images.parquet", image=[b"x"])
        self.write("d/metadata.parquet", file_name=["a.jpg"], label=[1])
        self.write("d/numbers.parquet", n=[1])
        self.write("d/two.parquet", a=[b"x"], b=[b"y"])
        sources = list(expand(["d"]))
        assert [s.key for s in sources] == ["d/images.parquet#0", "d/two.parquet"]
        assert "say which with --column" in failures(sources)["d/two.parquet"]
        assert left_out("d") == "ignored 2 files (.parquet 2)"
        assert keys("d", column="file_name") == ["d/metadata.parquet#0"]

    def test_damaged_tables(self) -> None:
        self.write("t.parquet", image=[b"x"] * 100)
        self.write("good.parquet", image=[b"x"])
        data = Path("t.parquet").read_bytes()
        for size in (0, 3, len(data) // 2, len(data) - 1):
            Path("t.parquet").write_bytes(data[:size])
            sources = list(expand(["t.parquet", "good.parquet"]))
            assert [s.key for s in sources] == ["t.parquet", "good.parquet#0"]
            assert "not a Parquet file, or cut short" in failures(sources)["t.parquet"]

    def test_without_pyarrow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        touch("t.parquet", "d/u.parquet")
        monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
        remedy = f"pip install -e '{ROOT}[data]'"
        assert remedy in error("t.parquet")
        assert remedy in failures(expand(["d"]))["d/u.parquet"]
