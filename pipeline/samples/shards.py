"""Images in tar files, as WebDataset keeps them: found by reading the headers, none of the images.

A sample's members have names that agree up to the first dot: `0001.jpg`, `0001.cls`, `0001.json`. Every member with an
image's ending is a source, so that a tar of plain files loses none; `.cls` beside it, if asked for, is its label.
"""

from __future__ import annotations

import os
import re
import tarfile
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator
from typing import BinaryIO, NamedTuple, TypeAlias

from pipeline.errors import ImageError
from pipeline.samples.headers import Headers, Plain
from pipeline.samples.left_out import LeftOut
from pipeline.samples.library import IMAGE_SUFFIXES
from pipeline.samples.remote import open_binary
from pipeline.samples.sources import FailedLocator, RangeLocator, Ranges, Source, Sources

IMAGE_ENDINGS = tuple(IMAGE_SUFFIXES)
SHARD_SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
WHY_COMPRESSED = "the shard is compressed, so no image in it can be read alone; unpack it to a .tar first"

# A header with the long name and the attributes that belong to it: as much as it may be, so that a wrong number in one
# does not have the whole shard read into memory.
MOST_HEADER_BYTES = 1 << 20
MOST_LABEL_BYTES = 16
# A header can say more than places in a file are: int64, the member's end included.
MOST_MEMBER_BYTES = 1 << 62
EMPTY_BLOCK = bytes(tarfile.BLOCKSIZE)

# Of names, each with a NUL before it: a part that begins with a dot and is neither `.` nor `..`.
HIDDEN = re.compile(r"[\0/]\.(?!\.?(?:[\0/]|\Z))")


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
        members = _Members(path, file, labels=labels)
        looked = _look(members, left_out, labels)
        yield from _labelled(looked) if labels else (some.sources for some in looked if len(some.sources))
        if members.why:
            yield Sources([path], [FailedLocator(path, members.why)])


def shard_bytes(path: str) -> int:
    """How large the tar at `path` is. Raises ImageError."""
    with open_binary(path) as file:
        return file.seek(0, os.SEEK_END)


class _Budget:
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


Listed: TypeAlias = Plain | tarfile.TarInfo


