"""From what a user names (files, folders, patterns, lists, shards, tables, URLs) to sources, lazily and in order."""

from __future__ import annotations

import io
import os
import re
import select
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import chain, islice, product
from typing import BinaryIO, NamedTuple, TypeAlias

from pipeline.errors import ImageError, PipelineError
from pipeline.samples.files import why_not_opened
from pipeline.samples.left_out import LeftOut
from pipeline.samples.library import IMAGE_SUFFIXES
from pipeline.samples.listing import Entry, glob, has_magic, walk_some
from pipeline.samples.remote import file_system, is_url, open_binary, reason
from pipeline.samples.shards import COMPRESSED_SUFFIXES, SHARD_SUFFIX, WHY_COMPRESSED, shard_sources
from pipeline.samples.sources import SOME, FailedLocator, Paths, Source, Sources, some_at_a_time
from pipeline.samples.tables import TABLE_SUFFIX, NoImageColumn, Table, image_column, table_sources

# What of a list may be more than a file: a shard or a table.
MORE_THAN_FILES = re.compile(
    "|".join(map(re.escape, (SHARD_SUFFIX, TABLE_SUFFIX, *COMPRESSED_SUFFIXES))), re.IGNORECASE
)
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
MOST_EXPANDED = 1_000_000
# A line of a list: longer than any path, short enough for what is no list at all.
MOST_LINE_BYTES = 1 << 14
# Of a list, read at a time.
LIST_BYTES = 1 << 15
BOM = b"\xef\xbb\xbf"


class Shard(NamedTuple):
    """A shard, not opened."""

    path: str


Part: TypeAlias = Sources | Shard


def expand(
    arguments: Iterable[str],
    *,
    column: str | None = None,
    shard_labels: bool = False,
    left_out: LeftOut | None = None,
    stdin: BinaryIO | None = None,
    apart: Callable[[str], bool] = lambda path: False,
) -> Iterator[Source]:
    """The sources that `arguments` name, in that order.

    An argument is a file, a folder (with all below it), a pattern (`*`, `?`, `[...]`, `**`), `@FILE` or `-` (a path a
    line, of a file or of `stdin`), a `.tar` shard or a `.parquet` table; all but the last two may be a URL, and so may
    the shards and tables. `{000..127}` and `{a,b}` stand for many arguments. A path in a list or a table is as if given
    as an argument, but that it is not looked at here: whatever it names is a source.

    In folders and where a pattern ends in a `*`, images, shards and tables with a fitting column are taken; the rest is
    counted in `left_out`. `column`: of the tables, the one with the images (see `image_column`). `shard_labels`: `.cls`
    of a shard are its sources' labels. `apart` says of a path that is found, and is no image, that it is to be passed
    over without a word.

    Arguments are looked at at once: PipelineError says that one is not there, cannot be read, or needs a library. What
    goes wrong afterwards is a failed source, so that no file ends a run.
    """
    return chain.from_iterable(
        expand_some(arguments, column=column, shard_labels=shard_labels, left_out=left_out, stdin=stdin, apart=apart)
    )


def expand_some(
    arguments: Iterable[str],
    *,
    column: str | None = None,
    shard_labels: bool = False,
    left_out: LeftOut | None = None,
    stdin: BinaryIO | None = None,
    apart: Callable[[str], bool] = lambda path: False,
) -> Iterator[Sources]:
    """The sources of `expand`, by columns: those that are there together, a few hundred at a time at most."""
    left_out = left_out if left_out is not None else LeftOut()
    parts = expand_parts(arguments, column=column, left_out=left_out, stdin=stdin, apart=apart)
    return _with_shards(parts, left_out, shard_labels)


def expand_parts(
    arguments: Iterable[str],
    *,
    column: str | None = None,
    left_out: LeftOut | None = None,
    stdin: BinaryIO | None = None,
    apart: Callable[[str], bool] = lambda path: False,
) -> Iterator[Part]:
    """The same, but that shards are not opened: each is named at its place, for whoever lists it (`shard_sources`)."""
    expander = _Expander(column, left_out if left_out is not None else LeftOut(), stdin, apart)
    planned = [listing for argument in arguments for listing in expander.plan(argument)]
    return chain.from_iterable(listing() for listing in planned)


