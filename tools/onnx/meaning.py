"""A foreign graph read node by node: QCDQ (QuantizeLinear, Clip, DequantizeLinear) and QONNX (Quant) ResNets.

Each node turns values into what they mean (`tools.onnx.values`), or is refused with its reason. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from int4core.errors import shown
from tools.onnx.errors import OnnxFileError
from tools.onnx.files import Array, constants, to_array
from tools.onnx.values import (
    Carrier,
    Image,
    Ints,
    Logits,
    MaxPooled,
    Mean,
    Origin,
    Pool,
    Quantised,
    Reals,
    Sums,
    Total,
    Value,
    Weight,
)

QONNX_DOMAINS = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")

USES = 16
"""How often a number of the file may be read or made anew, on average: Brevitas's graphs do so 7 times with a weight.

With it a file of many nodes on one large constant ends in time, and before memory does.
"""

SPARE_USES = 1 << 20
"""Besides, for what has few weights."""

CARRIERS = {np.dtype(np.int8): (-128, 127), np.dtype(np.uint8): (0, 255), np.dtype(np.int32): (-(2**31), 2**31 - 1)}


def read_meaning(path: Path, model: onnx.ModelProto) -> tuple[Logits, tuple[int, int] | None]:
    """What the graph's output is, and the (H, W) of its input where it is fixed.

    Raises OnnxFileError for the first node that is no part of such a network, with its name and the reason.
    """
    graph = model.graph
    reader = _Reader(path, constants(path, graph))
    inputs = [value for value in graph.input if value.name not in reader.values]
    if len(inputs) != 1 or not graph.output:
        raise OnnxFileError(
            path, 0, f"has {len(inputs)} inputs and {len(graph.output)} outputs; images in, classes out"
        )
    reader.values[inputs[0].name] = Image()
    for node in graph.node:
        try:
            reader.run(node)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Attributes and constants of other kinds than the operator has.
            raise reader.fault(f"it is malformed: {shown(str(error))}") from None
    found = reader.values.get(graph.output[0].name)
    if not isinstance(found, Logits):
        why = f"its output {shown(graph.output[0].name)} is {_said(found)}, not the sums of a last linear layer"
        raise OnnxFileError(path, 0, why)
    dims = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    return found, (dims[2], dims[3]) if len(dims) == 4 and min(dims[2:]) > 0 else None


def _said(value: Value | None) -> str:
    names = {
        Image: "the image as it comes, not quantised", Sums: "sums of a convolution, not quantised",
        Total: "a block's sum, not quantised", Mean: "an average", Quantised: "quantised activations",
        Weight: "quantised weights", Carrier: "integers without their scale", Logits: "the last layer's sums",
    }  # fmt: skip
    return "not there" if value is None else names.get(type(value), "a constant")


def _numbers(value: Value | None) -> int:
    """How many it has in arrays of its own."""
    if isinstance(value, np.ndarray):
        return value.size
    return sum(part.size for part in vars(value).values() if isinstance(part, np.ndarray)) if value is not None else 0


class _Reader:
    def __init__(self, path: Path, values: dict[str, Array]) -> None:
        self.path = path
        self.values: dict[str, Value] = dict(values)
        self.uses_left = SPARE_USES + USES * sum(value.size for value in values.values())
        self.node = onnx.NodeProto()
        self.attributes: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return str(self.node.name or (self.node.output[0] if self.node.output else self.node.op_type))

    def fault(self, why: str) -> OnnxFileError:
        return OnnxFileError(self.path, 0, f"node {shown(self.name)} ({shown(self.node.op_type)}): {why}")

    def expect(self, ok: bool | np.bool_, why: str) -> None:
        if not ok:
            raise self.fault(why)

    def run(self, node: onnx.NodeProto) -> None:
        self.node = node
        operators: dict[str, Callable[[], Value]] = {
            "Constant": self.constant, "Identity": self.identity, "Dropout": self.identity,
            "Flatten": self.flatten, "Reshape": self.flatten, "Squeeze": self.flatten, "Transpose": self.transpose,
            "QuantizeLinear": self.quantize, "DequantizeLinear": self.dequantize, "Clip": self.clip,
            "Quant": self.quant, "Conv": self.conv, "BatchNormalization": self.norm, "Mul": self.mul,
            "Add": self.add, "Relu": self.relu, "MaxPool": self.maxpool, "AveragePool": self.mean,
            "GlobalAveragePool": self.mean, "ReduceMean": self.mean, "Gemm": self.gemm, "MatMul": self.gemm,
        }  # fmt: skip
        if node.op_type == "BipolarQuant":
            raise self.fault("binary values; the format has weights and activations of 4 bits")
        custom = node.domain in QONNX_DOMAINS
        if node.op_type not in operators or custom != (node.op_type == "Quant") or (node.domain and not custom):
            raise self.fault("no such node is part of a quantised ResNet of this format")
        try:
            self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        except ValueError:
            raise self.fault("it has an attribute without a value") from None
        self.expect(len(node.output) >= 1, "it has no output")
        self.use(sum(_numbers(self.values.get(name)) for name in node.input))
        value = operators[node.op_type]()
        if node.op_type == "Constant":
            self.uses_left += USES * _numbers(value)
        self.use(_numbers(value))
        self.values[node.output[0]] = value

    def use(self, numbers: int) -> None:
        self.uses_left -= numbers
        why = f"it and the nodes before it use the file's numbers over {USES} times each, and that many are not read"
        self.expect(self.uses_left >= 0, why)

    # Inputs and attributes

    def input(self, index: int) -> Value:
        self.expect(index < len(self.node.input), f"it lacks input {index}")
        name = self.node.input[index]
        self.expect(name in self.values, f"its input {shown(name)} is given by no node before it")
        return self.values[name]

    def array(self, index: int, what: str) -> Array:
        value = self.input(index)
        if not isinstance(value, np.ndarray):
            raise self.fault(f"its {what} is {_said(value)}; a constant is needed")
        return value

    def has(self, index: int) -> bool:
        return index < len(self.node.input) and self.node.input[index] != ""

    def channels(self, index: int, what: str, count: int) -> Reals:
        """A constant with a finite number for each of `count` channels, or one for all: float64 (count,)."""
        value = self.array(index, what).astype(np.float64).reshape(-1)
        self.expect(value.size in (1, count), f"its {what} has {value.size} values for {count} channels")
        self.expect(np.isfinite(value).all(), f"its {what} is not finite")
        return np.broadcast_to(value, (count,)).copy()

    def ints(self, key: str, default: list[int]) -> list[int]:
        value = self.attributes.get(key, default)
        if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
            raise self.fault(f"its {key} is not a list of whole numbers")
        return value

    # Constants and shapes

    def constant(self) -> Value:
        value = self.attributes.get("value")
        if not isinstance(value, onnx.TensorProto):
            raise self.fault("only constants that are tensors are read")
        return to_array(self.path, value, self.name)

    def identity(self) -> Value:
        return self.input(0)

    def flatten(self) -> Value:
        value = self.input(0)
        if isinstance(value, Mean | np.ndarray):
            return value
        if isinstance(value, Quantised) and isinstance(value.origin, Mean):
            return value
        raise self.fault(f"its input is {_said(value)}; only averages are flattened")

    def transpose(self) -> Value:
        value = self.input(0)
        if isinstance(value, Weight) and value.ints.ndim == 2:
            return replace(value, ints=value.ints.T)
        raise self.fault(f"its input is {_said(value)}; only the last layer's weights are transposed")

    # Quantisation

    def scale(self, index: int) -> Reals:
        value = self.array(index, "scale").astype(np.float64).reshape(-1)
        good = np.isfinite(value) & (value > 0)
        self.expect(good.all(), "its scale is not above zero and finite")
        return value

    def zero_point(self, index: int) -> np.dtype[Any]:
        """Its type. Only 0 is taken."""
        if not self.has(index):
            return np.dtype(np.uint8)
        value = self.array(index, "zero point")
        self.expect(not value.any(), "its zero point is not 0; the format's integers have no offset")
        return value.dtype

    def quantize(self) -> Value:
        scale, value = self.scale(1), self.input(0)
        limits = CARRIERS.get(self.zero_point(2))
        if limits is None:
            raise self.fault("its integers are of a type that carries no weights or activations")
        if isinstance(value, np.ndarray):
            ints = _rounded(value, self.along(scale, value))
            return Carrier(self.name, scale, *limits, ints=np.clip(ints, *limits))
        if isinstance(value, Image | Sums | Total | Mean):
            return Carrier(self.name, scale, *limits, origin=value)
        raise self.fault(f"its input is {_said(value)}")

    def along(self, scale: Reals, value: Array) -> Reals:
        """A scale for all of `value`, or one for each of its rows, to divide it by."""
        if scale.size == 1:
            return scale.reshape((1,) * value.ndim)
        axis = self.attributes.get("axis", 0 if self.node.op_type == "Quant" else 1)
        self.expect(value.ndim > 0 and axis in (0, -value.ndim) and scale.size == len(value),
                    "its scale must be one number, or one for each output channel")  # fmt: skip
        return scale.reshape(-1, *(1,) * (value.ndim - 1))

    def clip(self) -> Value:
        value = self.input(0)
        lo, hi = (int(self.array(i, "limit").reshape(-1)[0]) if self.has(i) else None for i in (1, 2))
        if isinstance(value, np.ndarray) and value.dtype in CARRIERS:
            return np.clip(value, lo, hi)
        if not isinstance(value, Carrier):
            raise self.fault(f"its input is {_said(value)}; only the integers of QuantizeLinear are limited")
        lo, hi = max(value.lo, value.lo if lo is None else lo), min(value.hi, value.hi if hi is None else hi)
        ints = None if value.ints is None else np.clip(value.ints, lo, hi)
        return replace(value, lo=lo, hi=hi, ints=ints)

    def dequantize(self) -> Value:
        scale, value = self.scale(1), self.input(0)
        self.zero_point(2)
        if isinstance(value, Carrier):
            same = scale.shape == value.scale.shape and np.array_equal(scale, value.scale)
            self.expect(same, "its scale is not that of the QuantizeLinear before it")
            if value.origin is not None:
                return self.activations(value.origin, scale, value.lo, value.hi, value.node)
            assert value.ints is not None
            return self.weight(value.ints, scale)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            return self.weight(value.astype(np.int64), scale)
        raise self.fault(f"its input is {_said(value)}")

    def quant(self) -> Value:
        scale, bits = self.scale(1), self.array(3, "bit width").reshape(-1)[0]
        self.zero_point(2)
        self.expect(bits == int(bits) and 1 <= bits <= 32, f"a width of {bits} bits")
        signed, narrow = (bool(self.attributes.get(key, default)) for key, default in (("signed", 1), ("narrow", 0)))
        mode = self.attributes.get("rounding_mode", b"ROUND")
        self.expect(mode in (b"ROUND", b"HALF_EVEN"), f"rounding_mode {shown(str(mode))}; only to the nearest is read")
        hi = (1 << int(bits) - signed) - 1 - (0 if signed else narrow)
        lo = -hi - (0 if narrow else 1) if signed else 0
        value = self.input(0)
        if isinstance(value, np.ndarray):
            return self.weight(np.clip(_rounded(value, self.along(scale, value)), lo, hi), scale)
        if isinstance(value, Image | Sums | Total | Mean):
            return self.activations(value, scale, lo, hi, self.name)
        raise self.fault(f"its input is {_said(value)}")

    def activations(self, origin: Origin, scale: Reals, lo: int, hi: int, node: str) -> Quantised:
        self.expect(scale.size == 1, "activations have a scale for each channel; the format has one for all")
        return Quantised(node, origin, float(scale[0]), lo, hi)

    def weight(self, ints: Ints, scale: Reals) -> Value:
        """Weights with a scale a channel; a vector is a bias, and becomes the real numbers that it stands for."""
        along = self.along(scale, ints) if self.node.op_type != "DequantizeLinear" else self.rows(scale, ints)
        if ints.ndim < 2:
            return np.asarray(ints * along.reshape(-1), np.float64)
        return Weight(self.name, ints, np.broadcast_to(scale, (len(ints),)).copy())

    def rows(self, scale: Reals, ints: Ints) -> Reals:
        first = self.attributes.get("axis", 1) in (0, -ints.ndim) and scale.size == (len(ints) if ints.ndim else 1)
        self.expect(scale.size == 1 or first, "its scale must be one number, or one for each output channel")
        return scale

    # Layers

    def conv(self) -> Value:
        x, weight = self.input(0), self.input(1)
        if not isinstance(x, Quantised):
            raise self.fault(f"its input is {_said(x)}; the format convolves integers")
        if not isinstance(weight, Weight) or weight.ints.ndim != 4:
            raise self.fault(f"its weights are {_said(weight)}; integers of 4 dimensions are needed")
        self.expect(self.attributes.get("group", 1) == 1, "a convolution in groups; the format has none")
        self.expect(set(self.ints("dilations", [1, 1])) == {1}, "a dilated convolution; the format has none")
        self.expect(self.attributes.get("auto_pad", b"NOTSET") == b"NOTSET", "auto_pad; give the padding as numbers")
        k = len(weight.ints)
        gain = x.step * weight.scale
        bias = self.channels(2, "bias", k) if self.has(2) else np.zeros(k)
        stride, pads = self.ints("strides", [1, 1]), self.ints("pads", [0] * 4)
        self.expect(len(stride) == 2 and len(pads) == 4 and pads[:2] == pads[2:], "padding that differs between sides")
        return Sums(self.name, weight, x, (stride[0], stride[1]), (pads[0], pads[1]), gain, bias)

    def unrectified(self, value: Value) -> Sums:
        if not isinstance(value, Sums) or value.rectified:
            raise self.fault(f"its input is {_said(value)}; it must follow a convolution")
        return value

    def norm(self) -> Value:
        sums = self.unrectified(self.input(0))
        gamma, beta, mean, var = (self.channels(i, "statistics", len(sums.gain)) for i in (1, 2, 3, 4))
        self.expect(not self.attributes.get("training_mode", 0), "it is in training mode")
        spread = var + float(self.attributes.get("epsilon", 1e-5))
        self.expect((spread > 0).all(), "a variance that is not above zero")
        factor = gamma / np.sqrt(spread)
        return replace(sums, gain=sums.gain * factor, bias=(sums.bias - mean) * factor + beta)

    def mul(self) -> Value:
        sums = self.unrectified(self.input(0))
        factor = self.channels(1, "factor", len(sums.gain))
        return replace(sums, gain=sums.gain * factor, bias=sums.bias * factor)

    def add(self) -> Value:
        x, y = self.input(0), self.input(1)
        if isinstance(x, Logits | Sums) and isinstance(y, np.ndarray):
            more = self.channels(1, "bias", len(x.bias))
            return replace(x, bias=x.bias + more)
        if isinstance(x, Quantised):
            x, y = y, x
        if isinstance(x, Quantised):
            raise self.fault("both of its inputs are quantised; the format adds the shortcut to the exact sums of a "
                        "convolution: leave out the quantiser before the addition")  # fmt: skip
        if not isinstance(x, Sums) or x.rectified or not isinstance(y, Quantised):
            why = f"it adds {_said(x)} and {_said(y)}; the format adds sums of a convolution and a quantised shortcut"
            raise self.fault(f"{why} (one with a convolution is quantised to 8 bits, signed)")
        return Total(self.name, x, y)

    def relu(self) -> Value:
        value = self.input(0)
        if isinstance(value, Quantised) and value.lo >= 0:
            return value
        if isinstance(value, Sums | Total):
            return replace(value, rectified=True)
        raise self.fault(f"its input is {_said(value)}; it must follow a convolution or an addition")

    def pool(self) -> Pool:
        kernel, pads = self.ints("kernel_shape", []), self.ints("pads", [0] * 4)
        stride = self.ints("strides", [1] * len(kernel))
        square = len(kernel) == len(stride) == 2 and kernel[0] == kernel[1] and stride[0] == stride[1]
        self.expect(square and len(set(pads)) == 1 and len(pads) == 4, "windows or padding that are not square")
        self.expect(set(self.ints("dilations", [1, 1])) == {1}, "dilated windows; the format has none")
        self.expect(self.attributes.get("auto_pad", b"NOTSET") == b"NOTSET", "auto_pad; give the padding as numbers")
        return Pool(kernel[0], stride[0], pads[0], bool(self.attributes.get("ceil_mode", 0)))

    def maxpool(self) -> Value:
        value = self.input(0)
        if not isinstance(value, Quantised):
            raise self.fault(f"its input is {_said(value)}; the format takes the largest of integers")
        return replace(value, origin=MaxPooled(value, self.pool()))

    def mean(self) -> Value:
        value = self.input(0)
        if not isinstance(value, Quantised):
            raise self.fault(f"its input is {_said(value)}; the format averages integers")
        if self.node.op_type == "AveragePool":
            pool = self.pool()
            self.expect(not pool.padding and not pool.ceil_mode, "padding; every mean is over a whole window")
            return Mean(self.name, value, pool)
        axes = self.attributes.get("axes", [2, 3])
        if self.has(1):
            axes = self.array(1, "axes").reshape(-1).tolist()
        self.expect(sorted(a % 4 for a in axes) == [2, 3], "a mean over other axes than height and width")
        return Mean(self.name, value, Pool(0, 1))

    def gemm(self) -> Value:
        x, weight = self.input(0), self.input(1)
        if isinstance(x, Quantised) and isinstance(x.origin, Mean):
            x = self.requantised(x, x.origin)
        if not isinstance(x, Mean):
            raise self.fault(f"its input is {_said(x)}; the last layer takes the averages")
        if not isinstance(weight, Weight) or weight.ints.ndim != 2:
            raise self.fault(f"its weights are {_said(weight)}; integers of 2 dimensions are needed")
        if self.node.op_type == "Gemm":
            get = self.attributes.get
            self.expect(get("alpha", 1.0) == get("beta", 1.0) == 1.0 and not get("transA", 0), "factors, or transA")
        if not self.attributes.get("transB", 0):
            weight = replace(weight, ints=weight.ints.T)
        self.expect(weight.scale.size == len(weight.ints), "its weights' scales do not go with the classes")
        bias = self.channels(2, "bias", len(weight.ints)) if self.has(2) else np.zeros(len(weight.ints))
        return Logits(self.name, weight, x, bias)

    def requantised(self, x: Quantised, mean: Mean) -> Mean:
        """An average that is rounded to the step it came with, which the format does too."""
        same = abs(x.step / mean.source.step - 1) < 1e-6 and (x.lo, x.hi) == (mean.source.lo, mean.source.hi)
        self.expect(same, "the average before it has a quantiser of its own, and the format keeps the step and the "
                    "range of what is averaged: share that quantiser's scale")  # fmt: skip
        return mean


def _rounded(value: Array, scale: Reals) -> Ints:
    """As a network in float32 rounds its weights."""
    with np.errstate(all="ignore"):
        ints = np.rint(value.astype(np.float32) / scale.astype(np.float32))
    return np.nan_to_num(ints, nan=0.0).clip(-(2.0**31), 2.0**31).astype(np.int64)
