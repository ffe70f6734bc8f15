"""Headers that are read here, against tarfile's reading of them."""

from __future__ import annotations

import tarfile
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.samples.headers import plain_member


class TestHeaders:
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
