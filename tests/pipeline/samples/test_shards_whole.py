"""Shards of every kind: their images and labels, and what is left out."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pipeline.samples.expand import expand
from tests.pipeline.samples.expanded import failures, keys, left_out, read_all, write_tar

pytestmark = pytest.mark.usefixtures("in_a_folder")


class TestWholeShards:
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

    def test_an_empty_tar_has_nothing_and_nothing_wrong(self) -> None:
        write_tar("s.tar", {})
        assert list(expand(["s.tar"])) == []

    def test_a_sparse_member(self) -> None:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"00000000000\0" + b"00000001000\0"
        header[483:495] = b"00000001000\0"
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
        Path("s.tar").write_bytes(bytes(header) + b"x" * 512 + bytes(1024))
        assert failures(expand(["s.tar"])) == {"s.tar/a.jpg": "the member is sparse; pack the shard without --sparse"}
