"""The arithmetic of the network in ONNX operators, in three forms that give the same integers.

    integer   ConvInteger and MatMulInteger; rescaling in int64. Nothing to prove: no value leaves its type.
    float32   Conv and MatMul on float32 that are integers, rescaling by exact multiples of 2^-shift.
    qcdq      float32 with QuantizeLinear, Clip and DequantizeLinear on 8-bit carriers, scales all 1.

What makes the last two exact. A float32 holds every integer up to 2^24. So does each partial sum of a convolution, in
any order, when sum |w| * max |x| + |bias| is below that: `Float32Form` proves it of each layer and refuses one that
could exceed it. x * (factor * 2^-shift) is an integer over 2^shift, and `int4core.quantize.FloatRescale` says when it
and its rounding are exact; the same test is made here. No Mul by a constant follows a Conv directly: optimisers would
fold it into the weights, whose products then need more bits.

QuantizeLinear rounds ties to even, the format rounds halves up. Before it comes + 2^-(shift + 1): x * factor * 2^-shift
is a multiple of 2^-shift, so the sum is never in the middle of two integers, and crosses no middle that it was not on.
That sum must be exact wherever the result does not saturate, that is, (hi + 1) * 2^shift <= 2^23. Where it is not,
and for s8, which has negative halves, Floor(x + 1/2) comes before QuantizeLinear, which then has nothing to round.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from int4core.dtypes import S8, U7, IntType
from int4core.errors import EngineError
from int4core.layers import AvgPool2d, Conv2d, Linear, Quantize
from int4core.quantize import MANTISSA, FloatRescale, rounding_half
from tools.onnx.errors import OnnxError
from tools.onnx.graph import Graph

FLOAT32: np.dtype[Any] = np.dtype(np.float32)
EXACT = MANTISSA[FLOAT32]

U8_ZERO = 128
"""What makes s8 values u8. Where products of s8 by u8 saturate (x86 without VNNI), those of u8 by u8 do not."""


class Form(Protocol):
    """Emits one layer after another. Activations and sums are names of values; each takes and gives this form's own."""

    graph: Graph

    def images(self, x: str) -> str:
        """int8 images as this form's activations."""
        ...

    def conv(self, layer: Conv2d, x: str, source: IntType) -> str:
        """Sums with bias, in the value called as the layer."""
        ...

    def add(self, x: str, y: str, name: str) -> str:
        """Sums of two branches."""
        ...

    def rectified(self, layer: Quantize, sums: str, bound: int, out: IntType) -> str:
        """ReLU and Quantize of sums of at most `bound`."""
        ...

    def small(self, layer: Quantize, sums: str, bound: int) -> str:
        """Quantize of signed sums to s8, as `residual` takes it."""
        ...

    def residual(self, layer: Quantize, x: str, source: IntType, out: IntType) -> str:
        """Quantize of activations to what conv3's sums are added to."""
        ...

    def mean(self, layer: AvgPool2d, x: str) -> str:
        """u7 (N, C) of u7 maps whose windows have been cut out."""
        ...

    def linear(self, layer: Linear, x: str) -> str:
        """int32 (N, classes), called `accumulators`."""
        ...


def conv_bound(layer: Conv2d, source: IntType) -> int:
    """The largest magnitude of a sum, or of any part of one, with bias, over inputs of the type `source`."""
    return _largest(layer.weight, layer.bias, source)


def linear_bound(layer: Linear) -> int:
    """As `conv_bound`; a Linear takes u7."""
    return _largest(layer.weight, layer.bias, U7)


def _largest(weight: Any, bias: Any, source: IntType) -> int:
    rows = np.abs(weight.reshape(len(weight), -1).astype(np.int64)).sum(axis=1)
    return int((rows * max(source.hi, -source.lo) + np.abs(bias.astype(np.int64))).max())


def _attributes(layer: Conv2d) -> dict[str, Any]:
    return {
        "kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": layer.padding * 2,
        "dilations": layer.dilation, "group": layer.groups,
    }  # fmt: skip


