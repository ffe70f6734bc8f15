"""The model directory: what is read equals what is written, and every fault names its file and line."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int4core.dtypes import IntType
from int4core.errors import ModelError
from int4core.format import write
from int4core.format.npdata import pack, unpack
from int4core.format.schema import Declared
from int4core.layers import Layer, ResNet, Sequential, walk
from int4core.model import Model
from int4core.random_model import random_model
from int4core.validate import check_network
from tests.paths import SHARED, needs_shared

PUBLISHED = SHARED / "model-v0.5" / "model"


def small() -> Model:
    """Every kind of layer and both kinds of residual branch."""
    return random_model(blocks=(2, 1, 1, 1), width=4, classes=5, pool=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for many tests, each of which leaves it as it was."""
    path = tmp_path_factory.mktemp("whole") / "model"
    small().save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small().save(tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, old: str, new: str) -> int:
    """Replace the one `old` in `file`; return the line it stands on."""
    text = file.read_bytes().decode()
    assert text.count(old) == 1, f"{old!r} is in {file.name} {text.count(old)} times"
    file.write_bytes(text.replace(old, new).encode())
    return text[: text.index(old)].count("\n") + 1


def refused(folder: Path, file: str, line: int, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        Model.load(folder)
    assert why in caught.value.why
    assert (caught.value.file, caught.value.line) == (str(folder / file), line)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


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


class TestRoundTrip:
    @needs_shared
    def test_published_model_comes_back_byte_for_byte(self, tmp_path: Path) -> None:
        Model.load(PUBLISHED).save(tmp_path / "model")
        assert len(contents(PUBLISHED)) == 346
        assert contents(tmp_path / "model") == contents(PUBLISHED)

    @needs_shared
    def test_published_model_is_resnet50(self) -> None:
        network = Model.load(PUBLISHED).network
        stages = (network.layer1, network.layer2, network.layer3, network.layer4)
        assert [len(stage.children) for stage in stages] == [3, 4, 6, 3]
        assert network.classes == 1000
        assert network.fc.in_features == 2048

    @pytest.mark.parametrize(
        "shape",
        [
            {"blocks": (1, 1, 1, 1), "width": 3, "classes": 1, "stem_channels": 5},
            {"blocks": (3, 4, 23, 3), "width": 2, "classes": 7},
            {"blocks": (2, 1, 3, 1), "width": 8, "classes": 16, "pool": 2},
        ],
    )
    def test_random_models_come_back(self, tmp_path: Path, shape: dict[str, Any]) -> None:
        model = random_model(**shape)
        model.save(tmp_path / "a")
        loaded = Model.load(tmp_path / "a")
        loaded.save(tmp_path / "b")
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        assert loaded.path == tmp_path / "a"
        for ours, theirs in zip(walk(model.network), walk(loaded.network), strict=True):
            for field in dataclasses.fields(ours):
                a, b = getattr(ours, field.name), getattr(theirs, field.name)
                if isinstance(a, np.ndarray):
                    assert a.dtype == b.dtype
                    assert np.array_equal(a, b)
                    assert not b.flags.writeable
                elif field.name == "name":
                    assert a == b

    def test_renamed_and_linked_folders_load(self, folder: Path) -> None:
        other = folder.rename(folder.with_name("resnet-v2"))
        assert Model.load(other).network.classes == 5
        link = folder.with_name("latest")
        link.symlink_to(other)
        assert Model.load(str(link)).network.classes == 5

    def test_the_folder_s_own_name_may_begin_a_data_path(self, folder: Path) -> None:
        other = folder.rename(folder.with_name("mine"))
        edit(other / "conv1", "!model/npdata/conv1.bias", "!mine/npdata/conv1.bias")
        assert Model.load(other).network.classes == 5

    def test_bare_line_feeds_and_any_key_order_are_read(self, folder: Path) -> None:
        text = (folder / "maxpool").read_bytes().decode().split("\r\n")
        (folder / "maxpool").write_text("\n".join([text[0], *reversed(text[1:-1]), ""]), newline="")
        assert Model.load(folder).network.maxpool.kernel_size == 3

    def test_links_inside_the_folder_are_followed(self, folder: Path) -> None:
        (folder / "npdata" / "conv1.bias").rename(folder / "blob")
        (folder / "npdata" / "conv1.bias").symlink_to("../blob")
        assert Model.load(folder).network.classes == 5


class TestS4:
    @given(st.lists(st.integers(-8, 7), min_size=1, max_size=9))
    def test_unpack_inverts_pack(self, values: list[int]) -> None:
        raw = np.frombuffer(pack(np.array(values, np.int8), "s4"), np.uint8)
        declared = Declared("s4", (len(values),))
        assert raw.size == declared.nbytes == (len(values) + 1) // 2
        assert unpack(raw, declared).tolist() == values

    def test_the_first_value_is_the_low_nibble(self) -> None:
        assert pack(np.array([1, -2], np.int8), "s4") == b"\xe1"

    def test_a_used_padding_nibble_is_an_error(self, tmp_path: Path) -> None:
        random_model(width=1, classes=1, stem_channels=1).save(tmp_path / "model")
        data = tmp_path / "model" / "npdata" / "layer1_0_conv2.weight"
        raw = data.read_bytes()
        assert len(raw) == 5
        data.write_bytes(raw[:-1] + bytes([raw[-1] | 0x30]))
        refused(tmp_path / "model", "layer1_0_conv2", 13, "unused high nibble of its last byte at 3")


class TestGrammar:
    @pytest.mark.parametrize(
        ("file", "old", "new", "why"),
        [
            ("conv1", "Conv2d", "Conv3d", "unknown layer type 'Conv3d'"),
            ("conv1", "groups", "group", "unknown key 'group'"),
            ("conv1", "groups=1", "in_channels=3", "in_channels is given twice; line 3"),
            ("conv1", "groups=1", "groups", "neither key=value nor !path"),
            ("conv1", "groups=1\r\n", "groups=1\r\n\r\n", ""),
            ("conv1", "in_channels=3", "in_channels= 3", "in_channels=' 3' is wrong"),
            ("conv1", "in_channels=3", "in_channels=+3", "not a whole number"),
            ("conv1", "in_channels=3", "in_channels=-3", "not a whole number"),
            ("conv1", "in_channels=3", "in_channels=03", "leading zeros"),
            ("conv1", "in_channels=3", "in_channels=0x3", "not a whole number"),
            ("conv1", "in_channels=3", "in_channels=3.0", "not a whole number"),
            ("conv1", "in_channels=3", "in_channels=", "such as 64"),
            ("conv1", "in_channels=3", "in_channels=2147483648", "below 2^31"),
            ("conv1", "in_channels=3", "in_channels=" + "9" * 5000, "not a whole number"),
            ("conv1", "in_channels=3", "in_channels=\u0663", "not ASCII"),
            ("conv1", "in_channels=3", "in_channels=3\r", "control characters"),
            ("conv1", "2:7 7", "3:7 7 7", "not two numbers"),
            ("conv1", "2:7 7", "2:7", "such as 2:1 1"),
            ("conv1", "s8s8s32", "s8 s8 s32", "not a run of type names"),
            ("conv1", "s16,1:4", "s16,1:4 ", "not a tensor declaration"),
            ("conv1", "s16,1:4", "s16,2:4", "it must have 1 dimensions"),
            ("conv1", "s16,1:4", "s16,1:4 4", "it must have 1 dimensions"),
            ("conv1", "s16,1:4", "s16,1:0", "no dimension may be 0"),
            ("conv1", "s16,1:4", "u16,1:4", "its type must be s16"),
            ("conv1", "s8,4:", "s5,4:", "its type must be s4 or s8"),
            ("conv1", "!model/npdata/conv1.weight", "weights", "expected"),
            ("relu", "inplace=True", "inplace=true", "neither True nor False"),
            ("relu", "inplace=True", "!model/npdata/conv1.bias", "right after the tensor"),
            ("quantize1", "1 4 1 1", "4 1 1 1", "must have the shape 1 C 1 1"),
            ("layer1", "children_count=2", "children_count=0", "out of range: 1..1000"),
            ("layer1", "children_count=2", "children_count=2000000000", "out of range: 1..1000"),
            ("layer1_0_downsample", "children_count=3", "children_count=2", "children_count must be 3"),
        ],
    )
    def test_a_line_at_fault_is_named(self, whole: Path, file: str, old: str, new: str, why: str) -> None:
        before = (whole / file).read_bytes()
        line = edit(whole / file, old, new)
        if new.endswith("\n\r\n"):
            line, why = line + 1, "the line is empty"
        if new == "weights":
            line, why = line - 1, "the next line must be the path"
        try:
            refused(whole, file, line, why)
        finally:
            (whole / file).write_bytes(before)

    @pytest.mark.parametrize("key", ["in_channels=3", "stride=2:2 2", "groups=1"])
    def test_a_missing_key_is_named(self, folder: Path, key: str) -> None:
        edit(folder / "conv1", key + "\r\n", "")
        refused(folder, "conv1", 0, f"Conv2d lacks {key.split('=')[0]}")

    def test_a_cut_text_is_not_read_as_another_number(self, folder: Path) -> None:
        file = folder / "layer1"
        file.write_bytes(file.read_bytes()[:-2])
        refused(folder, "layer1", 2, "cut short")

    def test_an_empty_file_is_an_error(self, folder: Path) -> None:
        (folder / "relu").write_bytes(b"")
        refused(folder, "relu", 1, "the file is empty")

    def test_a_type_in_the_wrong_place_is_an_error(self, folder: Path) -> None:
        (folder / "conv1").write_bytes((folder / "fc").read_bytes())
        refused(folder, "conv1", 1, "Linear cannot be here, only Conv2d")
        (folder / "layer1_0_downsample").write_bytes((folder / "relu").read_bytes())
        small().save(folder.with_name("other"))
        (folder / "conv1").write_bytes((folder.with_name("other") / "conv1").read_bytes())
        refused(folder, "layer1_0_downsample", 1, "ReLU cannot be here, only Sequential or Quantize")

    def test_a_stage_that_names_itself_cannot_recurse(self, folder: Path) -> None:
        (folder / "layer1_0").unlink()
        (folder / "layer1_0").symlink_to("layer1")
        refused(folder, "layer1_0", 1, "Sequential cannot be here, only BottleneckQuantized")

    @pytest.mark.parametrize("file", ["model", "conv1", "layer1_1", "layer2_0_conv3", "scale"])
    def test_a_missing_layer_file_is_named(self, folder: Path, file: str) -> None:
        (folder / file).unlink()
        refused(folder, file, 0, "cannot be read: No such file")

    @pytest.mark.parametrize("size", [0, 587, 589])
    def test_data_of_the_wrong_size_are_an_error(self, folder: Path, size: int) -> None:
        (folder / "npdata" / "conv1.weight").write_bytes(bytes(size))
        refused(folder, "conv1", 13, f"has {size} bytes, and the declared tensor takes 588")


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


class TestSave:
    def test_a_model_replaces_a_model_and_leaves_other_files(self, folder: Path) -> None:
        (folder / "README.md").write_text("kept")
        (folder / "layer1_0_conv1").write_text("damaged")
        random_model(width=4, classes=9, pool=1).save(folder)
        assert Model.load(folder).network.classes == 9
        assert (folder / "README.md").read_text() == "kept"
        assert not (folder / "layer1_1").exists()
        assert [f.name for f in folder.parent.iterdir()] == ["model"]

    def test_parents_are_made_and_an_empty_folder_is_filled(self, tmp_path: Path) -> None:
        small().save(tmp_path / "a" / "b")
        (tmp_path / "empty").mkdir()
        small().save(str(tmp_path / "empty"))
        assert contents(tmp_path / "a" / "b") == contents(tmp_path / "empty")

    def test_what_is_no_model_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "notes").write_text("mine")
        with pytest.raises(ModelError, match="not a model"):
            small().save(tmp_path)
        with pytest.raises(ModelError, match="is a file"):
            small().save(tmp_path / "notes")
        with pytest.raises(ModelError, match="cannot be written"):
            small().save(tmp_path / "notes" / "model")
        assert contents(tmp_path) == {"notes": b"mine"}

    def test_a_failed_save_leaves_the_old_model(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before, done, real = contents(folder), [0], write._write_layer

        def full_disk(folder: Path, layer: Any) -> None:
            done[0] += 1
            if done[0] == 20:
                raise OSError(28, "No space left on device")
            real(folder, layer)

        monkeypatch.setattr(write, "_write_layer", full_disk)
        with pytest.raises(ModelError, match="No space left"):
            random_model(width=4, classes=9, pool=1).save(folder)
        assert contents(folder) == before
        assert [f.name for f in folder.parent.iterdir()] == ["model"]

    def test_saves_at_the_same_time_leave_one_whole_model(self, tmp_path: Path) -> None:
        models = [random_model(width=2, classes=c, pool=1) for c in (2, 3)]
        errors: list[Exception] = []

        def save(model: Model) -> None:
            try:
                for _ in range(4):
                    model.save(tmp_path / "model")
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=save, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert Model.load(tmp_path / "model").network.classes in (2, 3)
        assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_a_model_that_another_process_moves_aside_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, is_dir = tmp_path / "model", Path.is_dir
    random_model(width=2, classes=2, pool=1).save(target)

    def moved_before_it_is_looked_at(self: Path, **options: bool) -> bool:
        if self == target and not (tmp_path / "aside").exists():
            target.rename(tmp_path / "aside")
        return is_dir(self, **options)

    monkeypatch.setattr(Path, "is_dir", moved_before_it_is_looked_at)
    random_model(width=2, classes=3, pool=1).save(target)
    assert Model.load(target).network.classes == 3


def test_the_digest_is_of_the_network_and_not_of_its_folder(tmp_path: Path) -> None:
    network = random_model(blocks=(1, 1, 1, 1), width=16, classes=10, pool=2, seed=3)
    network.save(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("notes")
    (tmp_path / "a").rename(tmp_path / "b")
    assert Model.load(tmp_path / "b").digest == network.digest
    other = tmp_path / "b" / "npdata" / "conv1.bias"
    data = bytearray(other.read_bytes())
    data[0] ^= 1
    other.write_bytes(data)
    assert Model.load(tmp_path / "b").digest != network.digest
