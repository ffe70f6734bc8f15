"""Answers as the columns that sinks take."""

from __future__ import annotations

from pipeline.session.answers import Answers
from pipeline.sinks.rows import Rows

NO_CLASS = -1


def rows_of(answers: Answers) -> Rows:
    """The answers of a session that gives scores, as rows in the same order."""
    classes, scores = answers.classes, answers.scores
    if answers.errors:
        wrong = list(answers.errors)
        classes, scores = classes.copy(), scores.copy()
        classes[wrong], scores[wrong] = NO_CLASS, 0
    return Rows(answers.sources.keys, classes[:, 0].copy(), scores[:, 0].copy(), classes, scores, answers.errors)
