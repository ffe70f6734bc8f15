"""From arguments to sources: what is found, in which order, how lazily, and what is said of the rest."""

from __future__ import annotations

import io
import os
import select
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageError, PipelineError
from pipeline.samples import listing
from pipeline.samples.expand import expand, parse_shard, shard
from pipeline.samples.headers import plain_member
from pipeline.samples.left_out import LeftOut
from pipeline.samples.reader import Reader
from pipeline.samples.sources import FailedLocator, PathLocator, RangeLocator, RowLocator, Source
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def touch(*names: str) -> None:
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        Path(name).write_bytes(os.fsencode(name))


def keys(*arguments: str, **options: Any) -> list[str]:
    return [source.key for source in expand(arguments, **options)]


def left_out(*arguments: str, **options: Any) -> str:
    left = LeftOut()
    list(expand(arguments, left_out=left, **options))
    return left.line()


def error(*arguments: str, **options: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        expand(arguments, **options)
    return str(caught.value)


def failures(sources: Iterable[Source]) -> dict[str, str]:
    return {s.key: s.locator.why for s in sources if isinstance(s.locator, FailedLocator)}


class TestFolders:
    def test_everything_below_in_order(self) -> None:
        touch("d/b.JPG", "d/a/z.png", "d/a.webp", "d/c/1.jpg", "d/c/d/2.jpeg", "d/c/e.jpg")
        expected = ["d/a/z.png", "d/a.webp", "d/b.JPG", "d/c/1.jpg", "d/c/d/2.jpeg", "d/c/e.jpg"]
        assert keys("d") == keys("d/") == expected
        assert keys("./d") == [f"./{key}" for key in expected]
        assert keys(os.path.abspath("d")) == [os.path.abspath(key) for key in expected]
        assert [s.locator for s in expand(["d"])] == [PathLocator(key) for key in expected]

    def test_what_is_left_out(self) -> None:
        touch("d/a.jpg", "d/b.HEIC", "d/c.heic", "d/notes.txt", "d/none", "d/.hidden.jpg", "d/.git/e.jpg", "d/s/f.jpg")
        os.symlink("nowhere.jpg", "d/broken.jpg")
        os.symlink("itself.jpg", "d/itself.jpg")
        os.symlink("..", "d/s/up")
        os.symlink("../d/a.jpg", "d/link.jpg")
        os.mkfifo("d/fifo.jpg")
        assert keys("d") == ["d/a.jpg", "d/link.jpg", "d/s/f.jpg"]
        line = "ignored 8 files (.heic 2, broken link 2, .txt 1, hidden 1, no ending 1, ...), 2 folders"
        assert left_out("d") == line
        assert left_out("d/s/f.jpg") == ""

    def test_a_link_to_a_folder_is_followed(self) -> None:
        touch("classes/cat/1.jpg")
        os.mkdir("d")
        os.symlink("../classes/cat", "d/a")
        os.symlink("../classes/cat", "d/b")
        assert keys("d") == ["d/a/1.jpg", "d/b/1.jpg"]

    def test_names_that_are_not_utf8(self) -> None:
        touch(os.fsdecode(b"d/\xff\xfe.jpg"), "d/new\nline.jpg", "d/é.jpg")
        sources = list(expand(["d"]))
        assert {os.fsencode(s.key) for s in sources} == {b"d/\xff\xfe.jpg", b"d/new\nline.jpg", "d/é.jpg".encode()}
        with Reader(100) as reader:
            assert all(reader.read(s.locator) == os.fsencode(s.key) for s in sources)

    def test_a_folder_larger_than_a_window(self, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(*(f"d/{n}.jpg" for n in range(100)))
        assert keys("d") == sorted(f"d/{n}.jpg" for n in range(100))
        monkeypatch.setattr(listing, "WINDOW", 30)
        found = keys("d")
        assert sorted(found) == sorted(f"d/{n}.jpg" for n in range(100))
        windows = [found[at : at + 30] for at in range(0, 100, 30)]
        assert all(window == sorted(window) for window in windows)
        assert found == keys("d")

    def test_the_first_comes_before_the_rest_is_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(*(f"d/{n:03}/a.jpg" for n in range(200)), *(f"e/{n:04}.jpg" for n in range(2000)))
        monkeypatch.setattr(listing, "WINDOW", 100)
        listed, real = [], listing._kind
        monkeypatch.setattr(listing, "_kind", lambda entry: listed.append(entry.path) or real(entry))
        sources = expand(["d", "e"])
        assert not listed
        assert next(sources).key.endswith("/a.jpg")
        assert len(listed) == 2
        assert sum(1 for _ in sources) == 2199

    def test_a_deep_tree(self) -> None:
        deep = "d/" + "/".join(["x"] * 300)
        os.makedirs(deep)
        Path(deep, "a.jpg").touch()
        assert keys("d") == [f"{deep}/a.jpg"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
    def test_a_folder_that_may_not_be_listed(self) -> None:
        touch("d/a.jpg", "d/b/c.jpg", "d/d.jpg")
        os.chmod("d/b", 0)
        assert keys("d") == ["d/a.jpg", "d/b", "d/d.jpg"]

    def test_a_folder_that_goes_while_it_is_listed(self) -> None:
        touch("d/a.jpg", "d/b/c.jpg", "d/d.jpg")
        sources = expand(["d"])
        found = [next(sources)]
        os.rename("d/b", "elsewhere")
        found += sources
        assert [s.key for s in found] == ["d/a.jpg", "d/b", "d/d.jpg"]
        assert failures(found) == {"d/b": "there is no such file"}


class TestNames:
    def test_files_whatever_their_ending(self) -> None:
        touch("a.jpg", "b", "c.heic", "img[1].jpg", "{x,y}.jpg")
        os.mkfifo("fifo")
        given = ["b", "a.jpg", "c.heic", "img[1].jpg", "{x,y}.jpg", "fifo"]
        assert keys(*given) == given

    def test_what_is_not_there_is_said_at_once(self) -> None:
        os.symlink("nowhere", "link")
        assert error("none.jpg") == "none.jpg: there is no such file or folder"
        assert error("link") == "link: a link to a file that is not there"
        assert error("x{0..2}.tar") == "x0.tar: there is no such file or folder"
        assert error("*.jpg") == "*.jpg: no file has a name like this"
        assert error("none/*.jpg") == "none/*.jpg: none: there is no such file"
        assert "empty name" in error("")
        assert "compressed" in error_of_file("a.tar.gz")
        assert "not a file name" in error("a\0b")

    def test_patterns(self) -> None:
        touch("d/a.jpg", "d/b.png", "d/n.txt", "d/.h.jpg", "d/s/c.jpg", "d/s/t/a.jpg", "e/a.jpg", "f/x.dat")
        assert keys("d/*.jpg") == ["d/a.jpg"]
        assert keys("?/a.*") == ["d/a.jpg", "e/a.jpg"]
        assert keys("[de]/a.jpg") == ["d/a.jpg", "e/a.jpg"]
        assert keys("d/*") == ["d/a.jpg", "d/b.png", "d/s/c.jpg", "d/s/t/a.jpg"]
        assert keys("**/a.jpg") == ["d/a.jpg", "d/s/t/a.jpg", "e/a.jpg"]
        assert keys("d/**") == ["d/a.jpg", "d/b.png", "d/s/c.jpg", "d/s/t/a.jpg"]
        assert keys("d/**/t/*.jpg") == ["d/s/t/a.jpg"]
        assert keys("d/.*.jpg") == ["d/.h.jpg"]
        assert keys("f/*.dat") == ["f/x.dat"]
        assert keys(f"{os.getcwd()}/e/*.jpg") == [f"{os.getcwd()}/e/a.jpg"]
        assert left_out("d/*") == "ignored 1 file (.txt 1)"

    def test_a_pattern_is_matched_lazily(self, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(*(f"d/{n:04}.jpg" for n in range(1000)))
        monkeypatch.setattr(listing, "WINDOW", 10)
        listed, real = [], listing._kind
        monkeypatch.setattr(listing, "_kind", lambda entry: listed.append(entry.path) or real(entry))
        sources = expand(["d/*.jpg"])
        next(sources)
        assert len(listed) <= 20
        assert 1 + sum(1 for _ in sources) == 1000

    def test_braces(self) -> None:
        touch(*(f"s/{n:03}.jpg" for n in range(12)), "s/a-1.jpg", "s/b-1.jpg", "s/b-2.jpg", "s/a-2.jpg")
        assert keys("s/{008..011}.jpg") == ["s/008.jpg", "s/009.jpg", "s/010.jpg", "s/011.jpg"]
        assert keys("s/{a,b}-{2..1}.jpg") == ["s/a-2.jpg", "s/a-1.jpg", "s/b-2.jpg", "s/b-1.jpg"]
        assert "more than 1,000,000" in error("s/{0..99999999999999999999}.jpg")
        assert "more than 1,000,000" in error("s/{000..999}{000..999}{0..1}.jpg")


def error_of_file(name: str) -> str:
    touch(name)
    return error(name)


class TestLists:
    def test_a_path_a_line(self) -> None:
        Path("l.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\n  \nd/b c.jpg \n\xff.jpg\nlast.heic")
        expected = ["a.jpg", "d/b c.jpg ", "\udcff.jpg", "last.heic"]
        assert keys("@l.txt") == expected
        assert keys("-", stdin=io.BytesIO(Path("l.txt").read_bytes())) == expected
        assert keys("@l.txt", "-", stdin=io.BytesIO(b"z.jpg\n")) == [*expected, "z.jpg"]

    def test_lines_are_not_looked_at_and_not_read_ahead(self) -> None:
        read, write = os.pipe()
        with os.fdopen(write, "wb", buffering=0) as feed:
            feed.write(b"none.jpg\n")
            sources = expand(["-"], stdin=os.fdopen(read, "rb"))
            assert next(sources) == Source("none.jpg", PathLocator("none.jpg"))
            feed.write(b"more.jpg\n")
            assert next(sources).key == "more.jpg"
        assert not list(sources)

    def test_standard_input_that_does_not_block_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        with os.fdopen(read) as stdin, os.fdopen(write, "wb", buffering=0) as feed:
            monkeypatch.setattr("sys.stdin", stdin)
            feed.write(b"a.jpg\n")
            sources = expand(["-"])
            assert next(sources).key == "a.jpg"
            # What waits for the next one finds nothing there, and is to be told when there is.
            waited: list[object] = []

            def wait(*files: Any) -> object:
                waited.append(files)
                feed.write(b"b.jpg\n")
                feed.close()
                return really_wait(*files)

            really_wait = select.select
            monkeypatch.setattr("select.select", wait)
            assert [source.key for source in sources] == ["b.jpg"]
            assert len(waited) == 1

    def test_a_pipe_may_be_a_list(self) -> None:
        read, write = os.pipe()
        os.write(write, b"a.jpg\nb.jpg\n")
        os.close(write)
        assert keys(f"@/dev/fd/{read}") == ["a.jpg", "b.jpg"]
        os.close(read)

    def test_what_is_no_list(self) -> None:
        assert error("@none.txt") == "none.txt: the list cannot be read: there is no such file"
        os.mkdir("d")
        assert "it is a folder" in error("@d")
        Path("l.txt").write_bytes(b"a.jpg\n" + b"x" * 70000 + b"\nb.jpg\n")
        sources = list(expand(["@l.txt"]))
        assert [s.key for s in sources] == ["a.jpg", "l.txt"]
        assert "a line is too long" in failures(sources)["l.txt"]

    def test_shards_in_a_list(self) -> None:
        write_tar("s.tar", {"a.jpg": b"1"})
        touch("z.tar.gz")
        Path("l.txt").write_text("s.tar\nnone.tar\nz.tar.gz\n")
        sources = list(expand(["@l.txt"]))
        assert [s.key for s in sources] == ["s.tar/a.jpg", "none.tar", "z.tar.gz"]
        assert failures(sources)["none.tar"] == "there is no such file"
        assert "compressed" in failures(sources)["z.tar.gz"]


def write_tar(path: str, members: dict[str, bytes], **options: Any) -> None:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def read_all(sources: Iterable[Source]) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    with Reader(1 << 20) as reader:
        for source in sources:
            try:
                found[source.key] = reader.read(source.locator)
            except ImageError as caught:
                found[source.key] = caught.why
    return found


class TestShards:
    MEMBERS = {  # noqa: RUF012
        "0001.cls": b"7\n",
        "0001.jpg": b"one",
        "0001.json": b"{}",
        "0002.jpg": b"two",
        "d/0003.PNG": b"three",
        "d/0003.cls": b"12",
        "0004.input.webp": b"four",
        "0004.cls": b"no number",
        "._0004.jpg": b"resource fork",
        "long/" * 60 + "0005.jpg": b"five" * 1000,
        "é\udcff.jpg": b"six",
    }
    IMAGES = {k: v for k, v in MEMBERS.items() if k.endswith(("jpg", "PNG", "webp")) and "._" not in k}  # noqa: RUF012

    @pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_images_of_a_shard(self, kind: int) -> None:
        write_tar("s.tar", self.MEMBERS, format=kind)
        assert read_all(expand(["s.tar"])) == {f"s.tar/{name}": data for name, data in self.IMAGES.items()}
        assert left_out("s.tar") == "ignored 5 files (.cls 3, .json 1, hidden 1)"

    def test_labels_of_a_shard(self) -> None:
        write_tar("s.tar", self.MEMBERS)
        labels = [s.label for s in expand(["s.tar"], shard_labels=True)]
        assert labels == [7, None, 12, None, None, None]
        assert {s.label for s in expand(["s.tar"])} == {None}
        assert read_all(expand(["s.tar"], shard_labels=True)) == read_all(expand(["s.tar"]))

    def test_many_shards(self) -> None:
        for n in range(3):
            write_tar(f"{n:03}.tar", {"a.jpg": bytes([n])})
        expected = {f"{n:03}.tar/a.jpg": bytes([n]) for n in range(3)}
        assert read_all(expand(["{000..002}.tar"])) == expected
        assert read_all(expand(["*.tar"])) == expected
        assert list(read_all(expand(["."])).values()) == list(expected.values())

    def test_what_is_no_image(self) -> None:
        with tarfile.open("s.tar", "w") as tar:
            for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)):
                info = tarfile.TarInfo(name)
                info.type = kind
                tar.addfile(info)
            info = tarfile.TarInfo("fifo.jpg")
            info.type = tarfile.FIFOTYPE
            tar.addfile(info)
        assert keys("s.tar") == []
        assert left_out("s.tar") == "ignored 3 files (link 2, special file 1)"

    def test_tars_put_one_behind_the_other(self) -> None:
        write_tar("a.tar", {"1.jpg": b"1"})
        write_tar("b.tar", {"2.jpg": b"2"})
        Path("c.tar").write_bytes(Path("a.tar").read_bytes() + Path("b.tar").read_bytes())
        assert read_all(expand(["c.tar"])) == {"c.tar/1.jpg": b"1", "c.tar/2.jpg": b"2"}

    @pytest.mark.parametrize("cut", range(0, 6 * 1024 + 1, 256))
    def test_a_shard_that_is_cut_short(self, cut: int) -> None:
        members = {f"{n}.jpg": bytes([n]) * 400 for n in range(6)}
        write_tar("whole.tar", members)
        Path("s.tar").write_bytes(Path("whole.tar").read_bytes()[:cut])
        found = read_all(expand(["s.tar"]))
        good = {key: data for key, data in found.items() if isinstance(data, bytes)}
        whole = cut // 1024 + (cut % 1024 >= 512 + 400)
        assert good == {f"s.tar/{n}.jpg": bytes([n]) * 400 for n in range(whole)}
        why = found["s.tar"]
        assert isinstance(why, str)
        assert ("not a tar file" if cut < 512 else f"damaged or cut short after {whole} members (") in why
        if cut % 1024 in (512, 768):
            assert "ends within this member" in str(found[f"s.tar/{whole}.jpg"])

    def test_a_damaged_header_in_the_middle(self) -> None:
        write_tar("s.tar", {f"{n}.jpg": bytes([n]) * 400 for n in range(6)})
        data = bytearray(Path("s.tar").read_bytes())
        data[3 * 1024 + 5] ^= 1
        Path("s.tar").write_bytes(data)
        found = read_all(expand(["s.tar"]))
        assert list(found) == ["s.tar/0.jpg", "s.tar/1.jpg", "s.tar/2.jpg", "s.tar"]
        assert "damaged or cut short after 3 members" in str(found["s.tar"])

    @pytest.mark.parametrize("data", [b"", b"text", b"\x1f\x8b" + b"x" * 1000, b"\xff" * 5000])
    def test_what_is_no_tar(self, data: bytes) -> None:
        Path("s.tar").write_bytes(data)
        assert "not a tar file" in failures(expand(["s.tar"]))["s.tar"]

    def test_an_empty_tar_has_nothing_and_nothing_wrong(self) -> None:
        write_tar("s.tar", {})
        assert list(expand(["s.tar"])) == []

    @pytest.mark.parametrize("size", [-1024, -1, 1 << 40])
    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_sizes_of_a_hostile_header(self, size: int, kind: bytes) -> None:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.type = size, kind
        header = info.tobuf(tarfile.GNU_FORMAT)
        Path("s.tar").write_bytes(header + b"x" * 5000)
        sources = list(expand(["s.tar"]))
        assert len(sources) <= 2
        assert "s.tar" in failures(sources)

    @settings(max_examples=300, deadline=None)
    @given(
        name=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
        size=st.integers(0, 1 << 36),
        kind=st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]),
        damage=st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=2),
        repair=st.booleans(),
    )
    def test_plain_headers_are_read_as_tarfile_reads_them(
        self, name: str, size: int, kind: bytes, damage: list[tuple[int, int]], repair: bool
    ) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")[-512:])
        for place, value in damage:
            block[place] = value
        if repair:
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
        mine = plain_member(bytes(block), 1024)
        if kind == tarfile.REGTYPE and not damage and size < 8**11:
            assert mine is not None
        if mine is None:
            return
        assert mine.offset_data == 1536
        with suppress(tarfile.HeaderError):  # of a mode or an owner that is no number, which are not looked at here
            theirs = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
            assert (mine.name, mine.size, tarfile.REGTYPE) == (theirs.name, theirs.size, theirs.type)

    def test_a_sparse_member(self) -> None:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"00000000000\0" + b"00000001000\0"
        header[483:495] = b"00000001000\0"
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
        Path("s.tar").write_bytes(bytes(header) + b"x" * 512 + bytes(1024))
        assert failures(expand(["s.tar"])) == {"s.tar/a.jpg": "the member is sparse; pack the shard without --sparse"}


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

    def test_without_fsspec(self, monkeypatch: pytest.MonkeyPatch) -> None:
        touch("a.jpg")
        monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
        assert f"pip install -e '{ROOT}[remote]'" in error("s3://b/a.jpg")
        assert keys("a.jpg") == ["a.jpg"]


class TestShardOfARun:
    def test_disjoint_and_complete(self) -> None:
        sources = [Source(f"d/{n:06}.jpg", PathLocator("x")) for n in range(10000)] + [
            Source("\udcff", PathLocator("x"))
        ]
        parts = [[s.key for s in shard(sources, index, 8)] for index in range(8)]
        assert sorted(key for part in parts for key in part) == sorted(s.key for s in sources)
        assert all(1000 < len(part) < 1500 for part in parts)
        # Whatever else there is: a key is always in the same shard.
        assert [s.key for s in shard(sources[5000:], 3, 8)] == [k for k in parts[3] if k >= "d/005000"]
        assert list(shard(sources, 0, 1)) == sources

    def test_parse(self) -> None:
        assert parse_shard("0/4") == (0, 4)
        for text in ("4/4", "1", "-1/4", "0/0", "a/b", "1/4/2"):
            with pytest.raises(PipelineError, match="INDEX/COUNT"):
                parse_shard(text)


def test_kinds_of_locators_of_one_run() -> None:
    write_tar("s.tar", {"1.jpg": b"1"})
    touch("a.jpg")
    assert [type(s.locator) for s in expand(["a.jpg", "s.tar"])] == [PathLocator, RangeLocator]
