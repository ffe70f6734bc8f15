"""Progress of long steps: a bar on a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from tools.finetune.train import Progress

LINE_SECONDS = 5.0


class Reporter:
    """Shows how far a step is; `done` is a share, 0..1, or a count with `total`."""

    def __init__(self, title: str, bars: Bars | None) -> None:
        self.title = title
        self._bars = bars
        self._task = bars.add_task(title, total=1.0, note="") if bars is not None else None
        self._start = time.perf_counter()
        self._printed = 0.0
        self._count = 0

    def share(self, done: float, note: str = "") -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, note=note)
            return
        now = time.perf_counter()
        if done >= 1.0 or now - self._printed >= LINE_SECONDS:
            self._printed = now
            print(f"{self.title}: {done:6.1%} {now - self._start:6.1f} s {note}".rstrip(), flush=True)

    def count(self, more: int, total: int) -> None:
        self._count += more
        self.share(min(1.0, self._count / max(1, total)))

    def training(self, p: Progress) -> None:
        self.share(p.done, f"step {p.step} loss {p.loss:.4f} lr {p.lr:.2e} {p.images_per_second:,.0f} images/s")


@contextmanager
def reporting(title: str, *, quiet: bool = False) -> Iterator[Reporter]:
    """A Reporter for one step; `quiet` (all processes but the first) only ever prints lines of its end."""
    if quiet or not sys.stdout.isatty():
        reporter = Reporter(title, None)
        if quiet:
            reporter.share = lambda done, note="": None  # type: ignore[method-assign]
        yield reporter
        return
    share, note = TextColumn("{task.percentage:>5.1f}%"), TextColumn("{task.fields[note]}")
    with Bars("{task.description}", BarColumn(), share, TimeRemainingColumn(), note) as bars:
        yield Reporter(title, bars)
