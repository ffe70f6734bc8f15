"""What an export refuses: numbers that the formats' types cannot hold."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from tests.tools.finetune.tiny import SIZE, calibrated  # noqa: E402
from tools.finetune import export  # noqa: E402
from tools.finetune.errors import FinetuneError  # noqa: E402
from tools.finetune.resnet import ResNet  # noqa: E402


class TestExportRefuses:
    def test_a_bias_out_of_s16(self, parent: ResNet) -> None:
        model = calibrated(parent)
        with torch.no_grad():
            model.blocks[1].conv2.bias[5] = 1e6
        with pytest.raises(FinetuneError, match=r"layer1_1_conv2: the bias of channel 5 .* s16"):
            export.to_model(model, SIZE)

    def test_a_factor_out_of_u16(self, parent: ResNet) -> None:
        model = calibrated(parent)
        with torch.no_grad():
            model.blocks[-1].quantize3.base.fill_(1e-6)
        with pytest.raises(FinetuneError, match=r"layer4_0_quantize3: the factor .* u16"):
            export.to_model(model, SIZE)

    def test_a_sum_out_of_24_bits(self, parent: ResNet) -> None:
        weight = np.full((3, 2048), 127)
        with pytest.raises(FinetuneError, match=r"fc: the sum of channel 0 .* 24 bits"):
            export._bound("fc", weight, np.zeros(3, np.int64), 0, 127)
        assert export._bound("fc", weight // 4, np.zeros(3, np.int64), 0, 127) == 2048 * 31 * 127

    def test_the_bound_is_reached_and_never_passed(self) -> None:
        rng = np.random.default_rng(0)
        weight, bias = rng.integers(-8, 8, (4, 12)), rng.integers(-50, 50, 4)
        bound = export._bound("x", weight, bias, 0, 15)
        extremes = [np.where(weight > 0, 15, 0), np.where(weight < 0, 15, 0)]
        sums = [np.abs((weight * x).sum(1) + bias).max() for x in extremes]
        assert max(sums) <= bound <= max(sums) + np.abs(bias).max()
