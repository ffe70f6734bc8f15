"""What is listed in one task: the arguments of a command line, parted so that no key can be in two parts.

A shard or a table that is named, by itself or by a pattern, is a part of its own, so that a thousand shards are listed
side by side; a folder, a list and any other pattern are one each, and images that are named one by one are some
thousand together. Where two arguments may give the same key (a folder, and a file in it), they are one part, which
gives each key once.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.errors import PipelineError
from pipeline.samples.expand import expand, spelled_out
from pipeline.samples.left_out import LeftOut
from pipeline.samples.library import IMAGE_SUFFIXES
from pipeline.samples.listing import glob, has_magic
from pipeline.samples.remote import is_url
from pipeline.samples.shards import SHARD_SUFFIX
from pipeline.samples.tables import TABLE_SUFFIX

STDIN = "-"

# Images that are named one by one: so many are listed in one task.
NAMED_IN_A_PART = 4096


@dataclass(frozen=True)
class _Reach:
    """What keys an argument may give: `text` and what lies below it or, if `open`, all that begin with `text`."""

    text: str
    open: bool

    @classmethod
    def of(cls, argument: str) -> _Reach:
        if argument == STDIN or argument.startswith("@"):
            return cls("", True)
        if has_magic(argument) and not os.path.lexists(argument):
            return cls(argument[: next(n for n, letter in enumerate(argument) if letter in "*?[")], True)
        return cls(argument.rstrip("/") or "/", False)


def parted(
    arguments: Sequence[str], column: str | None = None, apart: Callable[[str], bool] = lambda path: False
) -> list[tuple[str, ...]]:
    """The arguments of each part, in the order of the first in each. Raises PipelineError as `expand` does.

    `apart` is of `expand`. All arguments are looked at; of what they name only patterns that end in `.tar` or
    `.parquet` are looked up.
    """
    for name in arguments:
        if name.startswith("@") and not is_url(name[1:]) and os.path.exists(name[1:]) and not os.path.isfile(name[1:]):
            raise PipelineError(f"{name[1:]}: is no regular file, so other machines cannot read it; give the list as -")
    expand(arguments, column=column, stdin=io.BytesIO())
    names = [name for argument in arguments for part in spelled_out(argument) for name in _looked_up(part, apart)]
    groups = _Groups(len(names))
    reaches = [_Reach.of(name) for name in names]
    closed: dict[str, int] = {}
    for number, reach in enumerate(reaches):
        if not reach.open:
            groups.join(number, closed.setdefault(reach.text, number))
        # Images that follow each other; the first of every so many begins anew.
        if number % NAMED_IN_A_PART and _is_image(names[number]) and _is_image(names[number - 1]):
            groups.join(number, number - 1)
    for number, reach in enumerate(reaches):
        if reach.open:
            for other, that in enumerate(reaches):
                if that.text.startswith(reach.text) or reach.text.startswith(that.text):
                    groups.join(number, other)
        else:
            for above in _above(reach.text):
                if above in closed:
                    groups.join(number, closed[above])
    return [tuple(names[n] for n in members) for members in groups.members()]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not has_magic(name)


def _looked_up(argument: str, apart: Callable[[str], bool]) -> Iterator[str]:
    pattern = has_magic(argument) and not is_url(argument) and not os.path.lexists(argument)
    if not pattern or not argument.lower().endswith((SHARD_SUFFIX, TABLE_SUFFIX)):
        yield argument
        return
    found = [entry for entry in glob(argument, LeftOut()) if not apart(entry.path)]
    if not found or any(entry.kind != "file" for entry in found):
        yield argument  # what is amiss with it, or else is there, the listing says
        return
    yield from (entry.path for entry in found)


def _above(text: str) -> Iterator[str]:
    """The names that `text` lies below."""
    while True:
        text, slash, _ = text.rpartition("/")
        if not slash:
            return
        yield text or "/"


class _Groups:
    """Numbers from 0 on, and which of them belong together."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def join(self, one: int, other: int) -> None:
        one, other = self._first(one), self._first(other)
        self._parent[max(one, other)] = min(one, other)

    def members(self) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for number in range(len(self._parent)):
            groups.setdefault(self._first(number), []).append(number)
        return list(groups.values())

    def _first(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = number = self._parent[self._parent[number]]
        return number
