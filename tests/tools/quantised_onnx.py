"""ResNets as Brevitas exports them, built with the onnx package alone: QCDQ and QONNX graphs of the same network."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

QONNX = "qonnx.custom_op.general"
WIDTH, CLASSES, SIDE = 8, 5, 64


class Exported:
    """Draws a network, in the order and with the operators of Brevitas's exports; the same for both forms."""

    def __init__(self, form: str, seed: int = 0, *, input_step: float = 0.03, blocks: tuple[int, ...] = (2, 1, 1, 1),
                 whole_mean: bool = False, last_bits: int = 7, basic: bool = False) -> None:  # fmt: skip
        self.form = form
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.input_step = input_step
        self.spread = 1.0
        self.basic, expansion = basic, 1 if basic else 4
        x = self.activations("images", "images", input_step, 8, signed=True)
        x = self.act("stem", self.conv("stem", x, 3, WIDTH, 7, 2, bits=8), 4)
        x = self.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        channels = WIDTH
        for i, count in enumerate(blocks):
            for j in range(count):
                last = i == len(blocks) - 1 and j == count - 1
                stride = 2 if i and not j else 1
                x = self.block(f"b{i}{j}", x, channels, WIDTH << i, stride, last_bits if last else 4)
                channels = expansion * (WIDTH << i)
        if whole_mean:
            x = self.node("GlobalAveragePool", [x], "mean")
        else:
            x = self.node("AveragePool", [x], "mean", kernel_shape=[2, 2], strides=[2, 2])
        x = self.node("Flatten", [x], "flat", axis=1)
        weight = self.weights("fc", (CLASSES, channels), 8)
        bias = self.constant("fc.bias", self.random.normal(0, 1, CLASSES).astype(np.float32))
        self.node("Gemm", [x, weight, bias], "out", transB=1)

    @property
    def model(self) -> onnx.ModelProto:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", CLASSES])
        graph = helper.make_graph(self.nodes, "g", [images], [out], self.constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(QONNX, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def block(self, name: str, x: str, channels: int, width: int, stride: int, bits: int) -> str:
        outer, entered = width if self.basic else 4 * width, self.spread
        plan = [(channels, width, 1, 1), (width, width, 3, stride), (width, outer, 1, 1)]
        if self.basic:
            plan = [(channels, width, 3, stride), (width, width, 3, 1)]
        y = x
        for i, (c, k, kernel, step) in enumerate(plan, start=1):
            y = self.conv(f"{name}.{i}", y, c, k, kernel, step)
            if i < len(plan):
                y = self.act(f"{name}.{i}", y, 4)
        main = self.spread
        if stride != 1 or channels != outer:
            self.spread = entered
            x = self.conv(f"{name}.0", x, channels, outer, 1, stride)
            x = self.activations(f"{name}.0.q", x, self.spread / 30, 8, signed=True)
        self.spread = float(np.hypot(main, self.spread))
        return self.act(name, self.node("Add", [y, x], f"{name}.add"), bits)

    def conv(self, name: str, x: str, c: int, k: int, kernel: int, stride: int, bits: int = 4) -> str:
        weight = self.weights(name, (k, c, kernel, kernel), bits)
        pads = [kernel // 2] * 4
        sums = self.node("Conv", [x, weight], f"{name}.conv", kernel_shape=[kernel] * 2, strides=[stride] * 2,
                         pads=pads, dilations=[1, 1], group=1)  # fmt: skip
        fan = np.sqrt(c * kernel * kernel) * self.spread
        gamma = self.random.normal(1, 0.2, k) * np.where(self.random.random(k) < 0.2, -1, 1)
        beta, mean = self.random.normal(0, 0.3, k), self.random.normal(0, 0.2, k) * fan
        values = (gamma, beta, mean, self.random.uniform(0.5, 2, k) * fan**2)
        names = [self.constant(f"{name}.bn{i}", v.astype(np.float32)) for i, v in enumerate(values)]
        self.spread = 1.0
        return self.node("BatchNormalization", [sums, *names], f"{name}.bn", epsilon=1e-5)

    def act(self, name: str, x: str, bits: int) -> str:
        top = 2.5 * self.spread
        self.spread *= 0.8
        return self.activations(f"{name}.act", self.node("Relu", [x], f"{name}.relu"), top / ((1 << bits) - 1), bits)

    def weights(self, name: str, shape: tuple[int, ...], bits: int) -> str:
        """Narrow, as Brevitas's: the integers go to +-(2^(bits - 1) - 1)."""
        top = (1 << (bits - 1)) - 1
        ints = np.rint(self.random.normal(0, top / 3, shape)).clip(-top, top)
        scale = (self.random.uniform(0.8, 1.2, shape[0]) * 3 / top).astype(np.float32)
        if self.form == "qonnx":
            columns = scale.reshape(-1, *(1,) * (len(shape) - 1))
            real = self.constant(f"{name}.weight", (ints * columns).astype(np.float32))
            inputs = [real, self.constant(f"{name}.scale", columns), self.zero(), self.bits(bits)]
            return self.quant(inputs, f"{name}.w", signed=1, narrow=1)
        stored = self.constant(f"{name}.weight", ints.astype(np.int8))
        zero = self.constant(f"{name}.zero", np.zeros(shape[0], np.int8))
        limits = [self.constant(f"{name}.{k}", np.int8(v)) for k, v in (("lo", -top), ("hi", top))]
        limited = self.node("Clip", [stored, *limits], f"{name}.clip")
        return self.node(
            "DequantizeLinear", [limited, self.constant(f"{name}.scale", scale), zero], f"{name}.w", axis=0
        )

    def activations(self, name: str, x: str, step: float, bits: int, *, signed: bool = False) -> str:
        scale = self.constant(f"{name}.scale", np.float32(step))
        if self.form == "qonnx":
            return self.quant([x, scale, self.zero(), self.bits(bits)], f"{name}.q", signed=int(signed), narrow=0)
        dtype = np.int8 if signed else np.uint8
        zero = self.constant(f"{name}.zero", dtype(0))
        x = self.node("QuantizeLinear", [x, scale, zero], f"{name}.int")
        if bits < 8:
            limits = [self.constant(f"{name}.{k}", dtype(v)) for k, v in (("lo", 0), ("hi", (1 << bits) - 1))]
            x = self.node("Clip", [x, *limits], f"{name}.limited")
        return self.node("DequantizeLinear", [x, scale, zero], f"{name}.q")

    def quant(self, inputs: list[str], name: str, **flags: int) -> str:
        return self.node("Quant", inputs, name, domain=QONNX, rounding_mode="ROUND", **flags)

    def zero(self) -> str:
        return self.constant("zero", np.float32(0))

    def bits(self, bits: int) -> str:
        return self.constant(f"bits {bits}", np.float32(bits))

    def constant(self, name: str, value: Any) -> str:
        if name not in {c.name for c in self.constants}:
            self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], f"/{name}", **attributes))
        return name
