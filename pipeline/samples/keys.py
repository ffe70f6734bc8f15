"""Keys as text that any file can hold, and sets of keys that stay small.

A key may hold what UTF-8 does not have: a file's name is bytes. Written out, such a byte is `\\xff`, a NUL `\\x00` and
a backslash two, so that `unescape` gives every key back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 16
# All are of one length, so that numpy's taking closing zeros for nothing makes no two of them equal.
DIGEST = np.dtype(f"S{DIGEST_BYTES}")
# To be moved and not looked at.
WHOLE = np.dtype("V16")

UNWRITABLE = re.compile("[\\\\\0\ud800-\udfff]")
ESCAPED = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4})")


def escape(key: str) -> str:
    """`key` in UTF-8, without NUL."""
    return UNWRITABLE.sub(_escaped, key) if UNWRITABLE.search(key) else key


def escape_all(keys: Sequence[str]) -> Sequence[str]:
    """`escape` of each; where none needs it, which is nearly always, in one look at all of them."""
    return [escape(key) for key in keys] if UNWRITABLE.search("".join(keys)) else keys


def unescape(text: str) -> str:
    """The key that `escape` made `text` of."""
    return ESCAPED.sub(_unescaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == ord("\\"):
        return "\\\\"
    # What os.fsdecode makes of a byte that is not UTF-8.
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{byte:02x}" if byte <= 0xFF else f"\\u{code:04x}"


def _unescaped(match: re.Match[str]) -> str:
    what = match[1]
    if what == "\\":
        return what
    code = int(what[1:], 16)
    return chr(code + 0xDC00 if what[0] == "x" and code else code)


# Of a set; the low bits of a digest's first byte say which. With more of them, they are small and grow more often.
TABLES = 64


class KeySet:
    """A set of keys, kept as digests of 16 bytes (BLAKE2b) in 28 bytes each: 2.8 GB for 100 million.

    Two keys of the same digest would be taken for one: among 100 million keys that is one chance in 10^22.
    """

    def __init__(self) -> None:
        # Several tables: each grows alone, so that growing takes neither long nor the memory twice.
        self._tables = tuple(_Table() for _ in range(TABLES))

    def add(self, key: str) -> bool:
        """Whether `key` is new; it is in the set afterwards."""
        return self.add_escaped(escape(key))

    def add_digests(self, digests: npt.NDArray[np.bytes_]) -> list[bool]:
        """`add` of each of the keys that have these `digests` (n,), in their order."""
        tables = self._tables
        return [tables[d[0] & TABLES - 1].add(d, lead) for d, lead in _each(digests)]

    def hold_digests(self, digests: npt.NDArray[np.bytes_]) -> list[bool]:
        """Whether each of the keys that have these `digests` (n,) is in the set."""
        tables = self._tables
        return [tables[d[0] & TABLES - 1].holds(d, lead) for d, lead in _each(digests)]

    def add_escaped(self, text: str) -> bool:
        """`add` of the key that `escape` made `text` of."""
        digest = _digest(text)
        return self._tables[digest[0] & TABLES - 1].add(digest, int.from_bytes(digest[1:5], "big"))

    def __contains__(self, key: str) -> bool:
        digest = _digest(escape(key))
        return self._tables[digest[0] & TABLES - 1].holds(digest, int.from_bytes(digest[1:5], "big"))

    def __len__(self) -> int:
        return sum(table.size for table in self._tables)


class SortedKeys:
    """Keys that are not added to any more, 16 bytes each, in one array that many processes may map.

    Attributes:
        digests: S16 (n,), sorted.
    """

    def __init__(self, digests: npt.NDArray[np.bytes_]) -> None:
        self.digests = digests

    @classmethod
    def merged(cls, parts: Sequence[npt.NDArray[np.bytes_]]) -> SortedKeys:
        """Of digests in any order."""
        return cls(np.sort(np.concatenate([np.empty(0, DIGEST), *parts])))

    def hold(self, wanted: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
        """Which of the digests S16 (n,) are among them: bool (n,)."""
        if not len(self.digests):
            return np.zeros(len(wanted), np.bool_)
        place = np.minimum(np.searchsorted(self.digests, wanted), len(self.digests) - 1)
        return np.asarray(self.digests[place] == wanted)

    def __len__(self) -> int:
        return len(self.digests)


def digests(texts: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """The digests of escaped keys (n,): S16 (n,)."""
    return np.frombuffer(b"".join(map(_digest, texts)), DIGEST)


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def _each(digests: npt.NDArray[np.bytes_]) -> Iterator[tuple[bytes, int]]:
    """Digests (n,), each with the number that `_leading` gives."""
    data = digests.tobytes()
    # As bytes: numpy's own have lost their closing zeros.
    whole = [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]
    return zip(whole, _leading(digests).tolist(), strict=True)


def _leading(digests: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The 32 bits of digests (n,) that a place in a table goes by: uint64 (n,)."""
    rows = digests.view(np.uint8).reshape(-1, DIGEST_BYTES)
    return np.ascontiguousarray(rows[:, 1:5]).view(">u4")[:, 0].astype(np.uint64)


