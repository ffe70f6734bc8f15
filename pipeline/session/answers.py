"""What became of sources: by columns, and one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.samples.sources import Source, Sources
from pipeline.session.scheduler import Column, Outcomes


@dataclass(frozen=True)
class Answer:
    """What became of a source.

    Attributes:
        source: as it was given.
        classes, scores: the best classes and their softmax scores, best first; a session without `top` gives the best
            class alone and no score. Empty where there is an error.
        error: why there is no answer; None where there is one.
    """

    source: Source
    classes: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Answers:
    """What became of n sources.

    Attributes:
        sources: as they were given.
        classes, scores: int32 and float32 (n, k): the best classes and their softmax scores, best first; a session
            without `top` gives the best class alone, (n, 1), and no score, (n, 0).
        errors: why there is no answer, by place; what the arrays hold there is of no account.
    """

    sources: Sources
    classes: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    errors: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[Answer]:
        rows = zip(self.sources, self.classes.tolist(), self.scores.tolist(), strict=True)
        for place, (source, classes, scores) in enumerate(rows):
            if place in self.errors:
                yield Answer(source, error=self.errors[place])
            else:
                yield Answer(source, tuple(classes), tuple(scores))

    @classmethod
    def of(cls, outcomes: Outcomes[Source], top: int) -> Answers:
        """Of a session that gives the best `top` classes, 0 for the class alone; columns are `answered_columns`."""
        given = outcomes.sources
        sources = given if isinstance(given, Sources) else Sources.of(given)
        columns = outcomes.columns
        if columns is None:
            columns = np.zeros((len(given), top or 1), np.int32), np.zeros((len(given), top), np.float32)
        classes, scores = columns
        return cls(sources, classes, scores, outcomes.errors)

    @classmethod
    def joined(cls, parts: Sequence[Answers], top: int) -> Answers:
        """The answers of `parts` in that order, none for no parts; `top` is the session's."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls(Sources([], []), np.empty((0, top or 1), np.int32), np.empty((0, top), np.float32), {})
        errors, begin = {}, 0
        for part in parts:
            errors.update({begin + place: why for place, why in part.errors.items()})
            begin += len(part)
        return cls(
            Sources.joined([part.sources for part in parts]),
            np.concatenate([part.classes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            errors,
        )


def answered_columns(
    classes: npt.NDArray[np.int32],
    top_ids: npt.NDArray[np.int32] | None,
    top_scores: npt.NDArray[np.float32] | None,
) -> tuple[Column, Column]:
    """The columns of answers (n,), of whose engines the best k classes are known or nothing but the class."""
    if top_ids is None or top_scores is None:
        return classes[:, None], np.zeros((len(classes), 0), np.float32)
    return top_ids, top_scores
