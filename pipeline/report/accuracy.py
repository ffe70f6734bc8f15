"""Accuracy, and what its sample size says of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Accuracy:
    """`correct` answers to `total` samples and the share's 95 % interval; shares are 0..1."""

    correct: int
    total: int
    top1: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, total: int) -> Accuracy:
        """`correct` of `total` samples, at least one.

        The interval is Wilson's score interval: E. B. Wilson, "Probable inference, the law of succession, and
        statistical inference", Journal of the American Statistical Association 22 (1927), 209-212.
        """
        low, high = wilson_interval(correct, total)
        return cls(correct, total, correct / total, low, high)

    def __str__(self) -> str:
        return (
            f"{self.correct}/{self.total} = {100 * self.top1:.3f} % "
            f"(95 % interval {100 * self.low:.2f} to {100 * self.high:.2f} %)"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def accuracy(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> Accuracy:
    """Top-1 accuracy of classes (n,) against labels (n,); a sample without a prediction counts as wrong.

    Raises ValueError when the shapes differ or there are no samples.
    """
    predicted, wanted = np.asarray(predictions), np.asarray(labels)
    if predicted.shape != wanted.shape or predicted.ndim != 1:
        raise ValueError(f"predictions {predicted.shape} and labels {wanted.shape} do not match")
    if not len(wanted):
        raise ValueError("no samples: accuracy is undefined")
    return Accuracy.of(int((predicted == wanted).sum()), len(wanted))


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Bounds of a proportion `correct / total` at `z` standard deviations (default: 95 %)."""
    p = correct / total
    centre = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