class _Table:
    """Digests in buckets of equal size by their `_leading` bits; the few for whom there is no room are in a set."""

    SLOTS = 32
    BUCKET_BYTES = SLOTS * DIGEST_BYTES
    FULL = 0.75
    GROWTH = 1.3
    # Buckets that come with every growth beside that: small tables would grow all the time.
    MORE = 8

    def __init__(self) -> None:
        self.size = 0
        self._make(self.MORE)

    def _make(self, buckets: int) -> None:
        self._buckets = buckets
        self._limit = int(buckets * self.SLOTS * self.FULL)
        self._slots = bytearray(buckets * self.BUCKET_BYTES)
        self._used = bytearray(buckets)
        self._spilled: set[bytes] = set()

    def holds(self, digest: bytes, leading: int) -> bool:
        # A hit between two slots is as unlikely as two keys of one digest.
        home = leading * self._buckets >> 32
        start = home * self.BUCKET_BYTES
        end = start + self._used[home] * DIGEST_BYTES
        return self._slots.find(digest, start, end) >= 0 or digest in self._spilled

    def add(self, digest: bytes, leading: int) -> bool:
        home = leading * self._buckets >> 32
        start = home * self.BUCKET_BYTES
        used = self._used[home]
        end = start + used * DIGEST_BYTES
        if self._slots.find(digest, start, end) >= 0 or digest in self._spilled:
            return False
        if used == self.SLOTS:
            self._spilled.add(digest)
        else:
            self._slots[end : end + DIGEST_BYTES] = digest
            self._used[home] = used + 1
        self.size += 1
        if self.size > self._limit:
            self._grow()
        return True

    def _grow(self) -> None:
        digests = self._all()
        self._make(int(self._buckets * self.GROWTH) + self.MORE)
        homes = (_leading(digests) * np.uint64(self._buckets) >> np.uint64(32)).astype(np.int64)
        # Nearly in order: they come by the bucket that they were in.
        order = np.argsort(homes, kind="stable")
        homes, digests = homes[order], digests[order]
        count = np.bincount(homes, minlength=self._buckets)
        place = np.arange(len(homes)) - np.repeat(np.cumsum(count) - count, count)
        fits = place < self.SLOTS
        slots = np.frombuffer(self._slots, WHOLE)
        slots[(homes * self.SLOTS + place)[fits]] = digests[fits]
        self._used[:] = np.minimum(count, self.SLOTS).astype(np.uint8).tobytes()
        self._spilled = {digest.tobytes() for digest in digests[~fits]}

    def _all(self) -> npt.NDArray[np.void]:
        """Every digest (n,)."""
        slots = np.frombuffer(self._slots, WHOLE)
        used = np.frombuffer(self._used, np.uint8)
        held = slots[(np.arange(self.SLOTS, dtype=np.uint8) < used[:, None]).reshape(-1)]
        spilled = np.frombuffer(b"".join(self._spilled), WHOLE)
        return np.concatenate([held, spilled])