def mean_is_exact(count: int) -> bool:
    """Whether `_float_mean` is proved for means of `count` u7 values."""
    return 4 * U7.hi * count + 2 * count + 1 <= EXACT and 4 * count < 1 << 16


def _float_mean(g: Graph, layer: AvgPool2d, x: str) -> str:
    """floor((4 t + 2 n + 1) / 4 n), which is the mean of n values of sum t rounded half up, of float32 maps.

    The quotient is 1 / 4 n or more from every integer, and a float32 division, or a multiplication by the rounded
    reciprocal, is at most 2^-16 off; so either gives the right floor.
    """
    name, count = layer.name, layer.kernel_size**2
    axes = g.constant("axes of a map", [2, 3], np.int64)
    total = g.node("ReduceSum", [x, axes], f"{name} total", keepdims=0)
    scaled = g.node("Mul", [total, g.scalar(4, np.float32)], f"{name} scaled")
    half_up = g.node("Add", [scaled, g.scalar(2 * count + 1, np.float32)], f"{name} half up")
    quotient = g.node("Div", [half_up, g.scalar(4 * count, np.float32)], f"{name} mean")
    return g.node("Floor", [quotient], f"{name} whole")


class IntegerForm:
    """Activations uint8 (images too, offset by 128), sums int32."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def images(self, x: str) -> str:
        g = self.graph
        wide = g.cast(x, np.int32, "images s32")
        return g.cast(g.node("Add", [wide, g.scalar(U8_ZERO, np.int32)], "images u9"), np.uint8, "images u8")

    def conv(self, layer: Conv2d, x: str, source: IntType) -> str:
        g, name = self.graph, layer.name
        inputs = [x]
        if source.signed:
            offset = (layer.weight.astype(np.int16) + U8_ZERO).astype(np.uint8)
            zero = g.scalar(U8_ZERO, np.uint8)
            inputs += [g.constant(f"{name}.weight", offset, np.uint8), zero, zero]
        else:
            inputs.append(g.constant(f"{name}.weight", layer.weight, np.int8))
        products = g.node("ConvInteger", inputs, f"{name} products", **_attributes(layer))
        bias = g.constant(f"{name}.bias", layer.bias.reshape(1, -1, 1, 1), np.int32)
        return g.node("Add", [products, bias], name)

    def add(self, x: str, y: str, name: str) -> str:
        return self.graph.node("Add", [x, y], name)

    def rectified(self, layer: Quantize, sums: str, bound: int, out: IntType) -> str:
        g, name = self.graph, layer.name
        positive = g.node("Max", [g.cast(sums, np.int64, f"{name} s64"), g.scalar(0, np.int64)], f"{name} relu")
        rescaled = self._rescaled(layer, positive)
        limited = g.node("Min", [rescaled, g.scalar(out.hi, np.int64)], f"{name} limited")
        return g.cast(limited, np.uint8, name)

    def small(self, layer: Quantize, sums: str, bound: int) -> str:
        g, name = self.graph, layer.name
        signed = self._signed(layer, g.cast(sums, np.int64, f"{name} s64"))
        limited = g.node("Min", [signed, g.scalar(S8.hi, np.int64)], f"{name} limited")
        return g.node("Max", [limited, g.scalar(S8.lo, np.int64)], name)

    def residual(self, layer: Quantize, x: str, source: IntType, out: IntType) -> str:
        g, name = self.graph, layer.name
        if source.signed:
            return g.cast(self._signed(layer, x), np.int32, name)
        return g.cast(self._rescaled(layer, g.cast(x, np.int64, f"{name} s64")), np.int32, name)

    def mean(self, layer: AvgPool2d, x: str) -> str:
        """In float32 where that is proved exact: some runtimes divide int32 in floating point, and round."""
        g, name, count = self.graph, layer.name, layer.kernel_size**2
        if mean_is_exact(count):
            return g.cast(_float_mean(g, layer, g.cast(x, np.float32, f"{name} f32")), np.uint8, name)
        axes = g.constant("axes of a map", [2, 3], np.int64)
        total = g.node("ReduceSum", [g.cast(x, np.int32, f"{name} s32"), axes], f"{name} total", keepdims=0)
        twice = g.node("Mul", [total, g.scalar(2, np.int32)], f"{name} twice")
        half_up = g.node("Add", [twice, g.scalar(count, np.int32)], f"{name} half up")
        return g.cast(g.node("Div", [half_up, g.scalar(2 * count, np.int32)], f"{name} mean"), np.uint8, name)

    def linear(self, layer: Linear, x: str) -> str:
        g, name = self.graph, layer.name
        weight = g.constant(f"{name}.weight", layer.weight.T, np.int8)
        products = g.node("MatMulInteger", [x, weight], f"{name} products")
        return g.node("Add", [products, g.constant(f"{name}.bias", layer.bias, np.int32)], "accumulators")

    def _rescaled(self, layer: Quantize, x: str) -> str:
        """(x * factor + half) >> shift of int64 that are not negative; a Div that truncates or floors, either way."""
        g, name = self.graph, layer.name
        factor = g.constant(f"{name}.requant_factor", layer.requant_factor.reshape(1, -1, 1, 1), np.int64)
        half, unit = rounding_half(layer.shift_bits), 1 << layer.shift_bits
        product = g.node("Mul", [x, factor], f"{name} product")
        rounded = g.node("Add", [product, g.scalar(half, np.int64)], f"{name} rounded")
        return g.node("Div", [rounded, g.scalar(unit, np.int64)], f"{name} rescaled")

    def _signed(self, layer: Quantize, x: str) -> str:
        g, name = self.graph, layer.name
        magnitude = self._rescaled(layer, g.node("Abs", [x], f"{name} magnitude"))
        return g.node("Mul", [magnitude, g.node("Sign", [x], f"{name} sign")], f"{name} signed")


class Float32Form:
    """Activations and sums float32 that are integers. Raises OnnxError for a layer that they could not hold."""

    remedy = "use --form integer"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def images(self, x: str) -> str:
        return self.graph.cast(x, np.float32, "images f32")

    def conv(self, layer: Conv2d, x: str, source: IntType) -> str:
        g, name = self.graph, layer.name
        self._expect_exact(name, conv_bound(layer, source))
        bias = g.constant(f"{name}.bias", layer.bias, np.float32)
        return g.node("Conv", [x, self._weight(name, layer.weight), bias], name, **_attributes(layer))

    def add(self, x: str, y: str, name: str) -> str:
        return self.graph.node("Add", [x, y], name)

    def rectified(self, layer: Quantize, sums: str, bound: int, out: IntType) -> str:
        g, name = self.graph, layer.name
        scaled = self._scaled(layer, g.node("Relu", [sums], f"{name} relu"), bound, out)
        return self._limited(name, self._half_up(layer, scaled), out)

    def small(self, layer: Quantize, sums: str, bound: int) -> str:
        g, name = self.graph, layer.name
        signed = self._signed(layer, sums, bound, S8)
        return g.node("Clip", [signed, g.scalar(S8.lo, np.float32), g.scalar(S8.hi, np.float32)], name)

    def residual(self, layer: Quantize, x: str, source: IntType, out: IntType) -> str:
        bound = max(source.hi, -source.lo)
        if source.signed:
            return self._signed(layer, x, bound, out)
        return self._half_up(layer, self._scaled(layer, x, bound, out))

    def mean(self, layer: AvgPool2d, x: str) -> str:
        name, count = layer.name, layer.kernel_size**2
        if not mean_is_exact(count):
            raise OnnxError(f"{name}: a mean of {count} values is not proved exact in float32; {self.remedy}")
        return self._carried(name, _float_mean(self.graph, layer, x), U7)

    def linear(self, layer: Linear, x: str) -> str:
        g, name = self.graph, layer.name
        self._expect_exact(name, linear_bound(layer))
        products = g.node("MatMul", [x, self._weight(name, layer.weight.T)], f"{name} products")
        sums = g.node("Add", [products, g.constant(f"{name}.bias", layer.bias, np.float32)], name)
        return g.cast(sums, np.int32, "accumulators")

    def _weight(self, name: str, weight: Any) -> str:
        return self.graph.constant(f"{name}.weight", weight, np.float32)

    def _limited(self, name: str, whole: str, out: IntType) -> str:
        """Integers limited to 0..hi, as activations called `name`."""
        g = self.graph
        return g.node("Clip", [whole, g.scalar(0, np.float32), g.scalar(out.hi, np.float32)], name)

    def _carried(self, name: str, whole: str, out: IntType) -> str:
        """Integers that are within their type, as activations called `name`."""
        return self._limited(name, whole, out)

    def _scaled(self, layer: Quantize, x: str, bound: int, out: IntType) -> str:
        g, name = self.graph, layer.name
        try:
            rescale = FloatRescale.build(FLOAT32, layer.requant_factor, layer.shift_bits, out, bound)
        except EngineError as error:
            raise OnnxError(f"{name}: {error}; {self.remedy}") from None
        scale = g.constant(f"{name}.scale", rescale.scale.reshape(1, -1, 1, 1), np.float32)
        return g.node("Mul", [x, scale], f"{name} scaled")

    def _half_up(self, layer: Quantize, x: str) -> str:
        if not layer.shift_bits:
            return x
        g, name = self.graph, layer.name
        return g.node("Floor", [g.node("Add", [x, g.scalar(0.5, np.float32)], f"{name} half up")], f"{name} whole")

    def _signed(self, layer: Quantize, x: str, bound: int, out: IntType) -> str:
        """Halves away from zero. The two readers of a Conv's sums also keep Mul from being folded into it."""
        g, name = self.graph, layer.name
        magnitude = self._scaled(layer, g.node("Abs", [x], f"{name} magnitude"), bound, out)
        sign = g.node("Sign", [x], f"{name} sign")
        return g.node("Mul", [self._half_up(layer, magnitude), sign], f"{name} signed")

    def _expect_exact(self, name: str, bound: int) -> None:
        if bound > EXACT:
            raise OnnxError(f"{name}: its sums could reach {bound:,}, and float32 holds all integers only up to "
                            f"{EXACT:,}; {self.remedy}")  # fmt: skip


