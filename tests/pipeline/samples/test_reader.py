"""From a locator to an image file's bytes, and everything that may be wrong with what it points to."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ImageError
from pipeline.samples import reader as reader_module
from pipeline.samples import tables
from pipeline.samples.reader import OPEN_ROW_GROUPS, OPEN_SHARDS, Reader
from pipeline.samples.sources import (
    BytesLocator,
    FailedLocator,
    Locator,
    PathLocator,
    RangeLocator,
    RowLocator,
    Source,
)
from tests.paths import ROOT

MAX = 1000


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Reader(MAX) as it:
        yield it


def why(reader: Reader, locator: Locator) -> str:
    with pytest.raises(ImageError) as caught:
        reader.read(locator)
    return caught.value.why


def open_below(folder: Path) -> int:
    """How many of this process's descriptors are of files in the folder; others come and go by themselves."""
    opened = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            opened += os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"{folder}/")
    return opened


def test_sources_go_through_pickle() -> None:
    for locator in (
        PathLocator("a\udcff.jpg"),
        RangeLocator("s.tar", 512, 7),
        RowLocator("t.parquet", 1, 2, "image"),
        BytesLocator(b"x"),
        FailedLocator("s.tar", "no tar file"),
    ):
        source = Source("k", locator, label=3)
        assert pickle.loads(pickle.dumps(source)) == source
        with pytest.raises(AttributeError):
            source.key = "other"  # type: ignore[misc]


def test_files_and_members_are_read_to_where_there_is_room(reader: Reader, tmp_path: Path) -> None:
    path, none = str(tmp_path / "a"), str(tmp_path / "none")
    Path(path).write_bytes(b"a tar")
    buffer = bytearray(b"-" * 8)
    for locator, data in ((PathLocator(path), b"a tar"), (RangeLocator(path, 2, 3), b"tar")):
        buffer[:] = b"-" * 8
        found = reader.read_into(locator, memoryview(buffer)[1:])
        assert isinstance(found, memoryview)
        assert (bytes(found), bytes(buffer)) == (data, b"-" + data.ljust(7, b"-"))
        buffer[:] = b"-" * 8
        assert reader.read_into(locator, memoryview(buffer)[:2]) == data
        assert bytes(buffer) == b"-" * 8
    assert reader.read_into(BytesLocator(b"x"), memoryview(buffer)) == b"x"
    Path(tmp_path / "empty").touch()
    Path(tmp_path / "large").write_bytes(bytes(MAX + 1))
    for locator in (
        PathLocator(none),
        PathLocator(str(tmp_path / "empty")),
        PathLocator(str(tmp_path / "large")),
        RangeLocator(path, 2, 4),
        RangeLocator(path, 0, 0),
        RangeLocator(none, 0, 3),
    ):
        with pytest.raises(ImageError) as caught:
            reader.read_into(locator, memoryview(buffer))
        assert caught.value.why == why(reader, locator)


