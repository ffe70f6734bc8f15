"""A tiny network to fine-tune."""

from __future__ import annotations

import torch

from tools.finetune import convert, data, ranges
from tools.finetune.qresnet import QuantResNet
from tools.finetune.resnet import Architecture, ResNet

CPU = torch.device("cpu")
TINY = Architecture((2, 1, 1, 1), width=8, classes=16)
SIZE = 64


def calibrated(parent: ResNet) -> QuantResNet:
    source = data.Procedural(CPU, 16, SIZE, 0, classes=16)
    histograms = ranges.collect(parent, lambda: [source.batch(0)[0]])
    hi = {name: r.hi for name, r in QuantResNet(parent).ranges()}
    steps = {n: ranges.choose_step(h, hi[n], "mse", 99.999) for n, h in histograms.items()}
    return convert.build(parent, steps)
