"""Images in tar files, as WebDataset keeps them: found by reading the headers, none of the images.

A sample's members have names that agree up to the first dot: `0001.jpg`, `0001.cls`, `0001.json`. Every member with an
image's ending is a source, so that a tar of plain files loses none; `.cls` beside it, if asked for, is its label.
"""

from __future__ import annotations

import os
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

from pipeline.errors import ImageError
from pipeline.samples.left_out import LeftOut
from pipeline.samples.library import IMAGE_SUFFIXES
from pipeline.samples.remote import open_binary
from pipeline.samples.sources import (
    SOME,
    SOME_S,
    FailedLocator,
    RangeLocator,
    Ranges,
    Source,
    Sources,
    some_at_a_time,
)

IMAGE_ENDINGS = tuple(IMAGE_SUFFIXES)
SHARD_SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
WHY_COMPRESSED = "the shard is compressed, so no image in it can be read alone; unpack it to a .tar first"

# A header with the long name and the attributes that belong to it: as much as it may be, so that a wrong number in one
# does not have the whole shard read into memory.
MOST_HEADER_BYTES = 1 << 20
MOST_LABEL_BYTES = 16
EMPTY_BLOCK = bytes(tarfile.BLOCKSIZE)


def shard_sources(path: str, left_out: LeftOut, *, labels: bool = False) -> Iterator[Sources]:
    """The images of the tar at `path`, in its order, with the keys `path/member`, some at a time.

    With `labels`, `.cls` of the same sample is the source's label. A shard that is damaged or cut short gives what is
    whole and ends with one failed source of the key `path`: what is lost is never passed over.
    """
    try:
        file = open_binary(path)
    except ImageError as error:
        yield Sources([path], [FailedLocator(path, error.why)])
        return
    with file:
        members = _Members(path, file)
        yield from some_at_a_time(_labelled(members, left_out)) if labels else _images(members, left_out)
        if members.why:
            yield Sources([path], [FailedLocator(path, members.why)])


