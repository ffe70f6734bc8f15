"""What goes into the session: the sources that are left to do, and how many there are in all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice

from pipeline.samples.expand import expand, shard
from pipeline.samples.keys import KeySet
from pipeline.samples.left_out import LeftOut
from pipeline.samples.sources import Source

# The count goes on beside the run and yields to it: so many names at a time, then a breath.
COUNTED_AT_A_TIME = 256
BREATH_S = 0.001


class Intake:
    """The sources of a command line, once each.

    Args:
        done: keys that are answered already; grows by what is given out.

    Attributes:
        left_out: what the listing passed over.
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
    ) -> None:
        """Looks at the arguments. Raises PipelineError when one is not there, or needs a library."""
        self.left_out = LeftOut()
        self.skipped = 0
        self.total: int | None = None
        self._done = done
        self._list: Callable[[LeftOut], Iterator[Source]] = lambda left_out: shard(
            expand(arguments, column=column, left_out=left_out), *part
        )
        self._sources = self._list(self.left_out)
        self._countable = not any(a == "-" or a.startswith("@") for a in arguments)
        self._given = 0
        self._stopping = False

    def sources(self) -> Iterator[Source]:
        """Those that are left to do, lazily."""
        for source in self._sources:
            if self._done.add(source.key):
                self._given += 1
                yield source
            else:
                self.skipped += 1
        self.total = self._given + self.skipped

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
