"""From a network's layers to the fused operations of `ops`, channels padded to whole k-steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual, Source
from int4core.backends.cuda.plan.ops import (
    CLASSES,
    INPUT,
    TOP1,
    Branch,
    ConvOp,
    Limits,
    LinearOp,
    PoolOp,
    SingleOp,
    StemOp,
    TopOp,
    padded,
)
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.dtypes import U7
from int4core.errors import EngineError
from int4core.layers import Block, Conv2d, Int8Array, Int16Array, Pair, Quantize, ResNet
from int4core.network import LayerShape, trace_shapes
from int4core.scores import check_k

Shapes = Mapping[str, LayerShape]


def fuse(net: ResNet, n: int, size: Pair | None = None, top: int = 0) -> tuple[SingleOp, ...]:
    """The operations for batches of `n` images of `size` = (H, W), in running order.

    The last one gives the class alone, or for `top` > 0 the best `top` classes and their scores too.

    Raises:
        EngineError: the size or `top` does not fit the network, or it has a layer that no kernel computes.
    """
    shapes = {layer.name: layer for layer in trace_shapes(net, size)}
    ops: list[SingleOp] = [_stem(net, shapes, n)]
    source = net.maxpool.name
    for block in net.blocks:
        ops += _block(block, shapes, n, source)
        source = block.quantizes[-1].name
    return (*ops, *_head(net, shapes, n, source, top))


def _stem(net: ResNet, shapes: Shapes, n: int) -> StemOp:
    conv, pool = net.conv1, net.maxpool
    _check(conv)
    if pool.dilation != 1:
        raise EngineError(f"{pool.name}: dilation={pool.dilation}, and the CUDA engine computes no other than 1")
    shape, pooled = shapes[conv.name], shapes[pool.name].output
    weight, bias = pad(conv.weight, 0), pad(conv.bias, 0)
    return StemOp(
        conv.name, INPUT, pool.name, n, shape.input.height, shape.input.width, shape.output.height,
        shape.output.width, conv.stride, conv.padding, weight, bias, _rescale(net.quantize1),
        Limits.of(weight, bias, -128, 127), pool.kernel_size, pool.stride, pool.padding,
        (pooled.height, pooled.width),
    )  # fmt: skip


def _block(block: Block, shapes: Shapes, n: int, source: str) -> list[ConvOp]:
    """Its convolutions; the last one's sums get the residual, a downsampling convolution among its products."""
    ops, read = [], source
    for conv, quantize in zip(block.convs[:-1], block.quantizes[:-1], strict=True):
        ops.append(_rectified(conv, quantize, shapes, n, read))
        read = quantize.name
    return [*ops, _joined(block, shapes, n, read, source)]


def _joined(block: Block, shapes: Shapes, n: int, read: str, source: str) -> ConvOp:
    last, quantize, branch = block.convs[-1], block.quantizes[-1], block.downsample
    output = Output.U7 if shapes[quantize.name].output_type == U7 else Output.U4
    weight, bias = _padded(last)
    limits = Limits.of(weight, bias, 0, 15)
    residual: dict[str, Any]
    if isinstance(branch, Quantize):
        kept = _rescale(branch)
        limits += Limits(0, _largest(kept, 15))
        shape = _shape(last, shapes, n, output=output, residual=Residual.U4)
        residual = {"kept": kept}
    else:
        conv, down, up = branch.children
        assert isinstance(conv, Conv2d)
        assert isinstance(down, Quantize)
        assert isinstance(up, Quantize)
        added = _branch(conv, down, up)
        reach = _largest(added.up, 128)
        limits += Limits(-reach, reach)
        size = shapes[conv.name].input
        place = Source(size.height, size.width, padded(size.channels), conv.stride[0])
        shape = _shape(last, shapes, n, output=output, residual=Residual.CONVOLUTION, source=place)
        residual = {"branch": added}
    return ConvOp(last.name, read, source, quantize.name, shape, weight, bias, _rescale(quantize), limits, **residual)


def _rectified(conv: Conv2d, quantize: Quantize, shapes: Shapes, n: int, source: str) -> ConvOp:
    weight, bias = _padded(conv)
    limits = Limits.of(weight, bias, 0, 15)
    shape = _shape(conv, shapes, n)
    return ConvOp(conv.name, source, "", quantize.name, shape, weight, bias, _rescale(quantize), limits)


def _branch(conv: Conv2d, down: Quantize, up: Quantize) -> Branch:
    if conv.kernel_size != (1, 1) or conv.padding != (0, 0):
        raise EngineError(f"{conv.name}: the CUDA engine adds 1x1 convolutions without padding only")
    weight, bias = _padded(conv)
    return Branch(conv.name, weight, bias, _rescale(down), _rescale(up), Limits.of(weight, bias, 0, 15))


def _head(net: ResNet, shapes: Shapes, n: int, source: str, top: int) -> tuple[SingleOp, ...]:
    pool, fc = net.avgpool, net.fc
    if top:
        check_k(top, net.classes)
    last = shapes[pool.name].input
    mean = PoolOp(pool.name, source, pool.name, n, last.height, last.width, padded(last.channels), pool.kernel_size)
    weight = np.zeros((len(fc.weight), mean.features), np.int8)
    weight[:, : fc.in_features] = fc.weight
    return (
        mean,
        LinearOp(fc.name, pool.name, CLASSES, n, mean.features, weight, fc.bias),
        TopOp(net.scale.name, CLASSES, TOP1, n, net.scale.out_scale, top),
    )


def _shape(conv: Conv2d, shapes: Shapes, n: int, **residual: Any) -> Convolution:
    _check(conv)
    for what, (rows, columns) in (("kernel", conv.kernel_size), ("stride", conv.stride), ("padding", conv.padding)):
        if rows != columns:
            raise EngineError(f"{conv.name}: {what} {rows}x{columns}, and the CUDA engine takes squares only")
    size = shapes[conv.name].input
    return Convolution(
        n, size.height, size.width, padded(conv.in_channels), padded(conv.out_channels), conv.kernel_size[0],
        conv.stride[0], conv.padding[0], **residual,
    )  # fmt: skip


def _check(conv: Conv2d) -> None:
    if conv.groups != 1 or conv.dilation != (1, 1):
        raise EngineError(
            f"{conv.name}: groups={conv.groups}, dilation={conv.dilation}, and the CUDA engine takes 1 and (1, 1)"
        )


def _padded(conv: Conv2d) -> tuple[Int8Array, Int16Array]:
    return pad(pad(conv.weight, 0), 1), pad(conv.bias, 0)


def _rescale(layer: Quantize) -> Rescale:
    return Rescale(pad(layer.requant_factor, 0), layer.shift_bits)


def _largest(rescale: Rescale, value: int) -> int:
    half = (1 << rescale.shift) >> 1
    return (int(rescale.wide.max(initial=0)) * value + half) >> rescale.shift


def pad(array: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """`array` with zeros at the end of `axis`, up to a multiple of ops.CHANNEL_STEP."""
    missing = padded(array.shape[axis]) - array.shape[axis]
    if not missing:
        return array
    return np.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)])
