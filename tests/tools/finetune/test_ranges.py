"""The ranges of activations, from their histograms."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from tests.tools.finetune.tiny import SIZE  # noqa: E402
from tools.finetune import ranges  # noqa: E402
from tools.finetune.errors import FinetuneError  # noqa: E402
from tools.finetune.resnet import ResNet  # noqa: E402


class TestRanges:
    def test_percentile_is_numpys(self) -> None:
        values = np.abs(np.random.default_rng(0).normal(size=200_000))
        values[:50_000] = 0
        counts = np.histogram(values[values > 0], ranges.BINS, (0, values.max()))[0]
        h = ranges.Histogram(counts, float(values.max()), 50_000)
        for percent in (90.0, 99.0, 99.99):
            wanted = np.percentile(values, percent)
            assert h.percentile(percent) == pytest.approx(wanted, abs=2 * h.top / ranges.BINS)

    def test_least_error_clips_a_long_tail(self) -> None:
        values = np.random.default_rng(0).exponential(size=100_000)
        h = ranges.Histogram(np.histogram(values, ranges.BINS, (0, 40.0))[0], 40.0, 0)
        assert h.best_clip(15) < 10
        assert h.best_clip(127) > h.best_clip(15)
        assert ranges.choose_step(h, 15, "percentile", 99.999) > ranges.choose_step(h, 15, "mse", 99.999)

    def test_a_dead_network_is_named(self, parent: ResNet) -> None:
        with torch.no_grad():
            parent.bn1.weight.zero_()
            parent.bn1.bias.fill_(-1.0)
        with pytest.raises(FinetuneError, match=r"^quantize1: "):
            ranges.collect(parent, lambda: [torch.zeros(1, 3, SIZE, SIZE)])
