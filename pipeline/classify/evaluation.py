"""How many answers are right, counted as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.accuracy import Accuracy
from pipeline.sinks.rows import Rows

TOP_5 = 5


@dataclass(frozen=True)
class Scores:
    """Top-1, and top-5 where as many classes were asked for, over the labelled sources. An error counts as wrong."""

    top1: Accuracy
    top5: Accuracy | None

    def named(self) -> tuple[tuple[str, Accuracy], ...]:
        """Each with its name."""
        return (("top-1", self.top1), *([] if self.top5 is None else [("top-5", self.top5)]))

    def lines(self) -> tuple[str, ...]:
        return tuple(f"{name}: {accuracy}" for name, accuracy in self.named())

    def as_dict(self) -> dict[str, Any]:
        return {"top1": self.top1.as_dict(), "top5": None if self.top5 is None else self.top5.as_dict()}


class Evaluation:
    """Fed with every row and its label, as far as there is one."""

    def __init__(self) -> None:
        self._labelled = 0
        self._top1 = 0
        self._top5 = 0
        self._has_top5 = False

    def add(self, rows: Rows, labels: Sequence[int | None]) -> None:
        """Count rows (n,) whose labels (n,) these are, None where there is none."""
        if all(label is None for label in labels):
            return
        known = np.array([label is not None for label in labels], np.bool_)
        wanted = np.array([-1 if label is None else label for label in labels], np.int64)
        right = (rows.top_ids == wanted[:, None]) & (known & rows.answered())[:, None]
        self._labelled += int(known.sum())
        self._top1 += int(right[:, :1].sum())
        self._top5 += int(right[:, :TOP_5].any(axis=1).sum())
        # Nothing but errors is read back without the width of the others.
        self._has_top5 |= rows.top_ids.shape[1] >= TOP_5

    @property
    def counts(self) -> tuple[int, int, int]:
        """Labelled sources, and how many of them are right at once and among the best five: numbers that add up."""
        return self._labelled, self._top1, self._top5

    def scores(self) -> Scores | None:
        """None when no source had a label."""
        return scores_of(self.counts, top5=self._has_top5)


def scores_of(counts: Sequence[int], *, top5: bool) -> Scores | None:
    """What `Evaluation.counts` come to, with or without the best five; None when no source had a label."""
    labelled, right, among = [*counts, 0, 0, 0][:3]
    if not labelled:
        return None
    return Scores(Accuracy.of(right, labelled), Accuracy.of(among, labelled) if top5 else None)