def _with_shards(parts: Iterator[Part], left_out: LeftOut, labels: bool) -> Iterator[Sources]:
    for part in parts:
        if isinstance(part, Shard):
            yield from shard_sources(part.path, left_out, labels=labels)
        else:
            yield part


def look_at(arguments: Iterable[str], *, column: str | None = None) -> None:
    """Raises the PipelineError that `expand` raises at once, if it does; nothing is listed. For no argument of `-`."""
    expander = _Expander(column, LeftOut(), None, lambda path: False)
    for argument in arguments:
        if argument.startswith("@"):
            _open_list(argument[1:]).close()
        else:
            for _ in expander.plan(argument):
                pass


def spelled_out(argument: str) -> list[str]:
    """The arguments that `argument` stands for: more than one where it has braces. Raises PipelineError."""
    listed = argument == "-" or argument.startswith("@")
    literal = listed or (not is_url(argument) and os.path.lexists(argument))
    return [argument] if literal else _expand_braces(argument)


def shard_some(sources: Iterator[Sources], index: int, count: int) -> Iterator[Sources]:
    """Of `sources`, those of shard `index` (0, 1, ...) of `count`: each is in one shard, by a hash of its key.

    By the key and not by the place, so that a file that comes or goes between two runs moves no other one to another
    shard, where it would be done twice or not at all. All shards must name their sources alike. None of what comes is
    empty.
    """
    if not 0 <= index < count:
        raise ValueError(f"shard {index} of {count}")
    return sources if count == 1 else _ours(sources, index, count)


def _ours(sources: Iterator[Sources], index: int, count: int) -> Iterator[Sources]:
    for some in sources:
        places = [place for place, key in enumerate(some.keys) if _hash(key) % count == index]
        if places:
            yield some.take(places)


