"""The FP32 parent: bottleneck ResNet v1.5 (He et al. 2015; the stride is in the 3x3 convolution).

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
    """A bottleneck ResNet's shape: blocks in each of the four stages, stem width, classes."""

    blocks: tuple[int, ...]
    width: int = 64
    classes: int = 1000

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Architecture:
        return Architecture(tuple(fields["blocks"]), int(fields["width"]), int(fields["classes"]))


ARCHITECTURES = {
    "resnet50": Architecture((3, 4, 6, 3)),
    "resnet101": Architecture((3, 4, 23, 3)),
    "resnet152": Architecture((3, 8, 36, 3)),
    "tiny": Architecture((2, 1, 1, 1), width=8),
}

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with batch norms, and the shortcut around them."""

    def __init__(self, name: str, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * EXPANSION
        self.name = name
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: torch.Tensor, tap: Tap | None = None) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        z = F.relu(self.bn2(self.conv2(y)), inplace=True)
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn3(self.conv3(z)) + shortcut, inplace=True)
        if tap is not None:
            tap(f"{self.name}_quantize1", y)
            tap(f"{self.name}_quantize2", z)
            if self.downsample is not None:
                tap(f"{self.name}_downsample_1", shortcut)
            tap(f"{self.name}_quantize3", out)
        return out


class ResNet(nn.Module):
    """images: float (N, 3, H, W), normalised; returns logits (N, classes)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        if len(arch.blocks) != 4 or min(arch.blocks) < 1:
            raise FinetuneError(f"blocks {arch.blocks}: the format has four stages of one block or more")
        self.arch = arch
        self.conv1 = nn.Conv2d(3, arch.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(arch.width)
        channels = arch.width
        for i, count in enumerate(arch.blocks):
            width = arch.width << i
            stage = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(Bottleneck(f"layer{i + 1}_{j}", channels, width, stride))
                channels = width * EXPANSION
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.fc = nn.Linear(channels, arch.classes)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation; each branch starts as the identity (Goyal et al. 2017, last gamma 0)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for block in self.blocks():
            nn.init.zeros_(block.bn3.weight)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def blocks(self) -> list[Bottleneck]:
        return [m for m in self.modules() if isinstance(m, Bottleneck)]

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
