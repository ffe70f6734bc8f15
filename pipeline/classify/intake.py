"""What goes into the session: the sources that are left to do, and how many there are in all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from pipeline.samples.expand import expand, shard
from pipeline.samples.keys import KeySet
from pipeline.samples.labels import KeptLabels
from pipeline.samples.left_out import LeftOut
from pipeline.samples.sources import Source

# The count goes on beside the run and yields to it: so many names at a time, then a breath.
COUNTED_AT_A_TIME = 256
BREATH_S = 0.001


class Intake:
    """The sources of a command line, once each.

    Args:
        done: keys that are answered already; grows by what is given out.
        labels_below: how many classes there are, where the labels that sources bring are wanted; None: they are not.
        apart: whether a path that is found is to be passed over: the run's own output.

    Attributes:
        left_out: what the listing passed over.
        kept_labels: of sources that were answered by an earlier run.
        odd_labels: labels that sources brought and that are no class.
        skipped: sources that were not given out: answered by an earlier run, or named twice.
        total: sources there are, None until they have been counted.
    """

    def __init__(
        self,
        arguments: tuple[str, ...],
        *,
        column: str | None,
        part: tuple[int, int],
        done: KeySet,
        labels_below: int | None = None,
        apart: Callable[[str], bool] = lambda path: False,
    ) -> None:
        """Looks at the arguments. Raises PipelineError when one is not there, or needs a library."""
        self.left_out = LeftOut()
        self.kept_labels = KeptLabels()
        self.odd_labels = 0
        self.skipped = 0
        self.total: int | None = None
        self._done = done
        self._labels_below = labels_below

        def listed(left_out: LeftOut, labels: bool = False) -> Iterator[Source]:
            found = expand(arguments, column=column, left_out=left_out, shard_labels=labels, apart=apart)
            return shard(found, *part)

        self._list = listed
        self._sources = listed(self.left_out, labels_below is not None)
        # What is read from a pipe is there once.
        self._countable = all(a != "-" and (not a.startswith("@") or Path(a[1:]).is_file()) for a in arguments)
        self._given = 0
        self._stopping = False

    def sources(self) -> Iterator[Source]:
        """Those that are left to do, lazily."""
        for source in self._sources:
            label = self._label(source)
            if self._done.add(source.key):
                self._given += 1
                yield source if label == source.label else replace(source, label=label)
            else:
                self.skipped += 1
                if label is not None:
                    self.kept_labels.add(source.key, label)
        self.total = self._given + self.skipped

    def _label(self, source: Source) -> int | None:
        """The label that the source brings, if it is a class."""
        if source.label is None or self._labels_below is None:
            return None
        if source.label < self._labels_below:
            return source.label
        self.odd_labels += 1
        return None

    @property
    def seen(self) -> int:
        """Sources that have been listed so far."""
        return self._given + self.skipped

    def count(self) -> None:
        """Begin to count the sources beside the run, where they can be listed twice: `total` says when it is done."""
        if self._countable:
            threading.Thread(target=self._count, name="count", daemon=True).start()

    def stop_counting(self) -> None:
        self._stopping = True

    def _count(self) -> None:
        total, listed = 0, self._list(LeftOut())
        while not self._stopping and self.total is None:
            some = sum(1 for _ in islice(listed, COUNTED_AT_A_TIME))
            total += some
            if some < COUNTED_AT_A_TIME:
                self.total = total
                return
            time.sleep(BREATH_S)
