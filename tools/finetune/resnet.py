"""The FP32 parent: ResNet v1.5 (He et al. 2015; the stride is in the 3x3 convolution).

Parameter names are torchvision's, so that its pretrained weights load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tools.finetune.errors import FinetuneError

Tap = Callable[[str, torch.Tensor], None]
"""Is shown every tensor that the INT4 format quantises, under the name of its Quantize layer."""


@dataclass(frozen=True)
class Architecture:
    """A ResNet's shape: blocks in each of the four stages, stem width, classes, and which kind of block."""

    blocks: tuple[int, ...]
    width: int = 64
    classes: int = 1000
    basic: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Architecture:
        basic = bool(fields.get("basic", False))
        return Architecture(tuple(fields["blocks"]), int(fields["width"]), int(fields["classes"]), basic)


ARCHITECTURES = {
    "resnet18": Architecture((2, 2, 2, 2), basic=True),
    "resnet34": Architecture((3, 4, 6, 3), basic=True),
    "resnet50": Architecture((3, 4, 6, 3)),
    "resnet101": Architecture((3, 4, 23, 3)),
    "resnet152": Architecture((3, 8, 36, 3)),
    "tiny": Architecture((2, 1, 1, 1), width=8),
}

EXPANSION = 4


class Block(nn.Module):
    """Convolutions with batch norms, conv1 to conv2 or conv3 in torchvision's names, and the shortcut around them."""

    def __init__(self, name: str, layers: list[nn.Conv2d], stride: int) -> None:
        super().__init__()
        self.name = name
        self.count = len(layers)
        for i, conv in enumerate(layers, start=1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(conv.out_channels))
        in_channels, out_channels = layers[0].in_channels, layers[-1].out_channels
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Each convolution with its batch norm, in running order, without the shortcut's."""
        return [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in range(1, self.count + 1)]

    def forward(self, x: torch.Tensor, tap: Tap | None = None) -> torch.Tensor:
        *inner, (last, norm) = self.pairs()
        y, seen = x, []
        for conv, bn in inner:
            y = F.relu(bn(conv(y)), inplace=True)
            seen.append(y)
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(norm(last(y)) + shortcut, inplace=True)
        if tap is not None:
            for i, y in enumerate([*seen, out], start=1):
                tap(f"{self.name}_quantize{i}", y)
            if self.downsample is not None:
                tap(f"{self.name}_downsample_1", shortcut)
        return out


class Bottleneck(Block):
    """1x1, 3x3, 1x1."""

    def __init__(self, name: str, in_channels: int, width: int, stride: int) -> None:
        layers = [
            nn.Conv2d(in_channels, width, 1, bias=False),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            nn.Conv2d(width, width * EXPANSION, 1, bias=False),
        ]
        super().__init__(name, layers, stride)


class BasicBlock(Block):
    """3x3, 3x3."""

    def __init__(self, name: str, in_channels: int, width: int, stride: int) -> None:
        layers = [
            nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        ]
        super().__init__(name, layers, stride)


class ResNet(nn.Module):
    """images: float (N, 3, H, W), normalised; returns logits (N, classes)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        if len(arch.blocks) != 4 or min(arch.blocks) < 1:
            raise FinetuneError(f"blocks {arch.blocks}: the format has four stages of one block or more")
        self.arch = arch
        self.conv1 = nn.Conv2d(3, arch.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(arch.width)
        channels, kind = arch.width, BasicBlock if arch.basic else Bottleneck
        for i, count in enumerate(arch.blocks):
            width = arch.width << i
            stage = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(kind(f"layer{i + 1}_{j}", channels, width, stride))
                channels = width if arch.basic else width * EXPANSION
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.fc = nn.Linear(channels, arch.classes)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation; each branch starts as the identity (Goyal et al. 2017, last gamma 0)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for block in self.blocks():
            nn.init.zeros_(block.pairs()[-1][1].weight)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def blocks(self) -> list[Block]:
        return [m for m in self.modules() if isinstance(m, Block)]

    def forward(self, images: torch.Tensor, tap: Tap | None = None) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        if tap is not None:
            tap("quantize1", x)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for block in self.blocks():
            x = block(x, tap)
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def load_parent(state: dict[str, torch.Tensor], arch: Architecture, where: str) -> ResNet:
    """A ResNet with the weights of `state` (torchvision's names, a leading `module.` allowed).

    Raises FinetuneError naming `where` and the first parameters that are missing, unknown or misshapen.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    model = ResNet(arch)
    wanted = model.state_dict()
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    wrong = sorted((wanted.keys() - optional).symmetric_difference(state.keys() - optional))
    wrong += [k for k in wanted if k in state and wanted[k].shape != state[k].shape]
    if wrong:
        named = ", ".join(wrong[:3]) + (" ..." if len(wrong) > 3 else "")
        raise FinetuneError(
            f"{where}: its parameters do not fit blocks={arch.blocks} width={arch.width} "
            f"classes={arch.classes} ({named}): give the --arch and --classes it was made with"
        )
    model.load_state_dict(state, strict=False)
    return model
