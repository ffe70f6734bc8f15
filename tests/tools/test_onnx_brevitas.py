"""A ResNet built and exported with Brevitas itself: QCDQ and QONNX."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("brevitas", reason="Brevitas is not installed: pip install brevitas")

from brevitas import nn as qnn  # noqa: E402
from brevitas.export import export_onnx_qcdq, export_qonnx  # noqa: E402
from brevitas.quant import (  # noqa: E402
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
)
from onnx import numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

from int4core.model import Model  # noqa: E402
from tests.tools.test_onnx_import import SIDE, expect_agreement  # noqa: E402
from tools.onnx.files import load  # noqa: E402
from tools.onnx.foreign import import_foreign  # noqa: E402


def conv(c: int, k: int, kernel: int, stride: int = 1, bits: int = 4) -> nn.Module:
    return qnn.QuantConv2d(
        c, k, kernel, stride=stride, padding=kernel // 2, bias=False,
        weight_quant=Int8WeightPerChannelFloat, weight_bit_width=bits,
    )  # fmt: skip


def relu(bits: int = 4) -> nn.Module:
    return qnn.QuantReLU(bit_width=bits, return_quant_tensor=True)


def to_s8(**more: Any) -> nn.Module:
    return qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=8, **more)


class Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, bits: int) -> None:
        super().__init__()
        outer = 4 * width
        self.main = nn.Sequential(
            conv(channels, width, 1), nn.BatchNorm2d(width), relu(),
            conv(width, width, 3, stride), nn.BatchNorm2d(width), relu(),
            conv(width, outer, 1), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != outer:
            self.shortcut = nn.Sequential(conv(channels, outer, 1, stride), nn.BatchNorm2d(outer), to_s8())
        self.out = relu(bits)

    def forward(self, x: Any) -> Any:
        return self.out(self.main(x) + self.shortcut(x))


def network(width: int = 8, classes: int = 5) -> nn.Module:
    layers = [
        to_s8(return_quant_tensor=True), conv(3, width, 7, 2, bits=8), nn.BatchNorm2d(width), relu(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    channels = width
    for i, count in enumerate((2, 1, 1, 1)):
        for j in range(count):
            layers.append(Block(channels, width << i, 2 if i and not j else 1, 7 if i == 3 else 4))
            channels = 4 * (width << i)
    head = qnn.QuantLinear(channels, classes, bias=True, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=8)
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), head)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """qcdq.onnx and qonnx.onnx of a network whose batch norms and ranges have seen some images."""
    folder = tmp_path_factory.mktemp("brevitas")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = network()
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
    yield folder
    torch.set_num_threads(threads)


def test_its_qcdq_graph_agrees_layer_by_layer(exported: Path) -> None:
    model = load(exported / "qcdq.onnx")
    net, found = import_foreign(exported / "qcdq.onnx", model, None)
    assert [len(stage.children) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)] == [2, 1, 1, 1]
    quantizer = model.graph.node[0]
    assert quantizer.op_type == "QuantizeLinear"
    scale = next(t for t in model.graph.initializer if t.name == quantizer.input[1])
    expect_agreement(model, net, found, float(numpy_helper.to_array(scale)), batch=1)


def test_its_qonnx_graph_gives_the_same_network(exported: Path) -> None:
    nets = [import_foreign(path, load(path))[0] for path in sorted(exported.glob("*.onnx"))]
    assert len(nets) == 2
    assert Model(nets[0]).digest == Model(nets[1]).digest
