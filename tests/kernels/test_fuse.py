"""From layers to fused operations: they compute what the layers do, on padded channels, within their limits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda.plan.convolution import Output, Residual
from int4core.backends.cuda.plan.fuse import fuse, pad
from int4core.backends.cuda.plan.ops import CLASSES, INPUT, TOP1, ConvOp, Limits, LinearOp, Op, PoolOp, StemOp, TopOp
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.dtypes import S8, S32, U4, U7, U31
from int4core.errors import EngineError
from int4core.layers import Pair, ResNet
from int4core.quantize import requantize
from tests.int4core.networks import random_input, random_network, reference_trace

Arrays = dict[str, np.ndarray[Any, Any]]


@cache
def odd_network(basic: bool = False) -> ResNet:
    """20 channels and their multiples: none but the widest is a multiple of 32."""
    return random_network(4, (2, 1, 1, 2), width=20, classes=7, basic=basic)


KINDS = pytest.mark.parametrize("basic", [False, True], ids=["bottlenecks", "basic blocks"])


def convolve(x: np.ndarray[Any, Any], weight: np.ndarray[Any, Any], stride: Pair, pads: Pair) -> Any:
    """int64 (N, H, W, C) by (K, C, R, S) -> (N, P, Q, K)."""
    x = np.pad(x.astype(np.int64), ((0, 0), (pads[0],) * 2, (pads[1],) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (1, 2))[:, :: stride[0], :: stride[1]]
    return np.einsum("npqcrs,kcrs->npqk", windows, weight.astype(np.int64), optimize=True)


def rescaled(x: np.ndarray[Any, Any], rescale: Rescale, to: Any) -> Any:
    return requantize(x, rescale.factor, rescale.shift, to).astype(np.int64)


def within(sums: np.ndarray[Any, Any], limits: Limits) -> np.ndarray[Any, Any]:
    """The limits decide which arithmetic a kernel may use: a sum outside them is a wrong result."""
    assert limits.low <= sums.min()
    assert sums.max() <= limits.high
    return sums


def run(op: Op, tensors: Arrays) -> Any:
    """What an operation writes, from its own arrays alone; NHWC."""
    x = tensors[op.source]
    if isinstance(op, StemOp):
        sums = within(convolve(x, op.weight, op.stride, op.padding) + op.bias, op.limits)
        values = rescaled(np.maximum(sums, 0), op.rescale, U4)
        edge = ((0, 0), (op.pool_padding, op.pool_stride * 2), (op.pool_padding, op.pool_stride * 2), (0, 0))
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, edge), (op.pool_size,) * 2, (1, 2))
        pooled = windows[:, :: op.pool_stride, :: op.pool_stride].max((4, 5))
        return pooled[:, : op.pooled[0], : op.pooled[1]]
    if isinstance(op, ConvOp):
        shape = op.shape
        sums = convolve(x, op.weight, (shape.stride,) * 2, (shape.pad,) * 2) + op.bias
        if op.kept:
            sums = sums + rescaled(tensors[op.residual_source], op.kept, U31)
        if op.branch:
            assert shape.source is not None
            step = (shape.source.stride,) * 2
            branch = convolve(tensors[op.residual_source], op.branch.weight, step, (0, 0)) + op.branch.bias
            narrow = rescaled(within(branch, op.branch.limits), op.branch.down, S8)
            sums = sums + rescaled(narrow, op.branch.up, S32)
        return rescaled(np.maximum(within(sums, op.limits), 0), op.rescale, U7 if shape.output == Output.U7 else U4)
    if isinstance(op, PoolOp):
        total, count = x[:, : op.size, : op.size].sum((1, 2)), op.size**2
        return pad(np.minimum((2 * total + count) // (2 * count), 127), 1)
    if isinstance(op, LinearOp):
        missing = op.features - x.shape[1]
        return np.pad(x, ((0, 0), (0, missing))) @ op.weight.T.astype(np.int64) + op.bias
    assert isinstance(op, TopOp)
    return (x / op.out_scale).argmax(1)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("width", [8, 20, 32])
@KINDS
def test_operations_compute_what_the_layers_do(seed: int, width: int, basic: bool) -> None:
    net = random_network(seed, (2, 1, 1, 2), width=width, classes=7, basic=basic)
    x = random_input(net, 2, 3).astype(np.int64)
    expected = reference_trace(net, x)
    tensors: Arrays = {INPUT: x.transpose(0, 2, 3, 1)}
    for op in fuse(net, 2):
        values = tensors[op.output.name] = run(op, tensors)
        if op.output.name in expected and isinstance(op, (StemOp, ConvOp)):
            layer = expected[op.output.name].transpose(0, 2, 3, 1)
            assert np.array_equal(values[..., : layer.shape[3]], layer), op.name
            assert not values[..., layer.shape[3] :].any(), f"{op.name}: padded channels are not zeros"
            assert op.output.bytes == values.size // (1 if is_u7(op) else 2)
    assert np.array_equal(tensors[CLASSES], expected["fc"])
    assert np.array_equal(tensors[TOP1], (expected["fc"] / net.scale.out_scale).argmax(1))


def is_u7(op: Op) -> bool:
    return isinstance(op, ConvOp) and op.shape.output == Output.U7


def test_limits_are_reached_and_not_passed() -> None:
    """By the worst inputs a channel can have: 15 where its weights are positive, or where they are negative."""
    rng = np.random.default_rng(2)
    weight = rng.integers(-8, 8, (32, 32, 3, 3)).astype(np.int8)
    bias = rng.integers(-3000, 3000, 32).astype(np.int16)
    rows = weight.reshape(32, -1).astype(np.int64)
    sums = np.concatenate([rows @ np.where(sign * row > 0, 15, 0) + bias for row in rows for sign in (1, -1)])
    assert Limits.of(weight, bias, 0, 15) == Limits(int(sums.min()), int(sums.max()))
    signed = np.concatenate([rows @ np.where(sign * row > 0, 127, -128) + bias for row in rows for sign in (1, -1)])
    assert Limits.of(weight, bias, -128, 127) == Limits(int(signed.min()), int(signed.max()))


@KINDS
def test_residuals_are_of_the_right_kind(basic: bool) -> None:
    net = odd_network(basic)
    ops = {op.name: op for op in fuse(net, 1) if isinstance(op, ConvOp)}
    blocks = net.blocks
    for i, block in enumerate(blocks):
        op = ops[block.convs[-1].name]
        source = blocks[i - 1].quantizes[-1].name if i else net.maxpool.name
        assert op.residual_source == source
        assert op.shape.residual == (Residual.U4 if op.kept else Residual.CONVOLUTION)
        assert (op.shape.output == Output.U7) == (i == len(blocks) - 1)
        assert (op.branch is not None) == (block.stride != 1 or block.conv1.in_channels != block.convs[-1].out_channels)
        for conv in block.convs[:-1]:
            assert ops[conv.name].shape.residual == Residual.NONE
    assert {op.shape.residual for op in ops.values()} == set(Residual)


@KINDS
def test_every_channel_count_is_padded_with_zeros(basic: bool) -> None:
    net = odd_network(basic)
    for op in fuse(net, 1):
        if isinstance(op, ConvOp):
            layer = next(c for b in net.blocks for c in b.convs if c.name == op.name)
            k, c = layer.weight.shape[:2]
            assert not op.weight[k:].any()
            assert not op.weight[:, c:].any()
            assert not op.bias[k:].any()
            assert not op.rescale.factor[k:].any()
        if isinstance(op, LinearOp):
            assert op.features % 64 == 0
            assert not op.weight[:, net.fc.in_features :].any()


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64])
def test_pad(length: int) -> None:
    array = np.arange(1, length + 1)
    padded = pad(array, 0)
    assert len(padded) % 32 == 0
    assert len(padded) - length < 32
    assert np.array_equal(padded[:length], array)
    assert not padded[length:].any()


def changed(net: ResNet, conv: str, **fields: Any) -> ResNet:
    """The network with fields of layer1_0's convolution `conv` replaced."""
    first, *others = net.layer1.children
    block = replace(first, **{conv: replace(getattr(first, conv), **fields)})
    return replace(net, layer1=replace(net.layer1, children=(block, *others)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kernel_size": (3, 1), "padding": (1, 0), "weight": np.zeros((8, 8, 3, 1), np.int8)}, "kernel 3x1"),
        ({"kernel_size": (3, 5), "padding": (1, 2), "weight": np.zeros((8, 8, 3, 5), np.int8)}, "kernel 3x5"),
        ({"dilation": (2, 2), "padding": (2, 2)}, r"dilation=\(2, 2\)"),
        ({"groups": 2, "weight": np.zeros((8, 4, 3, 3), np.int8)}, "groups=2"),
    ],
)
def test_what_no_kernel_computes_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=rf"layer1_0_conv2: .*{said}"):
        fuse(changed(random_network(0), "conv2", **fields), 1)


def test_a_dilated_maximum_is_refused_by_name() -> None:
    net = random_network(0)
    with pytest.raises(EngineError, match="maxpool: dilation=2"):
        fuse(replace(net, maxpool=replace(net.maxpool, dilation=2, padding=1)), 1)
