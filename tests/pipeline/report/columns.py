"""Answers as columns, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class Columns:
    """What `pipeline.report.collector.Answers` asks for."""

    keys: Sequence[str]
    class_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    errors: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)


def columns(answers: Sequence[tuple[str, int, float] | tuple[str, str]]) -> Columns:
    """Of each answer key, class and score, or key and error."""
    classes = [a[1] if len(a) == 3 else -1 for a in answers]
    scores = [a[2] if len(a) == 3 else np.nan for a in answers]
    return Columns(
        [a[0] for a in answers],
        np.array(classes, np.int32),
        np.array(scores, np.float32),
        {row: a[1] for row, a in enumerate(answers) if len(a) == 2},
    )
