"""Headers in a tar, many at a time: as tarfile reads them, at a tenth of its time, where they are as most are."""

from __future__ import annotations

import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.samples.sources import SOME, SOME_S

BLOCK = tarfile.BLOCKSIZE

# Read at a time where headers lie close together: the label and the attributes beside one come with it. Among members
# that are larger a header is read alone, in half the time.
WINDOW = 4 * BLOCK
# With so few headers, arrays of them take longer than one header after the other.
FEW = 12

# Of a header: where the type is, and the first byte of a prefix of the name.
TYPE, PREFIX = 156, 345
REGULAR, ATTRIBUTES = tarfile.REGTYPE[0], tarfile.XHDTYPE[0]
SIZE, CHECKSUM = slice(124, 136), slice(148, 156)
OCTAL = 8 ** np.arange(5, -1, -1)
# Python's tarfile, and WebDataset with it, writes a time with a fraction into a header of its own before each member's.
TIME = re.compile(rb"([1-9][0-9]?) [acm]time=[0-9]+(?:\.[0-9]+)?\n")


class Plain(NamedTuple):
    """Regular files that follow each other in a tar, none of which it ends within.

    Attributes:
        names: of n of them.
        places: int64 (n, 2): where the bytes of each begin, and how many they are.
        contents: by place, the bytes of those that have few.
        after: where the next header is.
        more: whether it may well be another plain one.
    """

    names: list[str]
    places: npt.NDArray[np.int64]
    contents: dict[int, bytes]
    after: int
    more: bool


class Headers:
    """Reads the headers of a tar and what lies beside them; not for several threads.

    Args:
        keep: members of so many bytes and fewer are read with their headers.
    """

    def __init__(self, file: BinaryIO, keep: int = 0) -> None:
        self._read = _reader(file)
        self._keep = keep
        self._start = 0
        self._data = b""
        self._close = True

    def at(self, offset: int, length: int) -> bytes:
        """The bytes there, fewer at the end of the file."""
        begin = offset - self._start
        # What comes close behind the last that was read is taken to do so again.
        self._close |= 0 < begin < WINDOW
        if not 0 <= begin <= len(self._data) - length:
            self._data = self._read(offset, max(length, WINDOW if self._close else BLOCK))
            self._start, self._close, begin = offset, False, 0
        return self._data[begin : begin + length]

    def plain(self, offset: int, end: int) -> Plain | None:
        """The plain members from the header at `offset` on, SOME at most, of a file that ends at `end`.

        None when the first one is none, or is one that tarfile has to look at. Does not read for longer than SOME_S.
        """
        blocks: list[bytes] = []
        members: list[tuple[int, int, int]] = []
        contents: dict[int, bytes] = {}
        try:
            more = self._collect(offset, end, blocks, members, contents)
        except Exception:
            if not members:
                raise
            more = True  # once what came before it is out, it is asked for again
        # Attributes without a member behind them are looked at again.
        damaged = _first_damaged(blocks[: members[-1][0] + 1]) if members else None
        if damaged is not None:
            more, members = False, [member for member in members if member[0] < damaged]
        if not members:
            return None
        names = _names([blocks[row] for row, _, _ in members])
        places = np.array([place for _, *place in members], np.int64)
        _, data, size = members[-1]
        return Plain(names, places, contents, data + _padded(size), more)

    def _collect(
        self,
        offset: int,
        end: int,
        blocks: list[bytes],
        members: list[tuple[int, int, int]],
        contents: dict[int, bytes],
    ) -> bool:
        """Appends headers as long as they may be plain, and of each member its header's row, and where its bytes are.

        Whether there may be more.
        """
        due_s, attributes = time.monotonic() + SOME_S, False
        while len(members) < SOME and (not members or time.monotonic() < due_s):
            block = self.at(offset, BLOCK)
            if len(block) < BLOCK or block[PREFIX]:
                return False
            try:  # digits, and NULs behind them at most; what is written otherwise is tarfile's
                size = int(block[SIZE].rstrip(b"\0"), 8)
            except ValueError:
                return False
            data = offset + BLOCK
            if block[TYPE] == REGULAR and size >= 0 and data + size <= end:
                if 0 < size <= self._keep:
                    contents[len(members)] = self.at(data, size)
                members.append((len(blocks), data, size))
                attributes = False
            elif block[TYPE] == ATTRIBUTES and not attributes and self._are_times(data, size):
                attributes = True
            else:
                return False
            blocks.append(block)
            offset = data + _padded(size)
        return True

    def _are_times(self, offset: int, size: int) -> bool:
        """Whether attributes are times alone, which nobody asks for."""
        padded = _padded(size)
        if not 0 < padded <= WINDOW:
            return False
        data = self.at(offset, padded)
        at = 0
        while at < size:
            match = TIME.match(data, at, size)
            if match is None or int(match[1]) != match.end() - at:
                return False
            at = match.end()
        return len(data) == padded and not data[size:].strip(b"\0")


def _padded(size: int) -> int:
    """The bytes that so many take in a tar."""
    return -(-size // BLOCK) * BLOCK


def _is_whole(block: bytes) -> bool:
    """Whether a header has the sum that it says."""
    try:
        checksum = int(block[CHECKSUM].partition(b"\0")[0], 8)
    except ValueError:
        return False
    # It is of the block with spaces in its own place. Of up to 256 bytes, Adler's has the sum plus 1 in its lower half,
    # at a tenth of the time of adding them one by one.
    a, b, c = zlib.adler32(block[:148]), zlib.adler32(block[156:334]), zlib.adler32(block[334:])
    return checksum == (a & 0xFFFF) + (b & 0xFFFF) + (c & 0xFFFF) - 3 + 8 * ord(" ")


def _first_damaged(blocks: list[bytes]) -> int | None:
    """The first of the headers that has not the sum that it says; None where there is none."""
    suspects = np.arange(len(blocks))
    if len(blocks) > FEW:
        rows = np.frombuffer(b"".join(blocks), np.uint8).reshape(-1, BLOCK)
        said = rows[:, CHECKSUM]
        sums = rows.sum(1, dtype=np.uint32) - said.sum(1, dtype=np.uint32) + 8 * ord(" ")
        # Six digits, a NUL, a space: what is written otherwise is looked at by itself.
        digits = said[:, :6] - np.uint8(ord("0"))
        good = (digits < 8).all(1) & (said[:, 6] == 0) & (digits @ OCTAL == sums)
        suspects = np.flatnonzero(~good)
    return next((row for row in suspects.tolist() if not _is_whole(blocks[row])), None)


def _names(blocks: list[bytes]) -> list[str]:
    """The names in headers, each to its first NUL."""
    names = b"\0".join([block[:100].partition(b"\0")[0] for block in blocks])
    # Decoded as one text: a byte that is not UTF-8 stays within its name.
    return names.decode("utf-8", "surrogateescape").split("\0")


def _reader(file: BinaryIO) -> Callable[[int, int], bytes]:
    """What reads so many bytes at an offset, fewer at the end of the file."""
    try:
        descriptor = file.fileno()
    except Exception:  # behind a URL there is none, and each protocol has errors of its own
        return lambda offset, length: file.read(length) if file.seek(offset) == offset else b""
    # A buffer would be filled for each header, and hold nothing of the next one.
    return lambda offset, length: os.pread(descriptor, length, offset)
