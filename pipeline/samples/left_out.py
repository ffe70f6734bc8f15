"""Count of what a listing passes over, so that it can be said in one line."""

from __future__ import annotations

import os
from collections import Counter

# Endings that are counted each by itself; in a folder with more of them the rest is one number.
MOST_ENDINGS = 1000
NAMED_IN_LINE = 5


class LeftOut:
    """What is not taken for an image, by ending. Written by the thread that lists; others may read.

    Attributes:
        files: how many files, by ending in lower case or by what else they are (`hidden`, `broken link`).
        folders: how many folders: hidden ones, and links to a folder that they lie in.
    """

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.folders = 0

    def file(self, name: str) -> None:
        """A file whose ending is none of an image's."""
        self.other(os.path.splitext(name)[1].lower() or "no ending")

    def other(self, what: str, count: int = 1) -> None:
        self.files[what if what in self.files or len(self.files) < MOST_ENDINGS else "other endings"] += count

    def hidden(self, *, folder: bool) -> None:
        if folder:
            self.folder()
        else:
            self.other("hidden")

    def folder(self) -> None:
        self.folders += 1

    def add(self, other: LeftOut) -> None:
        """What was passed over elsewhere."""
        for what, count in other.files.items():
            self.other(what, count)
        self.folders += other.folders

    def __bool__(self) -> bool:
        return bool(self.files or self.folders)

    def line(self) -> str:
        """`ignored 7 files (.heic 3, .txt 2, ...), 2 folders`; empty when nothing was left out."""
        parts = []
        if total := self.files.total():
            kinds = sorted(self.files.items(), key=lambda item: (-item[1], item[0]))
            named = [f"{what} {count:,}" for what, count in kinds[:NAMED_IN_LINE]]
            more = ["..."] if len(kinds) > NAMED_IN_LINE else []
            parts.append(f"{total:,} file{'s' * (total > 1)} ({', '.join(named + more)})")
        if self.folders:
            parts.append(f"{self.folders:,} folder{'s' * (self.folders > 1)}")
        return f"ignored {', '.join(parts)}" if parts else ""