class _Members:
    """The members of a tar in its order, plain ones together.

    Attributes:
        headers: how they are read.
        why: once they are at an end: what was wrong, empty if nothing was.
    """

    def __init__(self, path: str, file: BinaryIO, *, labels: bool) -> None:
        self.path = path
        self.headers = Headers(file, MOST_LABEL_BYTES if labels else 0)
        self.why = ""
        self._file = file
        self._found = 0
        self._whole = 0

    def __iter__(self) -> Iterator[Listed]:
        try:
            yield from self._read()
        except Exception as error:  # on damaged data tarfile raises nearly anything, and so do files behind a URL
            reason = " ".join(str(error).split()) or type(error).__name__
            if not self._found:
                self.why = f"not a tar file: {reason}"
            else:
                lost = f"after {self._whole:,} members ({reason}); the rest is lost, copy the shard again"
                self.why = f"damaged or cut short {lost}"

    def _read(self) -> Iterator[Listed]:
        """What tarfile's own iteration takes for the end (a damaged header, no end mark) is an error here."""
        file, budget, headers = self._file, _Budget(self._file), self.headers
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise tarfile.ReadError("it is empty")
        file.seek(0)
        # Opened for writing, it reads nothing by itself: it only carries what `fromtarfile` needs.
        tar = tarfile.TarFile(fileobj=budget, mode="w", encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        offset, ended = 0, False
        while True:
            # Attributes of the whole shard are tarfile's to apply.
            if not tar.pax_headers and (some := headers.plain(offset, size)):
                offset, ended = some.after, False
                self._found += len(some.names)
                self._whole += len(some.names)
                yield some
                if some.more:
                    continue
            block = headers.at(offset, tarfile.BLOCKSIZE)
            if not block and ended:
                return
            if not block:
                raise tarfile.ReadError("it ends without an end mark")
            if block == EMPTY_BLOCK:
                # The end, or the seam of tars that were put one behind the other.
                offset, ended = offset + tarfile.BLOCKSIZE, True
                continue
            file.seek(offset)
            budget.budget = MOST_HEADER_BYTES
            member = tarfile.TarInfo.fromtarfile(tar)
            if not 0 <= member.size <= MOST_MEMBER_BYTES or tar.offset <= offset:
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


class _Looked(NamedTuple):
    """Members that follow each other.

    Attributes:
        names: of n of them.
        images: the places of those that are images.
        sources: as many: what is to become of these.
        labels: what those that are labels say, by place.
    """

    names: list[str]
    images: list[int]
    sources: Sources
    labels: dict[int, int | None]


def _look(members: _Members, left_out: LeftOut, labels: bool) -> Iterator[_Looked]:
    """The images among the members, and the labels if they are asked for; the rest is left out."""
    path, headers = members.path, members.headers
    for some in members:
        said: dict[int, int | None] = {}
        if isinstance(some, Plain):
            names, places = some.names, some.places
            if labels:
                told = [place for place, name in enumerate(names) if _is_label(name)]
                short = some.contents
                said = {p: _label(short[p] if p in short else _begin(headers, *places[p].tolist())) for p in told}
            images = _images(names, left_out, said)
            keys = [f"{path}/{names[place]}" for place in images]
            found = Sources(keys, Ranges(path, places if len(images) == len(names) else places[images]))
        else:
            names = [some.name]
            if labels and some.isreg() and _is_label(some.name):
                said[0] = _label(_begin(headers, some.offset_data, some.size))
            source = None if said else _image(path, some, left_out)
            found, images = (Sources([], []), []) if source is None else (Sources.of([source]), [0])
        yield _Looked(names, images, found, said)


def _images(names: list[str], left_out: LeftOut, besides: Container[int]) -> list[int]:
    """The places of the images among regular files; others are left out, but those at the places `besides`."""
    # Looked at together: nearly always, none is hidden and all are images.
    some_hidden = HIDDEN.search("\0" + "\0".join(names)) is not None
    if not some_hidden and all(map(_is_image, names)):
        return list(range(len(names)))
    images = []
    for place, name in enumerate(names):
        if place in besides:
            continue
        if some_hidden and HIDDEN.search(f"\0{name}"):
            left_out.hidden(folder=False)
        elif _is_image(name):
            images.append(place)
        else:
            left_out.file(name)
    return images


def _is_image(name: str) -> bool:
    """Whether a file that is not hidden is an image's by its name."""
    return name.lower().endswith(IMAGE_ENDINGS)


def _image(path: str, member: tarfile.TarInfo, left_out: LeftOut) -> Source | None:
    if member.isdir():
        return None
    name = member.name
    if HIDDEN.search(f"\0{name}"):
        left_out.hidden(folder=False)
    elif not member.isreg():
        left_out.other("link" if member.issym() or member.islnk() else "special file")
    elif not _is_image(name):
        left_out.file(name)
    elif member.issparse():
        return Source(f"{path}/{name}", FailedLocator(path, "the member is sparse; pack the shard without --sparse"))
    else:
        return Source(f"{path}/{name}", RangeLocator(path, member.offset_data, member.size))
    return None


def _labelled(members: Iterable[_Looked]) -> Iterator[Sources]:
    """Sources with the label of their sample: a sample's members follow each other, the label before or after."""
    sample = ""
    label: int | None = None
    waiting: list[Sources] = []  # of the sample that goes on
    for some in members:
        names, images, said = some.names, some.images, some.labels
        labels: list[int | None] = []  # of those whose sample has ended
        ended, of_waiting = False, label
        if label is None and not said:
            # None has a label: only those of the last sample, which may go on, can still get one.
            begin, last = len(names) - 1, _sample(names[-1])
            while begin and _sample(names[begin - 1]) == last:
                begin -= 1
            ended, sample = begin > 0 or last != sample, last
            labels += [None] * bisect_left(images, begin)
        else:
            seen, taken = 0, frozenset(images)
            for place, name in enumerate(map(_sample, names)):
                if name != sample:
                    if not ended:
                        ended, of_waiting = True, label
                    labels += [label] * (seen - len(labels))
                    sample, label = name, None
                if place in taken:
                    seen += 1
                elif place in said:
                    label = said[place]
        if ended:
            parts = [part.labelled([of_waiting] * len(part)) for part in waiting]
            parts += [some.sources[: len(labels)].labelled(labels)] if labels else []
            yield from parts[:-2]
            if parts:
                yield Sources.joined(parts[-2:])
            waiting = []
        if len(labels) < len(images):
            waiting.append(some.sources[len(labels) :])
    for part in waiting:
        yield part.labelled([label] * len(part))


def _sample(name: str) -> str:
    """What names the sample of a member: all before the first dot of its file name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _is_label(name: str) -> bool:
    return name[-4:].lower() == ".cls" and name.rpartition("/")[2].partition(".")[2].lower() == "cls"


def _begin(headers: Headers, offset: int, size: int) -> bytes:
    return headers.at(offset, min(size, MOST_LABEL_BYTES))


def _label(data: bytes) -> int | None:
    text = data.strip()
    return int(text) if text.isdigit() and len(text) < 10 else None