class QcdqForm(Float32Form):
    """float32 between DequantizeLinear and QuantizeLinear; the carriers are int8 and uint8."""

    def images(self, x: str) -> str:
        return self._dequantised(x, np.int8, "images f32")

    def rectified(self, layer: Quantize, sums: str, bound: int, out: IntType) -> str:
        g, name, shift = self.graph, layer.name, layer.shift_bits
        scaled = self._scaled(layer, g.node("Relu", [sums], f"{name} relu"), bound, out)
        if shift and (out.hi + 1) << shift <= EXACT >> 1:
            untied = g.node("Add", [scaled, g.scalar(2.0 ** -(shift + 1), np.float32)], f"{name} untied")
        else:
            untied = self._half_up(layer, scaled)
        return self._limited(name, untied, out)

    def small(self, layer: Quantize, sums: str, bound: int) -> str:
        name = layer.name
        signed = self._signed(layer, sums, bound, S8)
        carrier = self._quantised(signed, np.int8, f"{name} carrier")
        return self._dequantised(carrier, np.int8, name)

    def _limited(self, name: str, whole: str, out: IntType) -> str:
        g = self.graph
        carrier = self._quantised(whole, np.uint8, f"{name} carrier")
        limited = g.node("Clip", [carrier, g.scalar(0, np.uint8), g.scalar(out.hi, np.uint8)], f"{name} limited")
        return self._dequantised(limited, np.uint8, name)

    def _weight(self, name: str, weight: Any) -> str:
        stored = self.graph.constant(f"{name}.weight", weight, np.int8)
        return self._dequantised(stored, np.int8, f"{name} weight")

    def _quantised(self, x: str, dtype: type, name: str) -> str:
        g = self.graph
        return g.node("QuantizeLinear", [x, g.scalar(1.0, np.float32), g.scalar(0, dtype)], name)

    def _dequantised(self, x: str, dtype: type, name: str) -> str:
        g = self.graph
        return g.node("DequantizeLinear", [x, g.scalar(1.0, np.float32), g.scalar(0, dtype)], name)
