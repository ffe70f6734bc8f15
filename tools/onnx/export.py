"""A model as an ONNX graph: its layers one after another, in one of the forms."""

from __future__ import annotations

import json

import numpy as np
import onnx

from int4core.dtypes import INT_TYPES, S8, U4, IntType, split_mode
from int4core.format.parts import plain_values
from int4core.layers import Block, Conv2d, Quantize, ResNet, Sequential
from int4core.model import Model
from int4core.network import LayerShape, trace_shapes
from int4core.quantize import rounding_half
from pipeline.samples.classes import read_classes
from tools.input_contract import as_values
from tools.onnx.forms import Float32Form, Form, IntegerForm, QcdqForm, conv_bound
from tools.onnx.graph import IMAGES, Graph

FORMS: dict[str, type[IntegerForm] | type[Float32Form] | type[QcdqForm]] = {
    "integer": IntegerForm,
    "float32": Float32Form,
    "qcdq": QcdqForm,
}

FORM, LAYERS, CLASSES, PREPROCESSING = "int4core.form", "int4core.layers", "class_names", "preprocessing"
"""Keys of the metadata."""


def class_names(model: Model) -> tuple[str, ...] | None:
    """The names in the model folder's classes.txt, or None. Raises PipelineError when that file is wrong."""
    return None if model.path is None else read_classes(None, model.path, model.network.classes)


def to_onnx(net: ResNet, form: str, names: tuple[str, ...] | None = None) -> onnx.ModelProto:
    """The graph of `net` for its own input size; see `tools.onnx.forms`.

    Inputs: `images`, int8 (N, 3, H, W) of any N. Outputs: `accumulators` int32 (N, classes), `logits` float32
    (N, classes), `top1` int32 (N,), the numbers of `int4core.Engine`. Values are called as the layers that give them.

    Raises OnnxError, naming the layer, for a network that the form cannot hold exactly, and EngineError for one whose
    strides fit no size.
    """
    graph = Graph()
    emitter = _Emitter(FORMS[form](graph), {shape.name: shape for shape in trace_shapes(net)})
    emitter.network(net)
    metadata = {FORM: form, LAYERS: json.dumps(plain_values(net)), PREPROCESSING: json.dumps(as_values())}
    if names is not None:
        metadata[CLASSES] = json.dumps(names, ensure_ascii=False)
    image = emitter.shapes[net.conv1.name].input
    return graph.model(image.height, image.width, net.classes, metadata)


class _Emitter:
    """Walks the network once; `x` of its methods is the value that the next layer takes."""

    def __init__(self, form: Form, shapes: dict[str, LayerShape]) -> None:
        self.form = form
        self.shapes = shapes

    def network(self, net: ResNet) -> None:
        x = self.rectified(net.conv1, net.quantize1, self.form.images(IMAGES), S8)
        x = self.maxpool(net, x)
        for block in net.blocks:
            x = self.block(block, x)
        sums = self.form.linear(net.fc, self.form.mean(net.avgpool, self.window(net, x)))
        self.answers(net, sums)

    def rectified(self, conv: Conv2d, quantize: Quantize, x: str, source: IntType) -> str:
        sums = self.form.conv(conv, x, source)
        return self.form.rectified(quantize, sums, conv_bound(conv, source), output_type(quantize))

    def block(self, block: Block, x: str) -> str:
        y = x
        for conv, quantize in zip(block.convs[:-1], block.quantizes[:-1], strict=True):
            y = self.rectified(conv, quantize, y, U4)
        last, quantize = block.convs[-1], block.quantizes[-1]
        sums = self.form.conv(last, y, U4)
        kept, bound = self.residual(block.downsample, x)
        total = self.form.add(sums, kept, f"{block.name} sum")
        return self.form.rectified(quantize, total, conv_bound(last, U4) + bound, output_type(quantize))

    def residual(self, branch: Sequential | Quantize, x: str) -> tuple[str, int]:
        """The branch's value, and the largest magnitude it can have."""
        source, last = U4, branch if isinstance(branch, Quantize) else branch.children[-1]
        if isinstance(branch, Sequential):
            conv, down, _ = branch.children
            assert isinstance(conv, Conv2d)
            assert isinstance(down, Quantize)
            x = self.form.small(down, self.form.conv(conv, x, U4), conv_bound(conv, U4))
            source = S8
        assert isinstance(last, Quantize)
        most = max(source.hi, -source.lo) * int(last.requant_factor.max())
        bound = (most + rounding_half(last.shift_bits)) >> last.shift_bits
        return self.form.residual(last, x, source, output_type(last)), bound

    def maxpool(self, net: ResNet, x: str) -> str:
        """With the windows that the engine takes: what ceil_mode adds is padding at the end, which never wins."""
        layer, shape = net.maxpool, self.shapes[net.maxpool.name]
        ends = [layer.padding] * 2
        if layer.ceil_mode:
            sizes = ((shape.input.height, shape.output.height), (shape.input.width, shape.output.width))
            reach = [(after - 1) * layer.stride + layer.kernel_size for _, after in sizes]
            ends = [max(0, far - before - layer.padding) for far, (before, _) in zip(reach, sizes, strict=True)]
        kernel, stride, start = [layer.kernel_size] * 2, [layer.stride] * 2, [layer.padding] * 2
        return self.form.graph.node(
            "MaxPool", [x], layer.name, kernel_shape=kernel, strides=stride, pads=[*start, *ends]
        )

    def window(self, net: ResNet, x: str) -> str:
        """The one window that the average is over, where the map is larger."""
        kernel, shape = net.avgpool.kernel_size, self.shapes[net.avgpool.name].input
        if (shape.height, shape.width) == (kernel, kernel):
            return x
        g = self.form.graph
        start = g.constant("start of a window", [0, 0], np.int64)
        end = g.constant("end of a window", [kernel, kernel], np.int64)
        axes = g.constant("axes of a map", [2, 3], np.int64)
        return g.node("Slice", [x, start, end, axes], f"{net.avgpool.name} window")

    def answers(self, net: ResNet, sums: str) -> None:
        g = self.form.graph
        scale = g.constant(f"{net.scale.name}.out_scale", net.scale.out_scale, np.float32)
        logits = g.node("Div", [g.cast(sums, np.float32, f"{net.scale.name} f32"), scale], "logits")
        g.cast(g.node("ArgMax", [logits], "top1 s64", axis=1, keepdims=0), np.int32, "top1")


def output_type(layer: Quantize) -> IntType:
    return INT_TYPES[split_mode(layer.compute_mode)[-1]]
