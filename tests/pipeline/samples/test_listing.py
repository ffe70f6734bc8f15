"""Folders are listed in memory that does not grow while they are read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from pipeline.samples.listing import entries

LINKS = 2000


def test_what_has_been_listed_is_let_go(tmp_path: Path) -> None:
    """Whether a link is a file takes a look at it, and what is seen is kept with the name."""
    (tmp_path / "image").touch()
    folder = tmp_path / "links"
    folder.mkdir()
    for number in range(LINKS):
        (folder / f"{number:04}.jpg").symlink_to(tmp_path / "image")
    listed = entries(str(folder))
    tracemalloc.start()
    try:
        names = [next(listed).name]
        window, _ = tracemalloc.get_traced_memory()
        names += [next(listed).name for _ in range(LINKS - 2)]
        left, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 0.75 * window
    assert most < 1.25 * window
    assert [*names, *(entry.name for entry in listed)] == [f"{number:04}.jpg" for number in range(LINKS)]
