from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.report.accuracy import accuracy, wilson_interval

NOT_PREDICTED = -1


def test_wilson_interval_against_its_definition() -> None:
    """The bounds are the proportions p for which the observation lies z standard errors of p away."""
    z = 1.959963984540054
    for correct, total in ((90, 100), (1, 10), (38052, 50000), (5, 10), (199, 200)):
        for bound in wilson_interval(correct, total):
            away = abs(correct / total - bound) / math.sqrt(bound * (1 - bound) / total)
            assert away == pytest.approx(z, rel=1e-9)
    low, high = wilson_interval(0, 20)
    assert low == 0.0
    # Wilson's upper bound for no success in n: z^2 / (n + z^2).
    assert high == pytest.approx(z * z / (20 + z * z))
    assert wilson_interval(20, 20)[1] == 1.0


def test_accuracy() -> None:
    result = accuracy(np.array([1, 2, NOT_PREDICTED, 4]), [1, 2, 3, 5])
    assert (result.correct, result.total, result.top1) == (2, 4, 0.5)
    assert result.low < 0.5 < result.high
    assert str(result).startswith("2/4 = 50.000 % (95 % interval ")
    with pytest.raises(ValueError, match="do not match"):
        accuracy([1], [1, 2])
    with pytest.raises(ValueError, match="no samples"):
        accuracy([], [])
