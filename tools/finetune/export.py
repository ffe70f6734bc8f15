"""From the fake-quantised network to the published format, refusing what its integers cannot hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from int4core import layers
from int4core.dtypes import S16, S32, IntType
from int4core.model import Model
from tools.finetune.errors import FinetuneError
from tools.finetune.fakequant import FACTOR_MAX, SHIFT, QuantConv, QuantLinear, residual_shift, round_ste
from tools.finetune.qresnet import INPUT_STEP, QuantBlock, QuantResNet

ACCUMULATOR_BITS = 24
"""float32, on which the reference backend runs, is exact below 2**24; so every sum has to stay there."""

Ints = npt.NDArray[np.int64]


def _ints(x: torch.Tensor) -> Ints:
    array: Ints = x.detach().cpu().numpy().astype(np.int64)
    return array


def _bias(name: str, bias: torch.Tensor, unit: torch.Tensor, dtype: IntType) -> Ints:
    values = _ints(round_ste(bias / unit))
    worst = int(np.abs(values).argmax())
    if not (dtype.lo <= values.min() and values.max() <= dtype.hi):
        raise FinetuneError(
            f"{name}: the bias of channel {worst} is {values[worst]} accumulator units, out of {dtype.name} "
            f"({dtype.lo} to {dtype.hi}): calibrate again, or train with a lower --lr"
        )
    return values


def _bound(name: str, weight: Ints, bias: Ints, low: int, high: int) -> int:
    """The largest |sum| that inputs low..high can give; refused when float32 could not hold it exactly."""
    flat = weight.reshape(len(weight), -1)
    positive, negative = np.maximum(flat, 0).sum(1), np.minimum(flat, 0).sum(1)
    most = positive * high + negative * low + np.maximum(bias, 0)
    least = negative * high + positive * low + np.minimum(bias, 0)
    bound = np.maximum(np.abs(most), np.abs(least))
    worst = int(bound.argmax())
    if bound[worst] >= 1 << ACCUMULATOR_BITS:
        raise FinetuneError(
            f"{name}: the sum of channel {worst} can reach {bound[worst]}, out of {ACCUMULATOR_BITS} bits: "
            "train with a higher weight decay, or start from a parent with fewer inputs a layer"
        )
    return int(bound[worst])


def _conv(name: str, conv: QuantConv, in_step: torch.Tensor, mode: str, low: int, high: int) -> layers.Conv2d:
    weight = _ints(conv.int_weight())
    bias = _bias(name, conv.bias, conv.unit(in_step), S16)
    _bound(name, weight, bias, low, high)
    k, c, r, s = weight.shape
    return layers.Conv2d(
        name=name,
        compute_mode=mode,
        in_channels=c,
        out_channels=k,
        kernel_size=(r, s),
        stride=(int(conv.stride[0]), int(conv.stride[1])),
        padding=(int(conv.padding[0]), int(conv.padding[1])),
        dilation=(1, 1),
        groups=1,
        bias=bias.astype(np.int16),
        weight=weight.astype(np.int8),
        weight_dtype=f"s{conv.bits}",
    )


def _quantize(name: str, ratio: torch.Tensor, shift: int, mode: str, bits: int) -> layers.Quantize:
    factor = _ints(round_ste(ratio * 2.0**shift))
    worst = int(factor.argmax())
    if factor[worst] > FACTOR_MAX:
        raise FinetuneError(
            f"{name}: the factor of channel {worst} is {factor[worst]} at shift {shift}, out of u16 "
            f"(0 to {FACTOR_MAX}): calibrate again, or train with a lower --lr"
        )
    return layers.Quantize(
        name=name,
        compute_mode=mode,
        output_bits=bits,
        shift_bits=shift,
        max_requant=int(factor[worst]),
        requant_factor=factor.astype(np.uint16),
    )


def _relu(name: str) -> layers.ReLU:
    return layers.ReLU(name=name, compute_mode="s32u31", inplace=True)


def _block(block: QuantBlock, step: torch.Tensor) -> layers.Block:
    name = block.name
    *inner, last = block.convs()
    *ranges, out = block.quantizes()
    parts: dict[str, Any] = {}
    entered = step
    for i, (conv, tensor_range) in enumerate(zip(inner, ranges, strict=True), start=1):
        parts[f"conv{i}"] = _conv(f"{name}_conv{i}", conv, entered, "u4s4s32", 0, 15)
        ratio = conv.unit(entered) / tensor_range.step
        parts[f"quantize{i}"] = _quantize(f"{name}_quantize{i}", ratio, SHIFT, "u31u16u4", 4)
        entered = tensor_range.step
    unit, end = last.unit(entered), block.count

    def residual(ratio: torch.Tensor, kind: str, mode: str) -> layers.Quantize:
        return _quantize(f"{name}_{kind}", ratio, int(residual_shift(ratio)), mode, 31)

    downsample: layers.Sequential | layers.Quantize
    if block.downsample is None:
        downsample = residual(step / unit, "downsample", "u4u16u31")
    else:
        branch = f"{name}_downsample"
        branch_step = block.downsample_1.step
        ratio = block.downsample.unit(step) / branch_step
        downsample = layers.Sequential(
            branch,
            (
                _conv(f"{branch}_0", block.downsample, step, "u4s4s32", 0, 15),
                _quantize(f"{branch}_1", ratio, SHIFT, "s32u16s8", 7),
                residual(branch_step / unit, "downsample_2", "s8u16s32"),
            ),
        )
    parts[f"conv{end}"] = _conv(f"{name}_conv{end}", last, entered, "u4s4s32", 0, 15)
    mode, bits = ("u31u16u7", 7) if out.hi == 127 else ("u31u16u4", 4)
    parts[f"quantize{end}"] = _quantize(f"{name}_quantize{end}", unit / out.step, SHIFT, mode, bits)
    kind, strided = (layers.BasicBlock, 0) if end == 2 else (layers.Bottleneck, 1)
    return kind(
        name=name,
        stride=int(inner[strided].stride[0]),
        downsample_layer=True,
        relu=_relu(f"{name}_relu"),
        downsample=downsample,
        **parts,
    )


def _linear(fc: QuantLinear, step: torch.Tensor) -> tuple[layers.Linear, layers.Scale]:
    weight = _ints(fc.int_weight())
    unit = step * fc.step
    bias = _bias("fc", fc.bias, unit, S32)
    _bound("fc", weight, bias, 0, 127)
    linear = layers.Linear(
        name="fc",
        compute_mode="u7s8s32",
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        bias=bias.astype(np.int32),
        weight=weight.astype(np.int8),
    )
    # Scale divides: logits = accumulator / out_scale.
    scale = (1.0 / unit).detach().cpu().numpy().astype(np.float32)
    return linear, layers.Scale(name="scale", compute_mode="s32f32f32", out_scale=scale)


def to_model(model: QuantResNet, image_size: int = 224) -> Model:
    """The INT4 model of a fake-quantised network.

    image_size: the height and width it is for: the average pool covers what is left after the strides.

    Raises FinetuneError, with the layer's name, for a bias out of s16, a factor out of u16, or a sum that
    could leave 24 bits.
    """
    step = torch.full((), INPUT_STEP, device=model.fc.step.device)
    out = model.quantize1.step
    conv1 = _conv("conv1", model.conv1, step, "s8s8s32", -128, 127)
    quantize1 = _quantize("quantize1", model.conv1.unit(step) / out, SHIFT, "u31u16u4", 4)
    stages: list[list[layers.Layer]] = [[] for _ in range(4)]
    for block in model.blocks:
        stages[int(block.name[len("layer")]) - 1].append(_block(block, out))
        out = block.quantizes()[-1].step
    linear, scale = _linear(model.fc, out)
    window = -(-image_size // 32)
    pool = layers.AvgPool2d(
        name="avgpool",
        compute_mode="u7u7",
        kernel_size=window,
        stride=1,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
    )
    maxpool = layers.MaxPool2d(
        name="maxpool",
        compute_mode="u4u4",
        kernel_size=3,
        stride=2,
        padding=1,
        dilation=1,
        return_indices=False,
        ceil_mode=False,
    )
    layer1, layer2, layer3, layer4 = (
        layers.Sequential(f"layer{i + 1}", tuple(stage)) for i, stage in enumerate(stages)
    )
    network = layers.ResNet(
        compute_mode="s8f32",
        conv1=conv1,
        quantize1=quantize1,
        relu=_relu("relu"),
        maxpool=maxpool,
        layer1=layer1,
        layer2=layer2,
        layer3=layer3,
        layer4=layer4,
        avgpool=pool,
        fc=linear,
        scale=scale,
    )
    return Model(network=network, path=None)
