"""Headers that are read here, against tarfile's reading of them."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.samples.headers import Headers

# Where what comes after a header is said to end: behind every member that these say.
END = 1 << 40


def repaired(block: bytes | bytearray) -> bytes:
    """The header with the sum that it has."""
    return bytes(block[:148]) + b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32) + bytes(block[156:])


@settings(max_examples=300, deadline=None)
@given(
    name=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
    size=st.integers(0, 1 << 36),
    kind=st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]),
    damage=st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=2),
    repair=st.booleans(),
)
def test_plain_headers_are_read_as_tarfile_reads_them(
    name: str, size: int, kind: bytes, damage: list[tuple[int, int]], repair: bool
) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")[-512:])
    for place, value in damage:
        block[place] = value
    header = repaired(block) if repair else bytes(block)
    mine = Headers(io.BytesIO(header)).plain(0, END)
    if kind == tarfile.REGTYPE and not damage and size < 8**11:
        assert mine is not None
    if mine is None:
        return
    [(offset, length)] = mine.places.tolist()
    assert offset == 512
    with suppress(tarfile.HeaderError):  # of a mode or an owner that is no number, which are not looked at here
        theirs = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        assert (mine.names, length, tarfile.REGTYPE) == ([theirs.name], theirs.size, theirs.type)


@pytest.mark.parametrize("form", [b"%011o\0", b"%011o ", b"%012o", b"%11o ", b"%010o \0", b"%o\0\0\0\0\0\0\0\0"])
def test_forms_of_the_size(form: bytes) -> None:
    block = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = form % 0o1234
    header = repaired(block)
    assert tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size == 0o1234
    mine = Headers(io.BytesIO(header)).plain(0, END)
    assert mine is not None
    assert mine.places.tolist() == [[512, 0o1234]]


@pytest.mark.parametrize("size", [b"\0" * 12, b"1234\0" + b"7" * 7, b"\x80" + b"\0" * 10 + b"\7", b"-0000000001\0"])
def test_sizes_that_are_tarfiles(size: bytes) -> None:
    block = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    assert Headers(io.BytesIO(repaired(block))).plain(0, END) is None


@pytest.mark.parametrize(
    ("members", "reads"),
    [
        ([("jpg", 5000)] * 9, [2048] + [512] * 8),
        ([("jpg", 5000), ("cls", 1)] * 9, [2048, 512] + [2048] * 9),
        ([("jpg", 600)] * 4, [2048] * 3),
    ],
)
def test_only_what_lies_close_together_is_read_together(members: list[tuple[str, int]], reads: list[int]) -> None:
    class Seen(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            sizes.append(size)
            return super().read(size)

    sizes: list[int | None] = []
    with io.BytesIO() as whole:
        with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, (ending, size) in enumerate(members):
                info = tarfile.TarInfo(f"{number // 2}.{ending}")
                info.size = size
                tar.addfile(info, io.BytesIO(b"7" * size))
        found = Headers(Seen(whole.getvalue()), keep=16).plain(0, END)
    assert found is not None
    assert len(found.names) == len(members)
    assert found.contents == {place: b"7" for place, (ending, _) in enumerate(members) if ending == "cls"}
    assert sizes[: len(reads)] == reads
