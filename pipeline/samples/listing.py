"""What is in a folder, here or behind a URL: in order, lazily, and whole trees and patterns of it.

Names are sorted within windows of WINDOW: a folder with fewer is in order of name, and a folder of millions neither
has to be read to its end before its first name comes nor fits into memory. Its windows come as the system lists
them, the same each time as long as the folder is left alone.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from operator import attrgetter
from typing import Literal, TypeAlias, TypeVar

from pipeline.samples.files import why_not_opened
from pipeline.samples.left_out import LeftOut
from pipeline.samples.remote import file_system, is_url, reason
from pipeline.samples.sources import SOME, SOME_S

E = TypeVar("E")

WINDOW = 1 << 16
MAGIC = frozenset("*?[")

Kind: TypeAlias = Literal["file", "folder", "broken link", "special file", "failed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a folder has under `name`. `why`: of a `failed` one, the reason why the folder at `path` is not listed."""

    path: str
    name: str
    kind: Kind
    why: str = ""


def entries(folder: str) -> Iterator[Entry]:
    """What is in `folder`; a folder that cannot be listed (to its end) is, or ends with, one `failed` entry."""
    return _or_failed(folder, lambda: _remote_entries(folder) if is_url(folder) else _local_entries(folder))


def _or_failed(folder: str, listed: Callable[[], Iterator[E]]) -> Iterator[E | Entry]:
    try:
        yield from listed()
    except OSError as error:
        why = why_not_opened(error) if error.errno is not None else reason(error)
        yield Entry(folder, os.path.basename(folder), "failed", why)
    except Exception as error:  # behind a URL each protocol has errors of its own
        yield Entry(folder, os.path.basename(folder), "failed", reason(error))


def walk(folder: str, left_out: LeftOut) -> Iterator[Entry]:
    """The files at and below `folder`, depth first, and its `failed` folders; the rest is counted in `left_out`.

    Links to folders are followed, unless to a folder that they lie in. Hidden files and folders are left out.
    """
    for entry in walk_some(folder, left_out, ()):
        assert isinstance(entry, Entry), "paths are of files with an ending, and none was asked for"
        yield entry


def walk_some(folder: str, left_out: LeftOut, endings: tuple[str, ...]) -> Iterator[Entry | list[str]]:
    """The same, but that files with one of these endings, in whatever case, come as paths, up to SOME at a time."""

    def listed(folder: str) -> Iterator[Entry | list[str]]:
        return _or_failed(folder, lambda: _remote_entries(folder) if is_url(folder) else _local(folder, endings))

    open_folders: list[tuple[Iterator[Entry | list[str]], tuple[int, int] | None]] = [
        (listed(folder), _identity(folder))
    ]
    while open_folders:
        entry = next(open_folders[-1][0], None)
        if entry is None:
            open_folders.pop()
        elif isinstance(entry, list):
            yield entry
        elif entry.name.startswith(".") and entry.kind != "failed":
            left_out.hidden(folder=entry.kind == "folder")
        elif entry.kind == "folder":
            identity = _identity(entry.path)
            if identity is not None and any(identity == above for _, above in open_folders):
                left_out.folder()
            else:
                open_folders.append((listed(entry.path), identity))
        elif entry.kind in ("file", "failed"):
            yield entry
        else:
            left_out.other(entry.kind)


def has_magic(path: str) -> bool:
    return not MAGIC.isdisjoint(path)


def glob(pattern: str, left_out: LeftOut) -> Iterator[Entry]:
    """The files and folders that match `pattern`, as a shell with `**` has it; after a `**`, files alone.

    A name that starts with a dot is matched by a segment that starts with one.
    """
    segments = pattern.split("/")
    literal = next(n for n, segment in enumerate(segments) if has_magic(segment))
    folder = "/".join(segments[:literal])
    if literal and not folder:
        folder = "/"
    return _glob(folder, segments[literal:], left_out)


