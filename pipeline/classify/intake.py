"""What goes into the session: the sources that are left to do, and how many there are in all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from pipeline.classify.counter import Counter
from pipeline.classify.lister import lister
from pipeline.classify.listing import Listing
from pipeline.classify.total import Density, Total
from pipeline.samples.keys import KeySet
from pipeline.samples.labels import KeptLabels
from pipeline.samples.left_out import LeftOut
from pipeline.samples.sources import Sources


class Intake:
    """The sources of a command line, once each: they begin to be listed by `with`, and end with it.

    Args:
        done: keys that are answered already.
        labels_below: how many classes there are, where the labels that sources bring are wanted; None: they are not.

    Attributes:
        kept_labels: of sources that were answered by an earlier run.
        odd_labels: labels that sources brought and that are no class.
        skipped: sources that were not given out: answered by an earlier run, or named twice.
    """

    def __init__(self, listing: Listing, *, done: KeySet, labels_below: int | None = None) -> None:
        """Looks at the arguments. Raises PipelineError when one is not there, or needs a library."""
        self.kept_labels = KeptLabels()
        self.odd_labels = 0
        self.skipped = 0
        self._listing = listing
        self._lister = lister(listing)
        self._done = done
        self._labels_below = labels_below
        self._given = 0
        self._total: Total | None = None
        self._counter: Counter | None = None
        self._density = Density()

    def __enter__(self) -> Intake:
        """Raises StageFailure where the system refuses another process."""
        self._lister.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_counting()
        self._lister.close()

    def sources(self) -> Iterator[Sources]:
        """Those that are left to do, lazily, some at a time."""
        for found, digests, again in self._lister:
            self._density.add(found)
            some = Sources(found.keys, found.locators, self._labels(found.labels))
            old = set(again)
            if len(self._done):
                old.update(place for place, is_done in enumerate(self._done.hold_digests(digests)) if is_done)
            if old:
                self._skip(sorted(old), some)
                some = some.take([place for place in range(len(some)) if place not in old])
            self._given += len(some)
            yield some
        self._total = Total(self._given + self.skipped)
        self._stop_counting()

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

    @property
    def total(self) -> Total | None:
        """Sources there are, None until they have been listed or counted."""
        if self._total is not None or self._counter is None or self._counter.counted is None:
            return self._total
        return self._counter.counted.total(self._density)

    @property
    def left_out(self) -> LeftOut:
        """What the listing passed over, once it has come to its end."""
        return self._lister.left_out

    def count(self, say: Callable[[str], None]) -> None:
        """Begin to count the sources beside the run; `say` is called with a line if that fails."""
        self._counter = Counter(self._listing, say)
        self._counter.start()

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.stop()
