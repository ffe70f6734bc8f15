"""A parent's convolutions and batch norms as an INT4 network's."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from tests.tools.finetune.tiny import CPU, SIZE, calibrated  # noqa: E402
from tools.finetune import convert, data, export, fakequant  # noqa: E402
from tools.finetune.qresnet import exact  # noqa: E402
from tools.finetune.resnet import ResNet  # noqa: E402


class TestFolding:
    def test_folded_convolutions_are_convolution_and_batch_norm(self, parent: ResNet) -> None:
        model = calibrated(parent)
        for conv, norm in convert.parent_norms(parent, model).items():
            sources = [m for m in parent.modules() if isinstance(m, torch.nn.Conv2d)]
            source = sources[list(dict(model.convolutions()).values()).index(conv)]
            x = torch.randn(2, source.in_channels, 8, 8)
            wanted = norm(source(x))
            found = torch.nn.functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)

    def test_reestimation_brings_channels_back_to_their_mean(self, parent: ResNet) -> None:
        model = calibrated(parent)
        source = data.Procedural(CPU, 32, SIZE, 0, classes=16)
        batches = [source.batch(i)[0] for i in range(2)]

        def means() -> torch.Tensor:
            trace: dict[str, torch.Tensor] = {}
            exact(model, torch.cat(batches), trace)
            step = torch.tensor(2.64 / 127)
            return (trace["conv1"] * fakequant.by_channel(model.conv1.unit(step))).mean((0, 2, 3)).float()

        wanted = parent.bn1.bias.detach()
        before = (means() - wanted).abs().max()
        convert.reestimate(model, parent, batches)
        after = (means() - wanted).abs().max()
        assert after < 0.05
        assert after < before / 4

    def test_weight_steps_beat_the_plain_largest_value(self) -> None:
        weight = torch.randn(20, 200, generator=torch.Generator().manual_seed(0))

        def error(step: torch.Tensor) -> torch.Tensor:
            rounded = torch.clamp(torch.round(weight / step[:, None]), -8, 7) * step[:, None]
            return ((rounded - weight) ** 2).sum(1)

        plain = weight.abs().amax(1) / 7
        assert (error(convert.weight_steps(weight, 4)) <= error(plain) * 1.05).all()
        assert error(convert.weight_steps(weight, 4)).sum() < 0.8 * error(plain).sum()

    def test_dead_channels_still_fit_the_integers(self, parent: ResNet) -> None:
        with torch.no_grad():
            parent.blocks()[1].bn3.weight[3] = 0.0
            parent.blocks()[1].bn3.bias[3] = 2.0
            parent.blocks()[2].bn1.weight[1] = 1e-9
        net = export.to_model(calibrated(parent), SIZE).network
        assert np.abs(net.blocks[1].conv3.bias[3]) > 1000
        assert not net.blocks[1].conv3.weight[3].any()