def _glob(folder: str, segments: list[str], left_out: LeftOut) -> Iterator[Entry]:
    head, rest = segments[0], segments[1:]
    if head == "**":
        for entry in walk(folder or ".", left_out):
            path = entry.path if folder else entry.path.removeprefix("./")
            below = path[len(folder) :].lstrip("/").split("/")
            if entry.kind == "failed" or _matches(below, segments):
                yield Entry(path, entry.name, entry.kind, entry.why)
    elif not has_magic(head):
        path = os.path.join(folder, head)
        if rest:
            yield from _glob(path, rest, left_out)
        else:
            yield from _lookup(folder, path, head)
    else:
        for entry in entries(folder or "."):
            path = os.path.join(folder, entry.name) if entry.kind != "failed" else entry.path
            if entry.kind == "failed":
                yield entry
            elif _matches([entry.name], [head]):
                if not rest:
                    yield Entry(path, entry.name, entry.kind)
                elif entry.kind == "folder":
                    yield from _glob(path, rest, left_out)


def _lookup(folder: str, path: str, name: str) -> Iterator[Entry]:
    """What `folder` has under `name`, at `path`, or nothing."""
    if is_url(folder):
        yield from (found for found in entries(folder) if found.name == name)
    elif os.path.isdir(path):
        yield Entry(path, name, "folder")
    elif os.path.isfile(path):
        yield Entry(path, name, "file")
    elif os.path.lexists(path):
        yield Entry(path, name, "special file" if os.path.exists(path) else "broken link")


def _matches(names: list[str], segments: list[str]) -> bool:
    if not segments:
        return not names
    if segments[0] == "**":
        return any(_matches(names[skipped:], segments[1:] or ["*"]) for skipped in range(len(names)))
    if not names or (names[0].startswith(".") and not segments[0].startswith(".")):
        return False
    return fnmatchcase(names[0], segments[0]) and _matches(names[1:], segments[1:])


def _local_entries(folder: str) -> Iterator[Entry]:
    return (Entry(os.path.join(folder, entry.name), entry.name, _kind(entry)) for entry in _scanned(folder))


def _local(folder: str, endings: tuple[str, ...]) -> Iterator[Entry | list[str]]:
    """What is in `folder`; files with these endings as paths, those that follow each other together."""
    # As os.path.join puts before a name; a call of it for each would be a third of all the work.
    before = os.path.join(folder, "")
    paths: list[str] = []
    due_s = 0.0
    for entry in _scanned(folder):
        name = entry.name
        taken = name.lower().endswith(endings) and name[0] != "." and _kind(entry) == "file"
        if taken:
            if not paths:
                due_s = time.monotonic() + SOME_S
            paths.append(before + name)
        if paths and (not taken or len(paths) >= SOME or time.monotonic() >= due_s):
            yield paths
            paths = []
        if not taken:
            yield Entry(before + name, name, _kind(entry))
    if paths:
        yield paths


def _scanned(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        while window := list(islice(found, WINDOW)):
            window.sort(key=attrgetter("name"), reverse=True)
            while window:
                yield window.pop()  # what it finds out of a link stays with it: a window of links is 57 MB


def _kind(entry: os.DirEntry[str]) -> Kind:
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        return "broken link" if entry.is_symlink() else "special file"
    except OSError:  # a link to itself
        return "broken link"


def _remote_entries(url: str) -> Iterator[Entry]:
    """fsspec lists a folder as a whole: this is as lazy as it gets there."""
    files, folder = file_system(url)
    folder = folder.rstrip("/")
    for found in sorted(files.ls(folder, detail=True), key=lambda found: str(found["name"])):
        name = str(found["name"]).rstrip("/").rpartition("/")[2]
        if str(found["name"]).rstrip("/") != folder and name:
            yield Entry(f"{url.rstrip('/')}/{name}", name, "folder" if found["type"] == "directory" else "file")


def _identity(folder: str) -> tuple[int, int] | None:
    """What is the same for two ways to one folder; None where links do not exist or the folder cannot be had."""
    if is_url(folder):
        return None
    try:
        state = os.stat(folder)
    except OSError:
        return None
    return (state.st_dev, state.st_ino) if stat.S_ISDIR(state.st_mode) else None
