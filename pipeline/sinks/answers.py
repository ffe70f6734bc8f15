"""Answers as the columns that sinks take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.session.session import Answer
from pipeline.sinks.rows import Rows

NO_CLASS = -1


def rows_of(answers: Sequence[Answer], top: int) -> Rows:
    """The answers of a session that gives the best `top` classes, as rows in the same order."""
    errors = {row: answer.error for row, answer in enumerate(answers) if answer.error is not None}
    nothing = (NO_CLASS,) * top, (0.0,) * top
    best = [(a.classes, a.scores) if a.error is None else nothing for a in answers]
    ids = np.array([classes for classes, _ in best], dtype=np.int32).reshape(len(answers), top)
    scores = np.array([scores for _, scores in best], dtype=np.float32).reshape(len(answers), top)
    return Rows([a.source.key for a in answers], ids[:, 0].copy(), scores[:, 0].copy(), ids, scores, errors)
