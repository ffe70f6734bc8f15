"""The model directory: what is read equals what is written, and every fault of the text names its file and line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int4core.format.npdata import pack, unpack
from int4core.format.schema import Declared
from int4core.layers import walk
from int4core.model import Model
from int4core.random_model import random_model
from tests.int4core.model_folders import contents, edit, refused, small
from tests.paths import SHARED, needs_shared

PUBLISHED = SHARED / "model-v0.5" / "model"


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