def parse_shard(text: str) -> tuple[int, int]:
    """(index, count) of `3/8`. Raises PipelineError."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise PipelineError(f"--shard {text}: it takes INDEX/COUNT with an index from 0 to COUNT - 1, as in 0/4")
    return int(match[1]), int(match[2])


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass
class _Expander:
    column: str | None
    left_out: LeftOut
    stdin: BinaryIO | None
    apart: Callable[[str], bool]
    first_table: bool = field(default=True)

    def plan(self, argument: str) -> Iterator[Callable[[], Iterator[Part]]]:
        """Looks at `argument`; each of what it gives lists a part of it once called. Raises PipelineError."""
        if argument == "-":
            yield partial(self._list, "standard input", self.stdin if self.stdin is not None else open_stdin())
        elif argument.startswith("@"):
            yield partial(self._list, argument[1:], _open_list(argument[1:]))
        elif not argument:
            raise PipelineError("a source has an empty name; name a file, a folder or a list")
        else:
            for name in spelled_out(argument):
                yield self._plan_url(name) if is_url(name) else self._plan_path(name)

    def _plan_path(self, path: str) -> Callable[[], Iterator[Part]]:
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError as error:
            if os.path.islink(path):
                raise PipelineError(f"{path}: a link to a file that is not there") from error
            if has_magic(path):
                return self._plan_glob(path)
            raise PipelineError(f"{path}: there is no such file or folder") from error
        except OSError as error:
            raise PipelineError(f"{path}: {why_not_opened(error)}") from error
        except ValueError as error:  # a NUL in the name
            raise PipelineError(f"{path!r}: not a file name: {error}") from error
        if stat.S_ISDIR(mode):
            return partial(self._below, path)
        return self._plan_file(path)

    def _plan_url(self, url: str) -> Callable[[], Iterator[Part]]:
        files, path = file_system(url)
        if _is_known(url):
            return self._plan_file(url)
        if has_magic(path):
            return self._plan_glob(url)
        try:
            folder = url.endswith("/") or files.isdir(path)
        except Exception as error:  # each protocol has errors of its own
            raise PipelineError(f"{url}: {reason(error)}") from error
        return partial(self._below, url) if folder else self._plan_file(url)

    def _plan_glob(self, pattern: str) -> Callable[[], Iterator[Part]]:
        matches = glob(pattern, self.left_out)
        seen = list(islice(matches, 2))
        if not seen:
            raise PipelineError(f"{pattern}: no file has a name like this")
        if len(seen) == 1 and seen[0].kind == "failed":
            raise PipelineError(f"{pattern}: {seen[0].path}: {seen[0].why}")
        # `*.dat` says what it wants; `*` takes what looks like an image.
        last = pattern.rpartition("/")[2]
        named = bool(os.path.splitext(last)[1]) and not has_magic(os.path.splitext(last)[1])
        return partial(self._found, chain(seen, matches), named=named)

    def _plan_file(self, path: str) -> Callable[[], Iterator[Part]]:
        if path.lower().endswith(COMPRESSED_SUFFIXES):
            raise PipelineError(f"{path}: {WHY_COMPRESSED}")
        if path.lower().endswith(TABLE_SUFFIX) and self.first_table:
            # A column that is not there is a mistake in the command: better now than as the first answer.
            self.first_table = False
            try:
                table = Table(path)
            except ImageError:
                pass  # a failed source, like any other table that is damaged
            else:
                with table:
                    image_column(table, self.column)
        return partial(self._file, path)

    def _file(self, path: str) -> Iterator[Part]:
        """The sources in the file that is named: what is no shard or table is an image, whatever its ending."""
        ending = path.lower()
        if ending.endswith(SHARD_SUFFIX):
            yield Shard(path)
        elif ending.endswith(TABLE_SUFFIX):
            yield from self._table(path)
        elif ending.endswith(COMPRESSED_SUFFIXES):
            yield _failed(path, WHY_COMPRESSED)
        else:
            yield _files([path])

    def _below(self, folder: str) -> Iterator[Part]:
        """The sources in `folder` and below it."""
        return self._found(walk_some(folder, self.left_out, tuple(IMAGE_SUFFIXES)))

    def _found(self, entries: Iterable[Entry | list[str]], named: bool = False) -> Iterator[Part]:
        """The sources in what was found in folders."""
        for entry in entries:
            if isinstance(entry, list):
                yield _files(entry)
            elif entry.kind == "file" and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield _files([entry.path])
            elif self.apart(entry.path):
                continue
            elif entry.kind == "failed":
                yield _failed(entry.path, entry.why)
            elif entry.kind == "folder":
                yield from self._below(entry.path)
            elif entry.kind != "file":
                self.left_out.other(entry.kind)
            elif entry.name.lower().endswith(TABLE_SUFFIX):
                yield from self._table(entry.path, named=named)
            elif entry.name.lower().endswith(SHARD_SUFFIX) or named:
                yield from self._file(entry.path)
            else:
                self.left_out.file(entry.name)

    def _table(self, path: str, named: bool = True) -> Iterator[Sources]:
        """The rows of the table at `path`. One that is not `named` but found may be about something else.

        It is left out when it has no column of images, and its column of paths is only taken when `column` says so.
        """
        try:
            with Table(path) as table:
                column = image_column(table, self.column, paths=named)
                yield from some_at_a_time(table_sources(table, column))
        except PipelineError as error:
            if isinstance(error, NoImageColumn) and not named:
                self.left_out.file(path)
            else:
                yield _failed(path, error.why if isinstance(error, ImageError) else str(error))

    def _list(self, name: str, stream: BinaryIO) -> Iterator[Part]:
        """A path a line, in whatever bytes the file system has them."""
        with stream:
            for lines in _lines(name, stream):
                if isinstance(lines, Sources):
                    yield lines
                    return
                paths = [path for path in lines if path.strip()]
                # Looked at together: nearly always, none is anything but an image.
                if MORE_THAN_FILES.search("\n".join(paths)) is None:
                    yield from (_files(paths[at : at + SOME]) for at in range(0, len(paths), SOME))
                else:
                    yield from chain.from_iterable(map(self._file, paths))


def _files(paths: list[str]) -> Sources:
    """Files whose keys are their paths."""
    return Sources(paths, Paths(paths))


def _failed(key: str, why: str) -> Sources:
    return Sources([key], [FailedLocator(key, why)])


def _lines(name: str, stream: BinaryIO) -> Iterator[list[str] | Sources]:
    """The lines of a list, those that are there at a time; a failed source at the end where it is not the end."""
    # A pipe gives what it has; what has no such call is a file behind a URL, which gives all that is asked for.
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    data, rest, first = None, b"", True
    while data != b"":
        try:
            data = read(LIST_BYTES)
        except Exception as error:  # behind a URL each protocol has errors of its own
            yield _failed(name, f"the list cannot be read to its end: {reason(error)}")
            return
        *lines, rest = (rest + data).split(b"\n")
        if not data:
            lines = [rest]
        if first and lines:
            lines[0], first = lines[0].removeprefix(BOM), False
        too_long = next((n for n, line in enumerate([*lines, rest]) if len(line) >= MOST_LINE_BYTES), None)
        # Decoded as one text: a byte that is not UTF-8 stays within its line.
        text = os.fsdecode(b"\n".join(lines[:too_long]))
        yield [line.rstrip("\r") for line in text.split("\n")]
        if too_long is not None:
            yield _failed(name, "a line is too long for a path; a list has a path a line")
            return


def _is_known(url: str) -> bool:
    """Whether the ending shows that it is one file, so that nobody has to be asked."""
    path = url.lower()
    if has_magic(path):
        return False
    return path.endswith((SHARD_SUFFIX, TABLE_SUFFIX, *COMPRESSED_SUFFIXES, *IMAGE_SUFFIXES))


class _Patient(io.FileIO):
    """A file that is waited for, also where whoever started this process has set its descriptor not to block.

    A buffer takes one that has nothing yet for one that is at its end, and all that comes later would be lost.
    """

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while (count := super().readinto(buffer)) is None:
            select.select([self], [], [])
        return count


def open_stdin() -> BinaryIO:
    """Standard input for bytes, whatever stands in for `sys.stdin`.

    Where it has a descriptor, not through its buffer: a thread that waits in that one brings the interpreter down when
    it ends. Raises PipelineError when it is closed.
    """
    if sys.stdin is None:
        raise PipelineError("-: standard input is closed; name the list as @FILE")
    try:
        return io.BufferedReader(_Patient(sys.stdin.fileno(), closefd=False))
    except io.UnsupportedOperation:
        return sys.stdin.buffer


def _open_list(path: str) -> BinaryIO:
    """The list at `path`; a pipe will do, as a shell's `@<(find ...)` gives one."""
    if is_url(path):
        try:
            return open_binary(path)
        except ImageError as error:
            raise PipelineError(f"{path}: the list cannot be read: {error.why}") from error
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:
        why = why_not_opened(error) if isinstance(error, OSError) else f"not a file name: {error}"
        raise PipelineError(f"{path}: the list cannot be read: {why}") from error


def _expand_braces(text: str) -> list[str]:
    """`{000..127}` as numbers of that width, `{a,b}` as its parts, several of them as all combinations."""
    pieces = BRACES.split(text)  # literal, inside, literal, inside, ..., literal
    choices = [_choices(piece) if n % 2 else [piece] for n, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MOST_EXPANDED:
        raise PipelineError(f"{text}: stands for {count:,} names, more than {MOST_EXPANDED:,}; write them in a list")
    return ["".join(parts) for parts in product(*choices)]


def _choices(inside: str) -> list[str]:
    if match := RANGE.fullmatch(inside):
        first, last = int(match[1]), int(match[2])
        if abs(last - first) >= MOST_EXPANDED:
            raise PipelineError(f"{{{inside}}}: stands for more than {MOST_EXPANDED:,} names; write them in a list")
        padded = any(len(end) > 1 and end.startswith("0") for end in match.groups())
        width = max(len(end) for end in match.groups()) if padded else 0
        step = 1 if last >= first else -1
        return [str(number).zfill(width) for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]
