"""Graphs that others wrote: the network agrees with them layer by layer; what does not fit is named with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from int4core.engine import Engine
from int4core.layers import BasicBlock
from int4core.model import Model
from tests.tools.onnx_agreement import expect_agreement, imported
from tests.tools.quantised_onnx import SIDE, Exported
from tools.onnx.__main__ import main
from tools.onnx.errors import OnnxFileError


@pytest.fixture(scope="module")
def qcdq() -> Exported:
    return Exported("qcdq")


def test_a_qcdq_graph_agrees_layer_by_layer(qcdq: Exported, tmp_path: Path) -> None:
    net, found = imported(qcdq.model, tmp_path / "a.onnx")
    assert len(found.nodes) == 20
    assert 0 < found.factor_error[0] < 0.01
    expect_agreement(qcdq.model, net, found, qcdq.input_step, batch=2)


def test_basic_blocks_agree_layer_by_layer(tmp_path: Path) -> None:
    graph = Exported("qcdq", basic=True)
    net, found = imported(graph.model, tmp_path / "a.onnx")
    assert {type(block) for block in net.blocks} == {BasicBlock}
    assert [block.stride for block in net.blocks] == [1, 1, 2, 2, 2]
    expect_agreement(graph.model, net, found, graph.input_step, batch=2)
    other, _ = imported(Exported("qonnx", basic=True).model, tmp_path / "b.onnx")
    assert Model(other).digest == Model(net).digest


def test_a_qonnx_graph_gives_the_same_network(qcdq: Exported, tmp_path: Path) -> None:
    ours, _ = imported(qcdq.model, tmp_path / "a.onnx")
    theirs, _ = imported(Exported("qonnx").model, tmp_path / "b.onnx")
    assert Model(ours).digest == Model(theirs).digest


def test_the_average_of_a_whole_map_takes_its_size(tmp_path: Path) -> None:
    net, _ = imported(Exported("qcdq", whole_mean=True).model, tmp_path / "a.onnx")
    assert net.avgpool.kernel_size == 2


def test_images_have_the_pipelines_step_unless_told(qcdq: Exported, tmp_path: Path) -> None:
    """A sum of conv1 in real units is the same: its factor moves with the step of the images."""
    own, _ = imported(qcdq.model, tmp_path / "a.onnx")
    net, found = imported(qcdq.model, tmp_path / "a.onnx", 0.015)
    ratio = net.quantize1.requant_factor / 2.0**net.quantize1.shift_bits
    wanted = own.quantize1.requant_factor / 2.0**own.quantize1.shift_bits * (0.015 / 0.03)
    np.testing.assert_allclose(ratio, wanted, rtol=0.05)
    assert any("steps of 0.030000, and will get steps of 0.015000" in line for line in found.lines())


def test_weights_of_the_first_layer_make_room_for_a_large_bias(tmp_path: Path) -> None:
    """Only 8-bit weights have bits to spare: the largest bias of conv1 is brought to 32,000 units."""
    graph = Exported("qcdq")
    for i, tensor in enumerate(graph.constants):
        if tensor.name == "stem.bn1":
            beta = numpy_helper.to_array(tensor).copy()
            beta[2] = 4.0
            graph.constants[i] = numpy_helper.from_array(beta, tensor.name)
    plain, _ = imported(graph.model, tmp_path / "a.onnx")
    ratio = 33_000 / abs(int(plain.conv1.bias[2]))
    assert ratio > 1
    net, found = imported(graph.model, tmp_path / "a.onnx", graph.input_step / ratio)
    assert any("conv1: weights of " in line for line in found.lines())
    assert abs(int(net.conv1.bias[2])) == 32_000
    kept = net.conv1.weight[2] / plain.conv1.weight[2].astype(np.float64).clip(1)
    assert np.median(kept[plain.conv1.weight[2] > 20]) == pytest.approx(32 / 33, abs=0.02)


def test_the_command_imports_what_the_engine_runs(
    qcdq: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.onnx").write_bytes(qcdq.model.SerializeToString())
    assert main(["import", str(tmp_path / "a.onnx"), str(tmp_path / "out"), "--input-step", "graph"]) == 0
    out = capsys.readouterr().out
    assert "5 blocks, 5 classes" in out
    assert "largest error of a factor" in out
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(qcdq.model.SerializeToString(), options)
    x = np.random.default_rng(2).normal(0, 33, (8, 3, SIDE, SIDE)).round().clip(-127, 127).astype(np.int8)
    theirs = session.run(None, {"images": (x * np.float32(0.03)).astype(np.float32)})[0]
    with Engine(Model.load(tmp_path / "out")) as engine:
        ours = engine.logits(x)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.98


def test_a_channel_that_does_not_move_becomes_constant(tmp_path: Path) -> None:
    graph = Exported("qcdq")
    for i, tensor in enumerate(graph.constants):
        if tensor.name == "b10.1.bn0":
            gamma = numpy_helper.to_array(tensor).copy()
            gamma[[0, 3]] = 0, 1e-9
            graph.constants[i] = numpy_helper.from_array(gamma, tensor.name)
    net, found = imported(graph.model, tmp_path / "a.onnx")
    conv = net.layer2.children[0].conv1  # type: ignore[union-attr]
    assert found.constant == {"layer2_0_conv1": 2}
    assert not conv.weight[[0, 3]].any()
    assert conv.weight[1].any()
    expect_agreement(graph.model, net, found, graph.input_step, batch=1)


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == f"/{name}")


def constant_of(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor).copy())), name))

    return apply


def attribute_of(name: str, key: str, value: object) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        node = node_of(model, name)
        kept = [a for a in node.attribute if a.name != key]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(key, value)])

    return apply


def operator_of(name: str, op: str) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        node_of(model, name).op_type = op

    return apply


def input_of(name: str, index: int, value: str) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        node_of(model, name).input[index] = value

    return apply


def wider_weights(model: onnx.ModelProto) -> None:
    for name in ("b00.1.weight", "b00.1.lo", "b00.1.hi"):
        constant_of(name, lambda w: w * np.int8(2))(model)


@pytest.mark.parametrize(
    ("form", "change", "said"),
    [
        ("qcdq", operator_of("b00.relu", "Sigmoid"), "'/b00.relu' ('Sigmoid'): no such node is part"),
        ("qonnx", operator_of("b00.1.w", "BipolarQuant"), "'/b00.1.w' ('BipolarQuant'): binary values"),
        ("qonnx", attribute_of("stem.act.q", "rounding_mode", "FLOOR"), "only to the nearest"),
        ("qonnx", constant_of("bits 4", lambda b: b + 1), "a range of 0..31; activations here go from 0 to 15"),
        ("qcdq", constant_of("b00.1.act.hi", lambda hi: hi - 8), "a range of 0..7; activations here go from 0 to 15"),
        ("qcdq", constant_of("b30.act.hi", lambda hi: hi + 128), "the last block's output go from 0 to 127"),
        (
            "qcdq",
            wider_weights,
            "'/b00.1.conv': weights of -10..14 (after the signs of its gains); the format holds -8..7",
        ),
        ("qcdq", constant_of("stem.act.zero", lambda z: z + 3), "its zero point is not 0"),
        ("qcdq", constant_of("stem.act.scale", lambda s: s * -1), "its scale is not above zero"),
        ("qcdq", constant_of("stem.act.scale", lambda s: np.array([s, s])), "a scale for each channel"),
        ("qcdq", attribute_of("b00.2.conv", "group", 2), "a convolution in groups"),
        ("qcdq", attribute_of("b00.2.conv", "dilations", [2, 2]), "a dilated convolution"),
        ("qcdq", attribute_of("b00.2.conv", "pads", [0, 1, 1, 0]), "padding that differs"),
        ("qcdq", attribute_of("b00.2.conv", "pads", "none"), "its pads is not a list"),
        ("qcdq", input_of("b01.add", 1, "b00.1.act.q"), "'/b01.add': no chain of 2 or 3 convolutions"),
        ("qcdq", input_of("b00.add", 1, "pool"), "layer1_0_downsample: requant_factor is 32, but the channels"),
        ("qcdq", input_of("b00.add", 0, "b00.0.q.q"), "both of its inputs are quantised"),
        ("qcdq", input_of("b00.add", 1, "b00.0.bn"), "the format adds sums of a convolution and a quantised shortcut"),
        ("qcdq", input_of("b00.1.conv", 0, "images"), "the image as it comes, not quantised"),
        ("qcdq", input_of("b00.1.conv", 0, "b30.act.q"), "is given by no node before it"),
        ("qcdq", input_of("stem.conv", 1, "nowhere"), "its input 'nowhere' is given by no node before it"),
        ("qcdq", constant_of("b00.1.bn1", lambda b: b * 1e9), "channel 0: its bias is"),
        ("qcdq", constant_of("b00.1.bn3", lambda v: v * -1), "a variance that is not above zero"),
        ("qcdq", constant_of("b00.1.bn0", lambda g: g * np.nan), "its statistics is not finite"),
    ],
)
def test_a_node_that_does_not_fit_is_named_with_its_reason(
    form: str, change: Callable[[onnx.ModelProto], None], said: str, tmp_path: Path
) -> None:
    model = Exported(form).model
    change(model)
    with pytest.raises(OnnxFileError) as error:
        imported(model, tmp_path / "a.onnx")
    assert said in error.value.why
    assert "\n" not in str(error.value)
