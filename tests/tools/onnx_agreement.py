"""A graph that others wrote, run by ONNX Runtime, beside the network that was read from it: layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view

from int4core.dtypes import INT_TYPES, split_mode
from int4core.layers import Conv2d, Quantize, ResNet, Sequential
from int4core.quantize import requantize
from tests.tools.quantised_onnx import SIDE
from tools.onnx.files import load
from tools.onnx.foreign import Findings, import_foreign


def imported(model: onnx.ModelProto, path: Path, step: float | None = None) -> tuple[ResNet, Findings]:
    path.write_bytes(model.SerializeToString())
    return import_foreign(path, load(path), step)


def graph_integers(model: onnx.ModelProto, found: Findings, x: np.ndarray, last: str) -> dict[str, np.ndarray]:
    """Name of a Quantize -> the graph's own integers there, by ONNX Runtime without its optimisations."""
    outputs = {node.name: node.output[0] for node in model.graph.node}
    names = [outputs[node] for node in found.nodes.values()]
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    values = session.run(names, {session.get_inputs()[0].name: x})
    tops = {name: 127 if name.endswith("downsample_1") or name == last else 15 for name in found.nodes}
    return {k: np.minimum(v.astype(np.int64), tops[k]) for k, v in zip(found.nodes, values, strict=True)}


def layer_by_layer(net: ResNet, x: np.ndarray, theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name of a Quantize -> its integers, when all that leads to it gets the graph's own integers."""

    def conv(layer: Conv2d, x: np.ndarray) -> np.ndarray:
        p, (down, right) = layer.padding[0], layer.stride
        windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (p, p), (p, p))), layer.kernel_size, axis=(2, 3))
        weight = layer.weight.astype(np.int64)
        sums = np.einsum("nchwrs,kcrs->nkhw", windows[:, :, ::down, ::right], weight, optimize=True)
        return sums + layer.bias[:, None, None]

    def rescaled(layer: Quantize, sums: np.ndarray) -> np.ndarray:
        out = INT_TYPES[split_mode(layer.compute_mode)[-1]]
        sums = np.maximum(sums, 0) if layer.compute_mode.startswith("u31") else sums
        return requantize(sums, layer.requant_factor[:, None, None], layer.shift_bits, out)

    found = {"quantize1": rescaled(net.quantize1, conv(net.conv1, x.astype(np.int64)))}
    padded = np.pad(theirs["quantize1"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    entered = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
    for block in net.blocks:
        main = entered
        for c, q in zip(block.convs[:-1], block.quantizes[:-1], strict=True):
            found[q.name] = rescaled(q, conv(c, main))
            main = theirs[q.name]
        branch = block.downsample
        if isinstance(branch, Sequential):
            c, down, up = branch.children
            assert isinstance(c, Conv2d)
            assert isinstance(down, Quantize)
            assert isinstance(up, Quantize)
            found[down.name] = rescaled(down, conv(c, entered))
            kept = rescaled(up, theirs[down.name])
        else:
            kept = rescaled(branch, entered)
        last = block.quantizes[-1]
        found[last.name] = rescaled(last, conv(block.convs[-1], main) + kept)
        entered = theirs[last.name]
    return found


def random_images(batch: int, step: float) -> np.ndarray:
    """int8 (batch, 3, SIDE, SIDE): normal values in steps of `step`."""
    values = np.random.default_rng(1).normal(0, 1 / step, (batch, 3, SIDE, SIDE))
    return values.round().clip(-127, 127).astype(np.int8)


def expect_agreement(model: onnx.ModelProto, net: ResNet, found: Findings, step: float, batch: int) -> None:
    """Every layer agrees with the graph's integers, computed by ONNX Runtime."""
    x = random_images(batch, step)
    last = net.blocks[-1].quantizes[-1].name
    expect_layers(net, x, graph_integers(model, found, (x * np.float32(step)).astype(np.float32), last))


def expect_layers(net: ResNet, x: np.ndarray, theirs: dict[str, np.ndarray]) -> None:
    """Every layer, given the other side's integers, gives the same or the ones beside them, and those seldom.

    The factors and biases of the format are rounded: a value near the middle of two integers may go the other way. The
    steps of 7 and 8 bits are finer, in this narrow network not far from a sum's unit, so more of those values do.
    """
    ours = layer_by_layer(net, x, theirs)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        off = np.abs(ours[name] - values)
        assert off.max() <= 1, name
        share = 0.3 if name.endswith("downsample_1") else 0.1 if name == net.blocks[-1].quantizes[-1].name else 0.05
        assert np.count_nonzero(off) <= off.size * share, name
        assert values.std() > 0.2, name
