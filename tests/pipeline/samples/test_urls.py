"""Folders, patterns, lists, shards and tables behind URLs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ImageError
from pipeline.samples.expand import expand
from pipeline.samples.shards import shard_bytes
from tests.paths import ROOT
from tests.pipeline.samples.expanded import error, failures, keys, left_out, read_all, touch, write_tar

pytestmark = pytest.mark.usefixtures("in_a_folder")


class TestUrls:
    @pytest.fixture(autouse=True)
    def _memory(self) -> Iterator[None]:
        self.files = pytest.importorskip("fsspec").filesystem("memory")
        yield
        self.files.rm("/", recursive=True)

    def test_folders_patterns_lists_shards_and_tables(self) -> None:
        write_tar("s.tar", {"1.jpg": b"one", "2.jpg": b"two"})
        self.files.pipe_file("/b/s.tar", Path("s.tar").read_bytes())
        self.files.pipe_file("/b/d/2.jpg", b"2")
        self.files.pipe_file("/b/d/1.jpg", b"1")
        self.files.pipe_file("/b/d/n.txt", b"no")
        self.files.pipe_file("/b/d/e/3.png", b"3")
        self.files.pipe_file("/b/l.txt", b"memory://b/d/2.jpg\n")
        flat = {"memory://b/d/1.jpg": b"1", "memory://b/d/2.jpg": b"2"}
        tree = {**flat, "memory://b/d/e/3.png": b"3"}
        assert read_all(expand(["memory://b/d"])) == tree == read_all(expand(["memory://b/d/"]))
        assert list(read_all(expand(["memory://b/d"]))) == list(tree)
        assert read_all(expand(["memory://b/d/*.jpg"])) == flat
        assert read_all(expand(["memory://b/d/{1,2}.jpg"])) == flat
        assert read_all(expand(["memory://b/d/1.jpg"])) == {"memory://b/d/1.jpg": b"1"}
        assert read_all(expand(["@memory://b/l.txt"])) == {"memory://b/d/2.jpg": b"2"}
        assert read_all(expand(["memory://b/s.tar"])) == {
            "memory://b/s.tar/1.jpg": b"one",
            "memory://b/s.tar/2.jpg": b"two",
        }
        assert left_out("memory://b/d") == "ignored 1 file (.txt 1)"
        assert "no file has a name like this" in error("memory://b/d/*.gif")
        assert failures(expand(["memory://b/none.tar"]))["memory://b/none.tar"] == "there is no such file"

    def test_a_table(self) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(__import__("pyarrow").table({"image": [b"x", b"y"]}), "t.parquet")
        self.files.pipe_file("/b/t.parquet", Path("t.parquet").read_bytes())
        found = read_all(expand(["memory://b/t.parquet"]))
        assert found == {"memory://b/t.parquet#0": b"x", "memory://b/t.parquet#1": b"y"}

    def test_a_folder_that_is_called_as_a_table_is_one_with_a_slash(self) -> None:
        pytest.importorskip("pyarrow")
        for name in ("t.parquet", "s.tar"):
            self.files.pipe_file(f"/b/{name}/1.jpg", b"1")
            url = f"memory://b/{name}"
            why = "it is a folder, not a file; name it with a / at the end"
            assert failures(expand([url])) == {url: why}
            assert read_all(expand([f"{url}/"])) == {f"{url}/1.jpg": b"1"}

    def test_a_protocol_in_a_list_that_nobody_knows_is_the_error_of_its_lines(self) -> None:
        pytest.importorskip("pyarrow")
        touch("a.jpg")
        Path("l.txt").write_text("nosuch://s.tar\nnosuch://t.parquet\nnosuch://1.jpg\na.jpg\n")
        found = read_all(expand(["@l.txt"]))
        assert found.pop("a.jpg") == b"a.jpg"
        assert found.keys() == {"nosuch://s.tar", "nosuch://t.parquet", "nosuch://1.jpg"}
        assert all("Protocol not known: nosuch" in str(why) for why in found.values())
        with pytest.raises(ImageError, match="Protocol not known: nosuch"):
            shard_bytes("nosuch://s.tar")

    def test_without_fsspec(self, monkeypatch: pytest.MonkeyPatch) -> None:
        touch("a.jpg")
        monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
        assert f"pip install -e '{ROOT}[remote]'" in error("s3://b/a.jpg")
        assert keys("a.jpg") == ["a.jpg"]
