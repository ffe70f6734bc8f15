"""ResNets built and exported with Brevitas itself, QCDQ and QONNX: imported, they agree with Brevitas's own integers.

They need Brevitas: `make test WITH_BREVITAS=1`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("brevitas", reason="Brevitas is not installed: make test WITH_BREVITAS=1")

from brevitas import nn as qnn  # noqa: E402
from brevitas.export import export_onnx_qcdq, export_qonnx  # noqa: E402
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat  # noqa: E402
from torch import nn  # noqa: E402

from int4core.layers import BasicBlock, Block, Bottleneck, ResNet, Sequential  # noqa: E402
from int4core.model import Model  # noqa: E402
from tests.tools.onnx_agreement import expect_agreement, expect_layers, random_images  # noqa: E402
from tests.tools.quantised_onnx import SIDE  # noqa: E402
from tools.onnx.files import load  # noqa: E402
from tools.onnx.foreign import import_foreign  # noqa: E402

COUNTS = (2, 1, 1, 1)
"""Blocks of the four stages."""


def conv(c: int, k: int, kernel: int, stride: int = 1, bits: int = 4) -> nn.Module:
    return qnn.QuantConv2d(
        c, k, kernel, stride=stride, padding=kernel // 2, bias=False,
        weight_quant=Int8WeightPerChannelFloat, weight_bit_width=bits,
    )  # fmt: skip


def relu(bits: int = 4) -> nn.Module:
    return qnn.QuantReLU(bit_width=bits, return_quant_tensor=True)


def to_s8() -> nn.Module:
    return qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=8, return_quant_tensor=True)


class QuantBlock(nn.Module):
    """A bottleneck, or a basic block of two 3x3 convolutions."""

    def __init__(self, channels: int, width: int, stride: int, bits: int, basic: bool) -> None:
        super().__init__()
        outer = width if basic else 4 * width
        shapes = (
            [(channels, width, 3, stride), (width, width, 3, 1)]
            if basic
            else [(channels, width, 1, 1), (width, width, 3, stride), (width, outer, 1, 1)]
        )
        layers: list[nn.Module] = []
        for shape in shapes:
            layers += [conv(*shape), nn.BatchNorm2d(shape[1]), relu()]
        self.main = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != outer:
            self.shortcut = nn.Sequential(conv(channels, outer, 1, stride), nn.BatchNorm2d(outer), to_s8())
        self.out = relu(bits)

    def forward(self, x: Any) -> Any:
        return self.out(self.main(x) + self.shortcut(x))


def network(basic: bool, width: int = 8, classes: int = 5) -> nn.Module:
    layers = [
        to_s8(), conv(3, width, 7, 2, bits=8), nn.BatchNorm2d(width), relu(), nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    channels = width
    for i, count in enumerate(COUNTS):
        for j in range(count):
            layers.append(QuantBlock(channels, width << i, 2 if i and not j else 1, 7 if i == 3 else 4, basic))
            channels = (width << i) * (1 if basic else 4)
    head = qnn.QuantLinear(channels, classes, bias=True, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=8)
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), head)


@dataclass(frozen=True)
class Exported:
    """A network whose batch norms and ranges have seen some images; qcdq.onnx and qonnx.onnx in `folder`."""

    net: nn.Module
    folder: Path
    kind: type[Block]

    @property
    def step(self) -> float:
        """Real units of one step of an image."""
        return float(self.net[0].act_quant.scale())

    def integers(self, ours: ResNet, x: np.ndarray) -> dict[str, np.ndarray]:
        """Name of a Quantize of `ours` -> the integers of Brevitas's quantiser that it stands for."""
        blocks = [module for module in self.net if isinstance(module, QuantBlock)]
        quantisers = {"quantize1": self.net[3]}
        for theirs, block in zip(blocks, ours.blocks, strict=True):
            inner = [module for module in theirs.main if isinstance(module, qnn.QuantReLU)]
            for module, quantize in zip([*inner, theirs.out], block.quantizes, strict=True):
                quantisers[quantize.name] = module
            if isinstance(block.downsample, Sequential):
                quantisers[block.downsample.children[1].name] = theirs.shortcut[2]
        seen: dict[str, np.ndarray] = {}

        def keep(name: str) -> Any:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                seen[name] = output.int().numpy().astype(np.int64)

            return hook

        hooks = [module.register_forward_hook(keep(name)) for name, module in quantisers.items()]
        with torch.no_grad():
            self.net(torch.from_numpy(x.astype(np.float32) * np.float32(self.step)))
        for hook in hooks:
            hook.remove()
        return seen


@pytest.fixture(scope="module", params=[Bottleneck, BasicBlock], ids=["bottlenecks", "basic blocks"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    folder = tmp_path_factory.mktemp("brevitas")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = network(request.param is BasicBlock)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)
        net.train()
        for _ in range(8):
            net(torch.randn(4, 3, SIDE, SIDE))
        net.eval()
        for name, write in (("qcdq", export_onnx_qcdq), ("qonnx", export_qonnx)):
            image = torch.randn(1, 3, SIDE, SIDE)
            write(net, args=image, export_path=str(folder / f"{name}.onnx"), opset_version=17, dynamo=False)
    yield Exported(net, folder, request.param)
    torch.set_num_threads(threads)


def test_it_agrees_with_brevitas_s_integers_layer_by_layer(exported: Exported) -> None:
    """Given Brevitas's integers, computed by Brevitas in torch, every layer gives those that come next."""
    file = exported.folder / "qcdq.onnx"
    net, found = import_foreign(file, load(file), None)
    assert {type(block) for block in net.blocks} == {exported.kind}
    assert [len(stage.children) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)] == list(COUNTS)
    x = random_images(2, exported.step)
    theirs = exported.integers(net, x)
    assert theirs.keys() == found.nodes.keys()
    expect_layers(net, x, theirs)


def test_it_agrees_with_its_own_graph_layer_by_layer(exported: Exported) -> None:
    model = load(exported.folder / "qcdq.onnx")
    net, found = import_foreign(exported.folder / "qcdq.onnx", model, None)
    expect_agreement(model, net, found, exported.step, batch=1)


def test_its_qonnx_graph_gives_the_same_network(exported: Exported) -> None:
    nets = [import_foreign(path, load(path))[0] for path in sorted(exported.folder.glob("*.onnx"))]
    assert len(nets) == 2
    assert Model(nets[0]).digest == Model(nets[1]).digest
