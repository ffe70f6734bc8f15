"""A network that breaks a rule is refused, in a folder and in memory, and the message says which layer and why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from int4core.dtypes import IntType
from int4core.errors import ModelError
from int4core.format import write
from int4core.layers import Layer, ResNet, Sequential, walk
from int4core.model import Model
from int4core.random_model import random_model
from int4core.validate import check_network
from tests.int4core.model_folders import refused, small


def altered(layer: Any, name: str, /, **changes: Any) -> Any:
    """The same network with the layer called `name` changed."""
    if isinstance(layer, tuple):
        return tuple(altered(child, name, **changes) for child in layer)
    if not isinstance(layer, Layer | ResNet):
        return layer
    if getattr(layer, "name", "model") == name:
        return dataclasses.replace(layer, **changes)
    fields = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer)}
    return type(layer)(**{key: altered(value, name, **changes) for key, value in fields.items()})


def wide_head(features: int) -> ResNet:
    """A valid network but for fc, which takes `features` inputs with weights of -128 only."""
    net = random_model(width=1, classes=1).network
    block = net.blocks[-1]
    for conv in (block.conv3, layer_of(net, f"{block.name}_downsample_0")):
        weight = np.zeros((features, *conv.weight.shape[1:]), np.int8)
        bias = np.zeros(features, np.int16)
        net = altered(net, conv.name, out_channels=features, weight=weight, bias=bias)
    for name in ("quantize3", "downsample_1", "downsample_2"):
        factor = np.ones(features, np.uint16)
        net = altered(net, f"{block.name}_{name}", requant_factor=factor, max_requant=1)
    weight = np.full((1, features), -128, np.int8)
    return altered(net, "fc", in_features=features, weight=weight, bias=np.zeros(1, np.int32))


def layer_of(network: ResNet, name: str) -> Any:
    return network if name == "model" else next(layer for layer in walk(network) if layer.name == name)


NETWORK = small().network
SCALE = NETWORK.scale.out_scale
FACTOR = NETWORK.quantize1.requant_factor


def spoiled(array: np.ndarray[Any, Any], value: float) -> np.ndarray[Any, Any]:
    copy = array.copy()
    copy.flat[1] = value
    return copy


# (layer, its changes, the key to blame, part of the message)
BROKEN: list[tuple[str, dict[str, Any], str, str]] = [
    ("model", {"compute_mode": "s8s32"}, "compute_mode", "'s8s32' makes no sense here, s8f32 does"),
    ("conv1", {"compute_mode": "u4s4s32"}, "compute_mode", "makes no sense here, s8s8s32 does"),
    ("conv1", {"in_channels": 4}, "in_channels", "an RGB image has 3 channels"),
    ("conv1", {"kernel_size": (0, 7)}, "kernel_size", "kernel_size=0 is out of range"),
    ("conv1", {"kernel_size": (7, 9)}, "weight", "weight is 4 3 7 7, but"),
    ("conv1", {"stride": (0, 2)}, "stride", "stride=0 is out of range: 1..7"),
    ("conv1", {"stride": (8, 2)}, "stride", "stride=8 is out of range: 1..7"),
    ("conv1", {"padding": (3, 7)}, "padding", "padding=7 must be smaller than the kernel"),
    ("conv1", {"dilation": (2, 2)}, "dilation", "the engine computes no other"),
    ("conv1", {"groups": 3}, "groups", "the engine computes no other"),
    ("conv1", {"out_channels": 8}, "weight", "make it 8 3 7 7"),
    ("conv1", {"bias": np.zeros(3, np.int16)}, "bias", "bias is 3, but out_channels make it 4"),
    ("layer1_0_conv1", {"weight_dtype": "s8"}, "weight", "takes s4"),
    ("quantize1", {"compute_mode": "u31u16u7"}, "compute_mode", "u31u16u4 does"),
    ("quantize1", {"output_bits": 8}, "output_bits", "output_bits=8 must be 4"),
    ("quantize1", {"shift_bits": 48}, "shift_bits", "0..47"),
    ("quantize1", {"max_requant": 1}, "max_requant", f"must be {FACTOR.max()}: the largest requant_factor"),
    ("quantize1", {"requant_factor": FACTOR[:3]}, "requant_factor", "the channels of conv1 make it 4"),
    ("quantize1", {"requant_factor": spoiled(FACTOR, 60000)}, "max_requant", "must be 60000"),
    ("relu", {"compute_mode": "s32s32"}, "compute_mode", "s32u31 does"),
    ("maxpool", {"compute_mode": "u7u7"}, "compute_mode", "u4u4 does"),
    ("maxpool", {"kernel_size": 256}, "kernel_size", "1..255"),
    ("maxpool", {"stride": 0}, "stride", "stride=0"),
    ("maxpool", {"padding": 2}, "padding", "at most half"),
    ("maxpool", {"dilation": 2}, "dilation", "no other"),
    ("maxpool", {"return_indices": True}, "return_indices", "values only"),
    ("layer1_0", {"downsample_layer": False}, "downsample_layer", "every block has a residual branch"),
    ("layer1_0", {"stride": 0}, "stride", "must be 1, 2 or 3"),
    ("layer1_0", {"stride": 2}, "stride", "stride=(1, 1) must be (2, 2): layer1_0 has stride=2"),
    ("layer1_0_conv1", {"in_channels": 5}, "in_channels", "in_channels=5, but maxpool has 4 channels"),
    ("layer1_0_conv1", {"stride": (2, 2)}, "stride", "for conv2 and the residual branch only"),
    ("layer1_0_conv2", {"kernel_size": (1, 1)}, "weight", "is 4 4 3 3"),
    ("layer1_0_conv2", {"stride": (2, 2)}, "stride", "must be (1, 1)"),
    ("layer1_0_conv2", {"padding": (0, 0)}, "padding", "only the stride shrinks a map"),
    ("layer1_0_conv3", {"in_channels": 3}, "in_channels", "layer1_0_conv2 has 4 channels"),
    ("layer1_0_quantize3", {"compute_mode": "u31u16u7", "output_bits": 7}, "compute_mode", "u31u16u4 does"),
    ("layer1_0_relu", {"compute_mode": "u31u31"}, "compute_mode", "s32u31 does"),
    ("layer1_0_downsample_0", {"stride": (2, 2)}, "stride", "must be (1, 1)"),
    ("layer1_0_downsample_1", {"compute_mode": "u31u16u4"}, "compute_mode", "s32u16s8 does"),
    ("layer1_0_downsample_1", {"output_bits": 8}, "output_bits", "must be 7"),
    ("layer1_0_downsample_2", {"output_bits": 32}, "output_bits", "must be 31"),
    ("layer1_1_downsample", {"compute_mode": "s8u16s32"}, "compute_mode", "u4u16u31 does"),
    ("layer1_1_conv1", {"in_channels": 4}, "in_channels", "layer1_0 has 16 channels"),
    ("layer2_0_conv2", {"stride": (1, 1)}, "stride", "must be (2, 2): layer2_0 has stride=2"),
    ("layer2_0_downsample_0", {"stride": (1, 1)}, "stride", "must be (2, 2)"),
    ("layer4_0_quantize3", {"compute_mode": "u31u16u4", "output_bits": 4}, "compute_mode", "u31u16u7 does"),
    ("avgpool", {"compute_mode": "u4u4"}, "compute_mode", "u7u7 does"),
    ("avgpool", {"padding": 1}, "padding", "padding=1 must be 0"),
    ("avgpool", {"ceil_mode": True}, "ceil_mode", "must be False"),
    ("avgpool", {"kernel_size": 0}, "kernel_size", "out of range"),
    ("fc", {"compute_mode": "u7s4s32"}, "compute_mode", "u7s8s32 does"),
    ("fc", {"in_features": 64}, "in_features", "in_features=64, but layer4_0 has 128 channels"),
    ("fc", {"out_features": 4}, "weight", "make it 4 128"),
    ("fc", {"bias": np.full(5, 2**31 - 1, np.int32)}, "weight", "must fit 32 bits"),
    ("scale", {"compute_mode": "s32f32"}, "compute_mode", "s32f32f32 does"),
    ("scale", {"out_scale": SCALE[:4]}, "out_scale", "out_features of fc make it 5"),
    ("scale", {"out_scale": spoiled(SCALE, 0.0)}, "out_scale", "out_scale of class 1 is 0.0"),
    ("scale", {"out_scale": spoiled(SCALE, np.nan)}, "out_scale", "class 1 is nan"),
    ("scale", {"out_scale": spoiled(SCALE, np.inf)}, "out_scale", "class 1 is inf"),
    ("scale", {"out_scale": spoiled(SCALE, -1.0)}, "out_scale", "class 1 is -1.0"),
    ("scale", {"out_scale": spoiled(SCALE, 1e-40)}, "out_scale", "a finite divisor above"),
]


class TestRules:
    @pytest.mark.parametrize(("name", "changes", "key", "why"), BROKEN)
    def test_a_broken_rule_names_layer_file_and_line(
        self,
        name: str,
        changes: dict[str, Any],
        key: str,
        why: str,
        tmp_path: Path,
        whole: Path,
    ) -> None:
        network = altered(NETWORK, name, **changes)
        with pytest.raises(ModelError) as caught:
            Model(network).save(tmp_path / "model")
        assert why in caught.value.why
        blamed, line = caught.value.file, caught.value.line
        assert line == 0
        assert blamed in (name, f"{name}_conv2")  # a block's stride is judged where conv2 differs from it
        assert not list(tmp_path.iterdir())

        write._write_layer(whole, layer_of(network, name))
        try:
            text = (whole / blamed).read_text().split("\n")
            line = next(i for i, found in enumerate(text, start=1) if found.startswith(f"{key}="))
            refused(whole, blamed, line, why)
        finally:
            write._write_layer(whole, layer_of(NETWORK, name))

    def test_a_lone_quantize_keeps_channels_and_size(self) -> None:
        lone = layer_of(NETWORK, "layer1_1_downsample")
        lone = dataclasses.replace(lone, name="layer1_0_downsample", requant_factor=lone.requant_factor[:4])
        lone = dataclasses.replace(lone, max_requant=int(lone.requant_factor.max()))
        with pytest.raises(ModelError, match="keeps the 4 channels of maxpool, but layer1_0_conv3 gives 16"):
            check_network(altered(NETWORK, "layer1_0", downsample=lone))
        second = layer_of(NETWORK, "layer1_1")
        strided = dataclasses.replace(second, stride=2, conv2=dataclasses.replace(second.conv2, stride=(2, 2)))
        with pytest.raises(ModelError, match="keeps the map's size, but the block has stride=2"):
            check_network(altered(NETWORK, "layer1_1", **vars(strided)))

    def test_the_residual_has_the_channels_of_conv3(self) -> None:
        conv = layer_of(NETWORK, "layer1_0_downsample_0")
        less = {"out_channels": 8, "weight": conv.weight[:8], "bias": conv.bias[:8]}
        with pytest.raises(ModelError, match="out_channels=8, but layer1_0_conv3, which"):
            check_network(altered(NETWORK, "layer1_0_downsample_0", **less))

    def test_weights_in_memory_must_fit_s4(self) -> None:
        weight = spoiled(layer_of(NETWORK, "layer1_0_conv1").weight, 8)
        with pytest.raises(ModelError, match=r"s4 holds -8\.\.7"):
            check_network(altered(NETWORK, "layer1_0_conv1", weight=weight))

    def test_tensors_in_memory_must_have_their_types(self) -> None:
        with pytest.raises(ModelError, match="bias is int64 in memory, but must be int16"):
            check_network(altered(NETWORK, "conv1", bias=np.zeros(4, np.int64)))

    def test_layers_in_memory_must_be_called_by_their_place(self) -> None:
        with pytest.raises(ModelError, match="called 'conv7'") as caught:
            check_network(altered(NETWORK, "conv1", name="conv7"))
        assert caught.value.file == "conv1"
        with pytest.raises(ModelError, match="ReLU cannot be here, only Conv2d"):
            check_network(dataclasses.replace(NETWORK, conv1=NETWORK.relu))
        with pytest.raises(ModelError, match="at least one block"):
            check_network(dataclasses.replace(NETWORK, layer2=Sequential("layer2", ())))

    def test_sums_that_leave_32_bits_are_refused(self) -> None:
        fits = (2**31 - 1) // (127 * 128)
        check_network(wide_head(fits))
        with pytest.raises(ModelError, match="sum of output 0 could reach") as caught:
            check_network(wide_head(fits + 1))
        assert caught.value.file == "fc"
        assert str((fits + 1) * 127 * 128) in caught.value.why

    def test_the_largest_sum_of_32_bits_is_the_last_that_passes(self) -> None:
        head = wide_head(2)
        most = 2**31 - 1 - 2 * 127 * 128
        for bias in (most, -most):
            check_network(altered(head, "fc", bias=np.array([bias], np.int32)))
        for bias in (most + 1, -most - 1):
            with pytest.raises(ModelError, match=rf"output 0 could reach {2**31}, and must fit 32 bits") as caught:
                check_network(altered(head, "fc", bias=np.array([bias], np.int32)))
            assert caught.value.file == "fc"

    @pytest.mark.parametrize("over", [0, 1])
    def test_the_largest_sum_with_the_residual_is_the_last_that_passes(
        self, over: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No small network comes near 32 bits: the checker's limit is what this one's sums reach, or one less."""
        block = layer_of(NETWORK, "layer1_1")
        weight, bias = (x.astype(np.int64) for x in (block.conv3.weight, block.conv3.bias))
        most = int((15 * np.abs(weight).sum((1, 2, 3)) + np.abs(bias)).max()) + 15 * 65535
        factor = np.full_like(block.downsample.requant_factor, 65535)
        net = altered(NETWORK, "layer1_1_downsample", shift_bits=0, max_requant=65535, requant_factor=factor)
        monkeypatch.setattr("int4core.validate.S32", SimpleNamespace(lo=-(2**31), hi=most - over))
        if not over:
            check_network(net)
            return
        with pytest.raises(ModelError, match=f"with the residual its sums could reach {most}") as caught:
            check_network(net)
        assert caught.value.file == "layer1_1_conv3"

    def test_the_residual_counts_towards_the_32_bits(self) -> None:
        second = layer_of(NETWORK, "layer1_1")
        check_network(NETWORK)
        huge = dataclasses.replace(
            second.downsample,
            shift_bits=0,
            max_requant=65535,
            requant_factor=np.full_like(second.downsample.requant_factor, 65535),
        )
        # 15 * 65,535 fits by itself and with conv3; the rule is shown by a checker with a smaller limit.
        check_network(altered(NETWORK, "layer1_1_downsample", **vars(huge)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("int4core.validate.S32", IntType(True, 20))
            with pytest.raises(ModelError, match="with the residual its sums could reach") as caught:
                check_network(altered(NETWORK, "layer1_1_downsample", **vars(huge)))
        assert caught.value.file == "layer1_1_conv3"