class _Headers:
    """What tarfile sees of a shard: as much as a header may have, `budget` bytes at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self.budget = 0
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.budget:
            raise tarfile.ReadError(f"a header says {size} bytes")
        self.budget -= size
        return self._file.read(size)


class PlainMember(NamedTuple):
    """A regular file in a tar, with a name and a size and nothing else of interest; the rest is as of a TarInfo."""

    name: str
    size: int
    offset_data: int

    def isreg(self) -> bool:
        return True

    def isdir(self) -> bool:
        return False

    def issparse(self) -> bool:
        return False

    def issym(self) -> bool:
        return False

    def islnk(self) -> bool:
        return False

    @property
    def type(self) -> bytes:
        return tarfile.REGTYPE


Member: TypeAlias = tarfile.TarInfo | PlainMember


class _Members:
    """The members of a tar in its order. `why`, once they are at an end: what was wrong, empty if nothing was."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.why = ""
        self._found = 0
        self._whole = 0

    def __iter__(self) -> Iterator[Member]:
        try:
            yield from self._read()
        except Exception as error:  # on damaged data tarfile raises nearly anything, and so do files behind a URL
            reason = " ".join(str(error).split()) or type(error).__name__
            if not self._found:
                self.why = f"not a tar file: {reason}"
            else:
                lost = f"after {self._whole:,} members ({reason}); the rest is lost, copy the shard again"
                self.why = f"damaged or cut short {lost}"

    def _blocks(self) -> Callable[[int], bytes]:
        """What reads the block at an offset, fewer bytes at the end of the file."""
        file, block = self.file, tarfile.BLOCKSIZE
        try:
            descriptor = file.fileno()
        except Exception:  # behind a URL there is none, and each protocol has errors of its own
            return lambda offset: file.read(block) if file.seek(offset) == offset else b""
        # A buffer would be filled for each header, and hold nothing of the next one.
        return lambda offset: os.pread(descriptor, block, offset)

    def _read(self) -> Iterator[Member]:
        """What tarfile's own iteration takes for the end (a damaged header, no end mark) is an error here."""
        file, headers = self.file, _Headers(self.file)
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise tarfile.ReadError("it is empty")
        file.seek(0)
        # Opened for writing, it reads nothing by itself: it only carries what `fromtarfile` needs.
        tar = tarfile.TarFile(fileobj=headers, mode="w", encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        offset, ended = 0, False
        read = self._blocks()
        while True:
            block = read(offset)
            if not block and ended:
                return
            if not block:
                raise tarfile.ReadError("it ends without an end mark")
            if block == EMPTY_BLOCK:
                # The end, or the seam of tars that were put one behind the other.
                offset, ended = offset + tarfile.BLOCKSIZE, True
                continue
            plain = None if tar.pax_headers else plain_member(block, offset)
            member: Member
            if plain is not None:
                member = plain
                offset = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            else:
                file.seek(offset)
                headers.budget = MOST_HEADER_BYTES
                member = tarfile.TarInfo.fromtarfile(tar)
                if member.size < 0 or tar.offset <= offset:
                    raise tarfile.ReadError(f"a header says {member.size} bytes")
                offset = tar.offset
            ended = False
            self._found += 1
            # A member that the shard ends within is the loader's to report, under its own name.
            whole = not member.isreg() or member.offset_data + member.size <= size
            yield member
            if not whole:
                raise tarfile.ReadError(f"it ends within {member.name}")
            self._whole += 1


def plain_member(block: bytes, offset: int) -> PlainMember | None:
    """What tarfile makes of the header `block` at `offset`, several times as fast, where it is as most are.

    None for all other headers, damaged ones among them, which are tarfile's.
    """
    if len(block) < tarfile.BLOCKSIZE or block[156:157] != tarfile.REGTYPE or block[345]:  # a prefix of the name
        return None
    try:
        size = int(block[124:136].partition(b"\0")[0], 8)
        checksum = int(block[148:156].partition(b"\0")[0], 8)
    except ValueError:
        return None
    # The checksum is of the block with spaces in its own place. Of up to 256 bytes, Adler's has the sum plus 1 in its
    # lower half, at a tenth of the time of adding them one by one.
    a, b, c = zlib.adler32(block[:148]), zlib.adler32(block[156:334]), zlib.adler32(block[334:])
    if size < 0 or checksum != (a & 0xFFFF) + (b & 0xFFFF) + (c & 0xFFFF) - 3 + 8 * ord(" "):
        return None
    name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return PlainMember(name, size, offset + tarfile.BLOCKSIZE)


def _images(members: _Members, left_out: LeftOut) -> Iterator[Sources]:
    path, keys, places = members.path, list[str](), list[tuple[int, int]]()
    due_s = 0.0
    for member in members:
        # Most are what `_image` would take, and looking at them closely is most of the work.
        taken = isinstance(member, PlainMember) and _is_plain_name(member.name)
        if taken:
            if not keys:
                due_s = time.monotonic() + SOME_S
            keys.append(f"{path}/{member.name}")
            places.append((member.offset_data, member.size))
        if keys and (not taken or len(keys) >= SOME or time.monotonic() >= due_s):
            yield Sources(keys, Ranges(path, np.array(places, np.int64)))
            keys, places = [], []
        if not taken and (source := _image(path, member, left_out)):
            yield Sources.of([source])
    if keys:
        yield Sources(keys, Ranges(path, np.array(places, np.int64)))


def _is_plain_name(name: str) -> bool:
    """Whether a file of that name is an image's, and not hidden."""
    return name.lower().endswith(IMAGE_ENDINGS) and name[0] != "." and "/." not in name


def _labelled(members: _Members, left_out: LeftOut) -> Iterator[Source]:
    """Sources with the label of their sample: a sample's members follow each other, the label before or after."""
    sample = ""
    images: list[Source] = []
    label: int | None = None
    for member in members:
        name, ending = _sample(member.name)
        if name != sample:
            yield from (Source(s.key, s.locator, label) for s in images)
            sample, images, label = name, [], None
        if ending == "cls" and member.isreg():
            label = _label(members.file, member)
        elif source := _image(members.path, member, left_out):
            images.append(source)
    yield from (Source(s.key, s.locator, label) for s in images)


def _sample(name: str) -> tuple[str, str]:
    """What names the sample of a member, and the rest of the member's name: split at the first dot of its file name."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _image(path: str, member: Member, left_out: LeftOut) -> Source | None:
    if member.isdir():
        return None
    name = member.name
    if (name.startswith(".") or "/." in name) and any(
        part.startswith(".") and part not in (".", "..") for part in name.split("/")
    ):
        left_out.hidden(folder=False)
    elif not member.isreg():
        left_out.other("link" if member.issym() or member.islnk() else "special file")
    elif os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
        left_out.file(name)
    elif member.issparse():
        return Source(f"{path}/{name}", FailedLocator(path, "the member is sparse; pack the shard without --sparse"))
    else:
        return Source(f"{path}/{name}", RangeLocator(path, member.offset_data, member.size))
    return None


def _label(file: BinaryIO, member: Member) -> int | None:
    file.seek(member.offset_data)
    text = file.read(min(member.size, MOST_LABEL_BYTES)).strip()
    return int(text) if text.isdigit() and len(text) < 10 else None
