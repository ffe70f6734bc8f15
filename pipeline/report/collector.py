"""What a report shows of a run's answers, gathered while they come.

Memory does not grow with the number of answers: counts, a heap of the least certain, and the first of the errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.samples.sources import BytesLocator, Locator, Source

LOWEST = 60
MOST_ERRORS = 200
SCORE_BINS = 1000

# Answers that are taken at a time: NumPy's price of a call is then none of an answer's.
CHUNK = 4096

# Characters of a name or a reason, and bytes of an image that is nowhere but in memory, that are kept.
LONGEST_TEXT = 1000
MOST_BYTES_KEPT = 2**20

Counts = npt.NDArray[np.int64]


class Answers(Protocol):
    """Answers to n sources as columns; `pipeline.sinks.rows.Rows` is one.

    Attributes:
        keys: the sources' keys.
        class_ids: int32 (n,).
        scores: float32 (n,), softmax.
        errors: why there is no answer, by row; what the arrays hold there is of no account.
    """

    @property
    def keys(self) -> Sequence[str]: ...
    @property
    def class_ids(self) -> npt.NDArray[np.int32]: ...
    @property
    def scores(self) -> npt.NDArray[np.float32]: ...
    @property
    def errors(self) -> Mapping[int, str]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Shown:
    """A source that is shown by itself: an answer of a low score, or an error.

    Attributes:
        key: its name, cut to LONGEST_TEXT.
        locator: where its bytes are; None where that is not known.
        class_id, score: the answer, where there is one.
        label: its true class, where that is known.
        error: why there is no answer.
    """

    key: str
    locator: Locator | None
    class_id: int | None = None
    score: float | None = None
    label: int | None = None
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Collected:
    """What has been gathered so far.

    Attributes:
        answered, failed: how many answers, and how many errors.
        scored: how many of the answers had a score.
        classes: answers by class, int64 (classes,).
        scores: answers by score, int64 (SCORE_BINS,): bin b is from b / SCORE_BINS on; 1 is in the last.
        lowest: the LOWEST answers of the lowest scores, lowest first; of equal ones, those that came first.
        errors: the first MOST_ERRORS.
    """

    answered: int
    failed: int
    scored: int
    classes: Counts
    scores: Counts
    lowest: tuple[Shown, ...]
    errors: tuple[Shown, ...]


@dataclass(frozen=True)
class _Part:
    rows: Answers
    sources: Sequence[Source] | None


class Collector:
    """Fed with every answer of a run, by one thread.

    Args:
        classes: how many the model has.
        label_of: the true class of a key, where it is known; None: that which a source brings with it.
    """

    def __init__(self, classes: int, label_of: Callable[[str], int | None] | None = None) -> None:
        self._label_of = label_of
        self._classes = np.zeros(classes, np.int64)
        self._scores = np.zeros(SCORE_BINS, np.int64)
        self._lowest: list[Shown] = []
        self._errors: list[Shown] = []
        self._failed = 0
        self._waiting: list[_Part] = []
        self._waiting_rows = 0

    def add(self, rows: Answers, sources: Sequence[Source] | None = None) -> None:
        """Take answers; `sources` are theirs, row by row (None: those of an earlier run).

        Nothing of it may be changed afterwards. Raises ValueError, now or later, for a class that the model has not.
        """
        self._waiting.append(_Part(rows, sources))
        self._waiting_rows += len(rows)
        if self._waiting_rows >= CHUNK:
            self._take()

    def add_classes(self, class_ids: npt.NDArray[np.int32]) -> None:
        """Take answers of which nothing but the class is known: int32 (n,)."""
        self._count(class_ids)

    def add_error(self, source: Source, why: str) -> None:
        """Take a source that has no answer."""
        self._failed += 1
        if len(self._errors) < MOST_ERRORS:
            self._errors.append(self._shown(source.key, source, error=why))

    def collected(self) -> Collected:
        """All that came so far."""
        self._take()
        return Collected(
            answered=int(self._classes.sum()),
            failed=self._failed,
            scored=int(self._scores.sum()),
            classes=self._classes.copy(),
            scores=self._scores.copy(),
            lowest=tuple(self._lowest),
            errors=tuple(self._errors),
        )

    def _take(self) -> None:
        """Take what waits."""
        parts, self._waiting, self._waiting_rows = self._waiting, [], 0
        if not parts:
            return
        starts = np.cumsum([0, *(len(part.rows) for part in parts)])
        classes = np.concatenate([part.rows.class_ids for part in parts])
        scores = np.concatenate([part.rows.scores for part in parts])
        places = np.arange(len(classes))
        if any(part.rows.errors for part in parts):
            answered = np.ones(len(classes), np.bool_)
            for part, start in zip(parts, starts.tolist(), strict=False):
                answered[[start + row for row in part.rows.errors]] = False
                self._take_errors(part)
            classes, scores, places = classes[answered], scores[answered], places[answered]
        self._count(classes)
        bins = np.clip((scores * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
        self._scores += np.bincount(bins, minlength=SCORE_BINS)
        self._take_lowest(parts, starts, scores, places)

    def _count(self, classes: npt.NDArray[np.int32]) -> None:
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self._classes):
            raise ValueError(f"classes {classes.min()} to {classes.max()} of a model that has {len(self._classes)}")
        self._classes += np.bincount(classes, minlength=len(self._classes))

    def _take_errors(self, part: _Part) -> None:
        errors = part.rows.errors
        room = MOST_ERRORS - len(self._errors)
        self._failed += len(errors)
        if room:
            self._errors += [self._of(part, row, errors[row]) for row in sorted(errors)[:room]]

    def _take_lowest(
        self, parts: Sequence[_Part], starts: Counts, scores: npt.NDArray[np.float32], places: Counts
    ) -> None:
        near = np.arange(len(scores))
        if len(self._lowest) == LOWEST:
            near = np.flatnonzero(scores < _score(self._lowest[-1]))
        if not len(near):
            return
        near = near[np.argsort(scores[near], kind="stable")[:LOWEST]]
        chosen = places[near]
        found = np.searchsorted(starts, chosen, side="right") - 1
        new = [
            self._of(parts[p], row) for p, row in zip(found.tolist(), (chosen - starts[found]).tolist(), strict=True)
        ]
        # The sort is stable: of equal scores, what came first stays.
        self._lowest = sorted(self._lowest + new, key=_score)[:LOWEST]

    def _of(self, part: _Part, row: int, error: str | None = None) -> Shown:
        source = None if part.sources is None else part.sources[row]
        return self._shown(
            part.rows.keys[row],
            source,
            class_id=int(part.rows.class_ids[row]) if error is None else None,
            score=float(part.rows.scores[row]) if error is None else None,
            error=error,
        )

    def _shown(
        self,
        key: str,
        source: Source | None,
        *,
        class_id: int | None = None,
        score: float | None = None,
        error: str | None = None,
    ) -> Shown:
        label = None if source is None else source.label
        return Shown(
            key=cut(key),
            locator=None if source is None else _kept(source.locator),
            class_id=class_id,
            score=score,
            label=label if self._label_of is None else self._label_of(key),
            error=None if error is None else cut(error),
        )


def cut(text: str, most: int = LONGEST_TEXT) -> str:
    """`text`, its middle left out where it is longer than `most`."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[: most - 1 - half]}…{text[-half:]}"


def _kept(locator: Locator) -> Locator | None:
    """A locator that may be kept to the end: large bytes at hand are not."""
    large = isinstance(locator, BytesLocator) and len(locator.data) > MOST_BYTES_KEPT
    return None if large else locator


def _score(shown: Shown) -> float:
    assert shown.score is not None, "an error among the answers"
    return shown.score
