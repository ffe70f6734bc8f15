"""Blocks of two 3x3 convolutions (ResNet-18, 34): this project's extension of the format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from int4core.engine import Engine
from int4core.errors import ModelError
from int4core.layers import BasicBlock, Bottleneck, Sequential
from int4core.model import Model
from int4core.network import default_input_size, trace_shapes
from int4core.random_model import random_model
from tests.int4core.networks import random_input, reference_trace


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(blocks=(2, 1, 2, 1), width=4, classes=5, pool=2, basic=True)


def test_every_layer_of_the_numpy_backend_is_the_references(model: Model) -> None:
    x = random_input(model.network, 3)
    with Engine(model) as engine:
        found, sums = engine.trace(x), engine.accumulators(x)
    wanted = reference_trace(model.network, x)
    assert len(wanted) == len(found) == 41
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name].reshape(values.shape), values, err_msg=name)
    np.testing.assert_array_equal(sums, wanted["fc"])


def test_they_are_saved_and_loaded(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    back = Model.load(tmp_path / "m")
    assert back.digest == model.digest
    assert [type(block) for block in back.network.blocks] == [BasicBlock] * 6
    assert (tmp_path / "m" / "layer2_0").read_bytes() == (
        b"BasicBlockQuantized\r\nstride=2\r\ndownsample_layer=True\r\n"
    )
    assert not (tmp_path / "m" / "layer2_0_conv3").exists()
    (tmp_path / "m" / "layer2_0_quantize2").unlink()
    with pytest.raises(ModelError, match="layer2_0_quantize2"):
        Model.load(tmp_path / "m")


def test_a_resnet_34_has_its_shapes() -> None:
    """Multiply-adds of 224 x 224 images: 3.66 G in a ResNet-34, as the paper's table says 3.6 G."""
    net = random_model(blocks=(3, 4, 6, 3), width=64, classes=1000, basic=True).network
    assert default_input_size(net) == (224, 224)
    work = sum(shape.multiply_adds for shape in trace_shapes(net))
    assert work == 3_663_761_408


def test_both_kinds_may_be_in_one_network(model: Model, tmp_path: Path) -> None:
    other = random_model(blocks=(1, 1, 1, 1), width=1, classes=5, pool=2, stem_channels=4).network
    mixed = replace(model.network, layer1=other.layer1)
    Model(mixed).save(tmp_path / "m")
    assert isinstance(Model.load(tmp_path / "m").network.blocks[0], Bottleneck)
    x = random_input(mixed, 2)
    with Engine(Model(mixed)) as engine:
        np.testing.assert_array_equal(engine.accumulators(x), reference_trace(mixed, x)["fc"])


@pytest.mark.parametrize(
    ("conv", "change", "said"),
    [
        ("conv1", {"stride": (1, 1)}, "layer2_0 has stride=2, for conv1 and the residual branch only"),
        ("conv2", {"stride": (2, 2)}, "for conv1 and the residual branch only"),
        ("conv2", {"padding": (0, 0)}, "only the stride shrinks a map"),
        ("conv2", {"in_channels": 9}, "layer2_0_conv1 has 8 channels"),
    ],
)
def test_their_rules(model: Model, conv: str, change: dict[str, object], said: str, tmp_path: Path) -> None:
    block = model.network.layer2.children[0]
    wrong = replace(block, **{conv: replace(getattr(block, conv), **change)})
    with pytest.raises(ModelError, match=said):
        Model(replace(model.network, layer2=Sequential("layer2", (wrong,)))).save(tmp_path / "m")


def test_kernels_of_other_sizes_are_no_basic_block(model: Model, tmp_path: Path) -> None:
    block = model.network.layer1.children[1]
    assert isinstance(block, BasicBlock)
    pointwise = replace(
        block.conv1, kernel_size=(1, 1), padding=(0, 0), weight=np.ascontiguousarray(block.conv1.weight[:, :, :1, :1])
    )
    wrong = Sequential("layer1", (model.network.layer1.children[0], replace(block, conv1=pointwise)))
    with pytest.raises(ModelError, match="layer1_1 is a basic block"):
        Model(replace(model.network, layer1=wrong)).save(tmp_path / "m")
