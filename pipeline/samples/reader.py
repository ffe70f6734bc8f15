"""From a locator to the bytes of an image file, in a loader: whatever is wrong with it is one ImageError."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import ExitStack
from typing import Any

from pipeline.errors import ImageError, PipelineError
from pipeline.samples.files import open_file
from pipeline.samples.remote import file_system, is_url, reason
from pipeline.samples.sources import (
    BytesLocator,
    FailedLocator,
    Locator,
    PathLocator,
    RangeLocator,
    RowLocator,
)
from pipeline.samples.tables import RowCursor, image_in

# Shards and row groups that stay open. Tasks come in the order of the sources: the one that ends and the one that
# begins would do, and a row group's page may have 100 MB.
OPEN_SHARDS = 8
OPEN_ROW_GROUPS = 2

NO_MEMORY = "not enough memory to read it"
WITHIN = "the shard ends within this member: {} of its {} bytes are there"


class Reader:
    """Reads what locators point to; one per loader, not for several threads.

    A shard is opened once and read where its members are. A row group is read forwards, once, as long as its rows are
    asked for in order. What stays open is bounded: OPEN_SHARDS files, OPEN_ROW_GROUPS cursors of a page or two each.

    Attributes:
        max_bytes: what is larger is refused before it is read.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError("an image file has at least one byte")
        self.max_bytes = max_bytes
        self._shards: OrderedDict[str, tuple[int, ExitStack]] = OrderedDict()
        self._cursors: OrderedDict[tuple[str, int, str], RowCursor] = OrderedDict()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for _, shard in self._shards.values():
            shard.close()
        for cursor in self._cursors.values():
            cursor.close()
        self._shards.clear()
        self._cursors.clear()

    def read(self, locator: Locator) -> bytes:
        """The image file's bytes, never empty, at most `max_bytes`.

        Raises ImageError with the reason: not there, not readable, not a regular file (a FIFO is not waited for),
        empty, too large, cut short. Whether the bytes are an image is not looked at.
        """
        try:
            if isinstance(locator, PathLocator):
                return self._path(locator.path)
            if isinstance(locator, RangeLocator):
                return self._range(locator)
            if isinstance(locator, RowLocator):
                return self._row(locator)
            if isinstance(locator, BytesLocator):
                return self._checked("bytes", locator.data)
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(_place(locator), NO_MEMORY) from error
        except PipelineError as error:  # a library that is missing: the listing would have said so before
            raise ImageError(_place(locator), str(error)) from error
        if isinstance(locator, FailedLocator):
            raise ImageError(locator.path, locator.why)
        raise TypeError(f"not a locator: {locator!r}")

    def read_into(self, locator: Locator, room: memoryview) -> memoryview | bytes:
        """The same without a copy of its own, where it can: a view of `room` (bytes), from its beginning on.

        Bytes of its own where they do not fit, or come from elsewhere than a file or a part of one.
        """
        try:
            return self._into(locator, room)
        except MemoryError as error:
            raise ImageError(_place(locator), NO_MEMORY) from error

    def _into(self, locator: Locator, room: memoryview) -> memoryview | bytes:
        if isinstance(locator, PathLocator) and not is_url(locator.path):
            path = locator.path
            with open_file(path) as (descriptor, size):
                self._check_size(path, size)
                if size > len(room):
                    return self._whole(path, descriptor, size)
                return _filled(path, descriptor, 0, room[:size], "cut short while it was read")
        if isinstance(locator, RangeLocator) and not is_url(locator.path) and 0 < locator.length <= len(room):
            path, length = locator.path, locator.length
            self._check_size(path, length)
            return _filled(path, self._shard(path), locator.offset, room[:length], WITHIN)
        return self.read(locator)

    def _path(self, path: str) -> bytes:
        if is_url(path):
            # One byte more than is allowed, so that one request both reads it and shows that it is too large.
            return self._checked(path, _read_url(path, 0, self.max_bytes + 1))
        with open_file(path) as (descriptor, size):
            self._check_size(path, size)
            return self._whole(path, descriptor, size)

    def _whole(self, path: str, descriptor: int, size: int) -> bytes:
        data = _read_range(path, descriptor, 0, size)
        if len(data) < size:
            raise ImageError(path, "cut short while it was read")
        return data

    def _range(self, locator: RangeLocator) -> bytes:
        path, offset, length = locator.path, locator.offset, locator.length
        self._check_size(path, length)
        if is_url(path):
            data = _read_url(path, offset, offset + length)
        else:
            data = _read_range(path, self._shard(path), offset, length)
        if len(data) < length:
            raise ImageError(path, WITHIN.format(len(data), length))
        return data

    def _row(self, locator: RowLocator) -> bytes:
        image = image_in(self._cursor(locator).cell(locator.row), locator.path, locator.column)
        return self._path(image) if isinstance(image, str) else self._checked(locator.path, image)

    def _shard(self, path: str) -> int:
        if path not in self._shards:
            stack = ExitStack()
            descriptor, _ = stack.enter_context(open_file(path))
            self._shards[path] = descriptor, stack
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)[1][1].close()
        self._shards.move_to_end(path)
        return self._shards[path][0]

    def _cursor(self, locator: RowLocator) -> RowCursor:
        key = (locator.path, locator.row_group, locator.column)
        if key in self._cursors:
            self._cursors.move_to_end(key)
            return self._cursors[key]
        cursor = self._cursors[key] = RowCursor(*key)
        if len(self._cursors) > OPEN_ROW_GROUPS:
            self._cursors.popitem(last=False)[1].close()
        return cursor

    def _checked(self, place: str, data: bytes) -> bytes:
        self._check_size(place, len(data))
        return data

    def _check_size(self, place: str, size: int) -> None:
        if size == 0:
            raise ImageError(place, "the file is empty")
        if size > self.max_bytes:
            raise ImageError(place, f"more bytes than --max-image-bytes {self.max_bytes}")


def _read_range(path: str, descriptor: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes from `offset` on; fewer where the file ends before."""
    try:
        data = os.pread(descriptor, length, offset)
        while 0 < len(data) < length:  # the system gives 2 GiB at most at a time
            more = os.pread(descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
    except OSError as error:
        raise ImageError(path, f"it cannot be read: {error.strerror or error}") from error
    return data


def _filled(path: str, descriptor: int, offset: int, room: memoryview, short: str) -> memoryview:
    """`room`, filled from `offset` on. Raises ImageError with the reason `short` where the file ends before."""
    found = 0
    try:
        while found < len(room) and (more := os.preadv(descriptor, [room[found:]], offset + found)):
            found += more
    except OSError as error:
        raise ImageError(path, f"it cannot be read: {error.strerror or error}") from error
    if found < len(room):
        raise ImageError(path, short.format(found, len(room)))
    return room


def _read_url(url: str, start: int, end: int) -> bytes:
    files, path = file_system(url)
    try:
        data: Any = files.cat_file(path, start=start, end=end)
    except Exception as error:  # each protocol has errors of its own
        raise ImageError(url, reason(error)) from error
    return bytes(data)


def _place(locator: Locator) -> str:
    return "bytes" if isinstance(locator, BytesLocator) else locator.path
