"""What goes into the session: the sources that are left to do, and how many there are in all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.samples.expand import expand_some, shard_some
from pipeline.samples.keys import KeySet
from pipeline.samples.labels import KeptLabels
from pipeline.samples.left_out import LeftOut
from pipeline.samples.sources import Sources

# The count goes on beside the run and yields to it: what is listed together, then a breath, several times as long.
BREATH_S = 0.001
BREATHS = 4


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

        def listed(left_out: LeftOut, labels: bool = False) -> Iterator[Sources]:
            found = expand_some(arguments, column=column, left_out=left_out, shard_labels=labels, apart=apart)
            return shard_some(found, *part)

        self._list = listed
        self._sources = listed(self.left_out, labels_below is not None)
        # What is read from a pipe is there once.
        self._countable = all(a != "-" and (not a.startswith("@") or Path(a[1:]).is_file()) for a in arguments)
        self._given = 0
        self._stopping = False

    def sources(self) -> Iterator[Sources]:
        """Those that are left to do, lazily, some at a time."""
        for found in self._sources:
            some = Sources(found.keys, found.locators, self._labels(found.labels))
            new = self._done.add_all(some.keys)
            if not all(new):
                self._skip([place for place, is_new in enumerate(new) if not is_new], some)
                some = some.take([place for place, is_new in enumerate(new) if is_new])
            self._given += len(some)
            yield some
        self.total = self._given + self.skipped

    def _skip(self, places: Sequence[int], some: Sources) -> None:
        self.skipped += len(places)
        if some.labels is not None:
            for key, label in ((some.keys[place], some.labels[place]) for place in places):
                if label is not None:
                    self.kept_labels.add(key, label)

    def _labels(self, labels: list[int | None] | None) -> list[int | None] | None:
        """The labels that sources bring, as far as they are classes."""
        below = self._labels_below
        if labels is None or below is None:
            return None
        kept = [None if label is None or label >= below else label for label in labels]
        self.odd_labels += kept.count(None) - labels.count(None)
        return kept

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
            began_s = time.thread_time()
            some = next(listed, None)
            if some is None:
                self.total = total
                return
            total += len(some)
            time.sleep(max(BREATH_S, BREATHS * (time.thread_time() - began_s)))
