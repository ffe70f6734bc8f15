"""Shards of every kind, whole and damaged, against one header after the other by tarfile."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.samples import headers
from pipeline.samples.expand import expand_some
from pipeline.samples.left_out import LeftOut
from pipeline.samples.sources import SOME, FailedLocator, RangeLocator, Ranges, Source

SUFFIXES = (".jpg", ".jpeg", ".png")
FOLDERS = (
    "",
    "",
    "./",
    "a/",
    "a.b/",
    "../x/",
    ".h/",
    "a/.h/",
    "..x/",
    ".../",
    "é/",
    "\udcff/",
    "n\nl/",
    "x" * 90 + "/",
)
ENDINGS = (".jpg",) * 6 + (".JPEG", ".cls", ".cls", ".CLS", ".json", ".seg.png", ".png.cls", "", ".jpg/", "..png")
CONTENTS = (b"7", b"12\n", b" 5 ", b"no", b"", b"x" * 511, b"x" * 512, b"x" * 513, b"x" * 5000, b"1" * 20)
FORMATS = (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.PAX_FORMAT)
OF_ALL = ({"comment": "x"}, {"mtime": "3.5"}, {"path": "all.jpg"})
KINDS = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
TIMES = (3, 1.5, 1700000000.123456, -2.5)
EDITS = {124: b"%011o ", 148: b"%07o\0", 156: b"%d", 345: b"%d", 520: b"%d "}


def random_tar(choose: random.Random, path: str) -> None:
    """Members of all kinds, and many as most are."""
    kind, plain = choose.choice(FORMATS), choose.random() < 0.4
    of_all = choose.choice(OF_ALL) if kind == tarfile.PAX_FORMAT and choose.random() < 0.1 else None
    times = TIMES if choose.random() < 0.5 else (3,)
    with tarfile.open(path, "w", format=kind, pax_headers=of_all) as tar:
        for number in range(choose.choice([0, 1, 3, 20, 60, 2 * SOME + 9])):
            name = f"{number:05}{choose.choice(['.jpg', '.jpg', '.cls'])}"
            if not plain:
                name = f"{choose.choice(FOLDERS)}{choose.randrange(30):03}{choose.choice(ENDINGS)}"
            data = choose.choice(CONTENTS)
            info = tarfile.TarInfo(name)
            info.mtime = choose.choice(times)  # type: ignore[assignment]
            info.uid = 1 << 30 if choose.random() < 0.05 and kind != tarfile.USTAR_FORMAT else 0
            if choose.random() < 0.05:
                info.pax_headers = choose.choice([{"atime": "5.5"}, {"x.y": "z"}, {"path": "other.jpg"}])
            if not plain and choose.random() < 0.1:
                info.type, info.linkname, data = choose.choice(KINDS), "target", b""
            info.size = len(data)
            with suppress(ValueError):  # an old format that cannot say it
                tar.addfile(info, io.BytesIO(data))


def damaged(choose: random.Random, data: bytes) -> bytes:
    """The same, cut short, twice, or with numbers of its headers changed."""
    how = choose.choice(["not", "cut", "twice", "edit", "edit"])
    if how == "cut":
        return data[: choose.randrange(len(data) + 1)]
    changed = bytearray(data * (1 + (how == "twice")))
    for _ in range(choose.choice([1, 3]) if how == "edit" else 0):
        begin = choose.randrange(len(changed) // 512) * 512
        place, form = choose.choice(list(EDITS.items()))
        number = form % choose.randrange(10 if len(form) < 4 else 3000)
        if choose.random() < 0.3:
            place, number = begin + choose.randrange(100), bytes([choose.randrange(256)])
        else:
            place += begin
        changed[place : place + len(number)] = number
        if choose.random() < 0.8:
            block = changed[begin : begin + 512]
            changed[begin + 148 : begin + 156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    return bytes(changed)


class Expected:
    """What is in a tar, by tarfile alone.

    Attributes:
        sources: the images, and what was wrong in the end.
        left_out: how many others, by what they are.
    """

    def __init__(self, path: str, *, labels: bool) -> None:
        self.sources: list[Source] = []
        self.left_out: Counter[str] = Counter()
        self._labels = labels
        self._sample = ""
        self._of_sample: list[Source] = []
        self._label: int | None = None
        found = whole = 0
        try:
            with open(path, "rb") as file:
                data = file.read()
                for member, is_whole in self._members(data):
                    found += 1
                    self._take(path, member, data)
                    if not is_whole:
                        raise tarfile.ReadError(f"it ends within {member.name}")
                    whole += 1
            why = ""
        except Exception as error:
            lost = f"after {whole:,} members ({error}); the rest is lost, copy the shard again"
            why = f"damaged or cut short {lost}" if found else f"not a tar file: {error}"
        self._end_sample("")
        if why:
            self.sources.append(Source(path, FailedLocator(path, why)))

    @staticmethod
    def _members(data: bytes) -> Iterator[tuple[tarfile.TarInfo, bool]]:
        """Each member, and whether it is whole."""
        if not data:
            raise tarfile.ReadError("it is empty")
        file = io.BytesIO(data)
        tar = tarfile.TarFile(fileobj=file, mode="w", encoding="utf-8", errors="surrogateescape")
        offset, ended = 0, False
        while offset < len(data) or not ended:
            if offset >= len(data):
                raise tarfile.ReadError("it ends without an end mark")
            if data[offset : offset + 512] == bytes(512):
                offset, ended = offset + 512, True
                continue
            file.seek(offset)
            member = tarfile.TarInfo.fromtarfile(tar)
            if member.size < 0 or tar.offset <= offset:
                raise tarfile.ReadError(f"a header says {member.size} bytes")
            offset, ended = tar.offset, False
            yield member, not member.isreg() or member.offset_data + member.size <= len(data)

    def _take(self, path: str, member: tarfile.TarInfo, data: bytes) -> None:
        parts = member.name.split("/")
        stem, _, ending = parts[-1].partition(".")
        self._end_sample("/".join([*parts[:-1], stem]))
        if self._labels and ending.lower() == "cls" and member.isreg():
            text = data[member.offset_data :][: min(member.size, 16)].strip()
            self._label = int(text) if text.isdigit() and len(text) < 10 else None
        elif any(part.startswith(".") and part not in (".", "..") for part in parts) and not member.isdir():
            self.left_out["hidden"] += 1
        elif not member.isdir() and not member.isreg():
            self.left_out["link" if member.issym() or member.islnk() else "special file"] += 1
        elif member.isreg() and os.path.splitext(member.name)[1].lower() not in SUFFIXES:
            self.left_out[os.path.splitext(member.name)[1].lower() or "no ending"] += 1
        elif member.isreg():
            place = RangeLocator(path, member.offset_data, member.size)
            self._of_sample.append(Source(f"{path}/{member.name}", place))

    def _end_sample(self, following: str) -> None:
        if following != self._sample:
            self.sources += [Source(source.key, source.locator, self._label) for source in self._of_sample]
            self._sample, self._of_sample, self._label = following, [], None


def listed(path: str, *, labels: bool) -> tuple[list[Source], Counter[str]]:
    left_out = LeftOut()
    parts = list(expand_some([path], shard_labels=labels, left_out=left_out))
    assert all(parts), "an empty part"
    return [source for part in parts for source in part], left_out.files


@pytest.mark.parametrize("seed", range(4))
def test_as_tarfile_reads_them_one_by_one(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    path = tmp_path / "s.tar"
    together = 0
    for _ in range(15):
        random_tar(choose, str(path))
        path.write_bytes(damaged(choose, path.read_bytes()))
        for labels in (False, True):
            expected = Expected(str(path), labels=labels)
            sources, left_out = listed(str(path), labels=labels)
            assert sources == expected.sources
            assert left_out == expected.left_out
            together += len(sources)
    assert together > 100


def plain_tar(path: Path, prefix: str = "", mtime: float = 3, count: int = 2 * SOME + 9) -> list[Source]:
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            info = tarfile.TarInfo(f"{prefix}{number:05}.jpg")
            info.size, info.mtime = 600, mtime  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(bytes(600)))
    return Expected(str(path), labels=False).sources


@pytest.mark.parametrize(("prefix", "mtime"), [("", 3), ("./", 3), ("", 1.5), ("d/", 1700000000.123456)])
@pytest.mark.parametrize("labels", [False, True])
def test_what_is_plain_comes_together_and_without_tarfile(
    prefix: str, mtime: float, labels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain_tar(tmp_path / "s.tar", prefix, mtime)
    monkeypatch.setattr(headers, "SOME_S", 3600.0)
    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", None)
    parts = list(expand_some([str(tmp_path / "s.tar")], shard_labels=labels))
    assert [source for part in parts for source in part] == expected
    assert len(parts) == 3 + labels  # of the last sample a label may follow
    assert all(isinstance(part.locators, Ranges) for part in parts)


@pytest.mark.parametrize("label", [None, 7])
def test_a_sample_of_many_images(label: int | None, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    plain_tar(path, "all.", count=4 * SOME)
    if label is not None:
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo("all.cls")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"%d" % label))
    parts = list(expand_some([str(path)], shard_labels=True))
    sources = [source for part in parts for source in part]
    assert sources == Expected(str(path), labels=True).sources
    assert {source.label for source in sources} == {label}
    assert all(len(part) <= SOME for part in parts), "some at a time, as others"


def test_members_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain_tar(tmp_path / "s.tar", count=5)
    monkeypatch.setattr(headers, "SOME_S", 0.0)
    parts = list(expand_some([str(tmp_path / "s.tar")]))
    assert [len(part) for part in parts] == [1] * 5
    assert [source for part in parts for source in part] == expected


@pytest.mark.parametrize("failed", [0, 1, SOME, SOME + 7])
@pytest.mark.parametrize(("mtime", "stride", "beyond"), [(3, 3, 0), (1.5, 5, 0), (1.5, 5, 1), (1.5, 5, 2)])
def test_a_header_that_cannot_be_read(
    failed: int, mtime: float, stride: int, beyond: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain_tar(tmp_path / "s.tar", mtime=mtime)
    read, last = os.pread, (failed * stride + beyond) * 512

    def fails(descriptor: int, length: int, offset: int) -> bytes:
        length = min(length, last - offset)
        if length <= 0:
            raise OSError("Input/output error")
        return read(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", fails)
    sources, _ = listed(str(tmp_path / "s.tar"), labels=False)
    assert sources[:-1] == expected[:failed]
    why = sources[-1].locator
    assert isinstance(why, FailedLocator)
    begin = f"damaged or cut short after {failed} members (" if failed else "not a tar file: "
    assert why.why.startswith(f"{begin}Input/output error")