def test_a_file(reader: Reader, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.jpg")
    Path(path).write_bytes(b"image")
    assert reader.read(PathLocator(path)) == b"image"


@pytest.mark.parametrize("size", [1, MAX])
def test_sizes_that_are_allowed(reader: Reader, tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * size)
    assert len(reader.read(PathLocator(str(tmp_path / "a")))) == size
    assert len(reader.read(RangeLocator(str(tmp_path / "a"), 0, size))) == size
    assert len(reader.read(BytesLocator(b"x" * size))) == size


def test_what_is_no_file(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.truncate(os.open(tmp_path / "large", os.O_CREAT | os.O_RDWR), 1 << 40)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("nowhere")
    assert why(reader, PathLocator(str(tmp_path / "none"))) == "there is no such file"
    assert why(reader, PathLocator(str(tmp_path / "link"))) == "there is no such file"
    assert why(reader, PathLocator(str(tmp_path))) == "it is a folder, not a file"
    assert why(reader, PathLocator(str(tmp_path / "fifo"))) == "it is not a regular file"
    assert why(reader, PathLocator("/dev/zero")) == "it is not a regular file"
    assert why(reader, PathLocator(str(tmp_path / "empty"))) == "the file is empty"
    assert "more bytes than --max-image-bytes 1000" in why(reader, PathLocator(str(tmp_path / "large")))
    assert "more bytes than --max-image-bytes 1000" in why(reader, RangeLocator(str(tmp_path / "large"), 0, MAX + 1))
    assert "not a file name" in why(reader, PathLocator("a\0b"))
    assert "File name too long" in why(reader, PathLocator("a" * 300))
    assert why(reader, BytesLocator(b"")) == "the file is empty"
    assert why(reader, FailedLocator("s.tar", "it is cut short")) == "it is cut short"


def test_a_file_that_shrinks_while_it_is_read(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    read = os.pread

    def shrink(*args: int) -> bytes:
        os.truncate(path, 50)
        return read(*args)

    monkeypatch.setattr(os, "pread", shrink)
    assert why(reader, PathLocator(str(path))) == "cut short while it was read"


def test_ranges_of_many_shards_with_few_open(reader: Reader, tmp_path: Path) -> None:
    shards = 3 * OPEN_SHARDS
    for number in range(shards):
        (tmp_path / f"{number}").write_bytes(bytes([number]) * 100)
    for _ in range(2):
        for number in range(shards):
            assert reader.read(RangeLocator(str(tmp_path / f"{number}"), 90, 10)) == bytes([number]) * 10
    assert open_below(tmp_path) == OPEN_SHARDS
    assert "4 of its 10 bytes" in why(reader, RangeLocator(str(tmp_path / "0"), 96, 10))
    reader.close()
    assert open_below(tmp_path) == 0


def test_a_shard_is_opened_once(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").write_bytes(bytes(range(100)))
    opened = []
    real = reader_module.open_file
    monkeypatch.setattr(reader_module, "open_file", lambda path: opened.append(path) or real(path))
    assert [reader.read(RangeLocator(str(tmp_path / "s"), n, 1)) for n in range(100)] == [
        bytes([n]) for n in range(100)
    ]
    assert len(opened) == 1


class TestRows:
    """Cells of Parquet files."""

    @pytest.fixture(autouse=True)
    def _pyarrow(self) -> None:
        self.pa = pytest.importorskip("pyarrow")
        self.pq = pytest.importorskip("pyarrow.parquet")

    def write(self, path: Path, cells: list[object], rows: int, kind: object = None, **options: object) -> str:
        self.pq.write_table(
            self.pa.table({"id": range(len(cells)), "image": self.pa.array(cells, kind)}),
            path, row_group_size=rows, **options,
        )  # fmt: skip
        return str(path)

    @pytest.mark.parametrize("kind", ["binary", "large_binary"])
    def test_bytes(self, reader: Reader, tmp_path: Path, kind: str) -> None:
        cells = [bytes([n]) * (n + 1) for n in range(100)]
        path = self.write(tmp_path / "t.parquet", cells, 70, kind)
        rows = [RowLocator(path, n // 70, n % 70, "image") for n in range(100)]
        assert [reader.read(row) for row in rows] == cells
        assert [reader.read(row) for row in reversed(rows[60:])] == cells[:59:-1]

    def test_paths_structs_and_nothing(self, reader: Reader, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"file")
        name = str(tmp_path / "a.jpg")
        path = self.write(tmp_path / "t.parquet", [name, None, "", str(tmp_path / "none")], 10)
        assert reader.read(RowLocator(path, 0, 0, "image")) == b"file"
        assert why(reader, RowLocator(path, 0, 1, "image")) == "nothing in column image of this row"
        assert why(reader, RowLocator(path, 0, 2, "image")) == "there is no such file"
        assert why(reader, RowLocator(path, 0, 3, "image")) == "there is no such file"

        cells = [
            {"bytes": b"held", "path": "x.jpg"},
            {"bytes": None, "path": name},
            {"bytes": None, "path": None},
            None,
        ]
        path = self.write(tmp_path / "s.parquet", cells, 10)
        assert [reader.read(RowLocator(path, 0, n, "image")) for n in (0, 1)] == [b"held", b"file"]
        assert "neither bytes nor a path" in why(reader, RowLocator(path, 0, 2, "image"))
        assert "nothing in column image" in why(reader, RowLocator(path, 0, 3, "image"))
        assert "holds int64" in why(reader, RowLocator(path, 0, 0, "id"))

    def test_a_row_group_is_read_once(self, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = self.write(tmp_path / "t.parquet", [b"x"] * 300, 100)
        opened = []
        real = tables.open_binary
        monkeypatch.setattr(tables, "open_binary", lambda name: opened.append(name) or real(name))
        for n in range(0, 300, 3):
            assert reader.read(RowLocator(path, n // 100, n % 100, "image")) == b"x"
        assert len(opened) == 3

    def test_few_row_groups_stay_open(self, reader: Reader, tmp_path: Path) -> None:
        path = self.write(tmp_path / "t.parquet", [b"x"] * 40, 1)
        for n in range(40):
            assert reader.read(RowLocator(path, n, 0, "image")) == b"x"
        assert open_below(tmp_path) == OPEN_ROW_GROUPS

    def test_damage(self, reader: Reader, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        cells = [rng.bytes(500) for _ in range(400)]
        options = {"use_dictionary": False, "compression": "none", "data_page_size": 5000}
        path = self.write(tmp_path / "t.parquet", cells, 200, **options)
        data = bytearray(Path(path).read_bytes())
        middle = data.find(cells[100]) - 10
        data[middle - 5600 : middle] = b"\xff" * 5600
        Path(path).write_bytes(data)
        rows = [RowLocator(path, n // 200, n % 200, "image") for n in range(400)]

        got: list[bytes | None] = []
        for row in rows:
            try:
                got.append(reader.read(row))
            except ImageError as error:
                assert "row group 0" in error.why  # noqa: PT017
                got.append(None)
        assert got[:32] == cells[:32]
        assert got[200:] == cells[200:]
        lost = got[:200].count(None)
        assert 0 < lost < 200
        assert got[199] is None
        # Rows before the damage can be had again after it was met.
        assert reader.read(rows[3]) == cells[3]

    def test_what_is_no_table(self, reader: Reader, tmp_path: Path) -> None:
        (tmp_path / "t.parquet").write_bytes(b"PAR1 no more")
        assert "not a Parquet file, or cut short" in why(reader, RowLocator(str(tmp_path / "t.parquet"), 0, 0, "image"))
        assert why(reader, RowLocator(str(tmp_path / "none"), 0, 0, "image")) == "there is no such file"
        path = self.write(tmp_path / "u.parquet", [b"x" * (MAX + 1)], 1)
        assert "more bytes than" in why(reader, RowLocator(path, 0, 0, "image"))
        assert "ends before row 1" in why(reader, RowLocator(path, 0, 1, "image"))


class TestUrls:
    """Any locator's path may be a URL."""

    @pytest.fixture
    def memory(self) -> Iterator[object]:
        files = pytest.importorskip("fsspec").filesystem("memory")
        yield files
        files.rm("/", recursive=True)

    def test_files_and_ranges(self, reader: Reader, memory: object) -> None:
        memory.pipe_file("/b/a.jpg", bytes(range(100)))  # type: ignore[attr-defined]
        memory.pipe_file("/b/large", b"x" * (MAX + 1))  # type: ignore[attr-defined]
        assert reader.read(PathLocator("memory://b/a.jpg")) == bytes(range(100))
        assert reader.read(RangeLocator("memory://b/a.jpg", 10, 5)) == bytes(range(10, 15))
        assert why(reader, PathLocator("memory://b/none")) == "there is no such file"
        assert "more bytes than" in why(reader, PathLocator("memory://b/large"))
        assert "5 of its 10 bytes" in why(reader, RangeLocator("memory://b/a.jpg", 95, 10))
        assert "nosuchprotocol" in why(reader, PathLocator("nosuchprotocol://b/none"))

    def test_without_fsspec(self, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
        assert f"pip install -e '{ROOT}[remote]'" in why(reader, PathLocator("s3://b/a.jpg"))
