from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.message import DecodeError
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper

from int4core.dtypes import INT_TYPES, split_mode
from int4core.engine import Engine
from int4core.layers import BasicBlock, Conv2d, Quantize, ResNet, Sequential
from int4core.model import Model
from int4core.quantize import requantize
from int4core.random_model import random_model
from tests.paths import SHARED, needs_shared
from tests.tools.quantised_onnx import SIDE, Exported
from tools.onnx import files
from tools.onnx.__main__ import main
from tools.onnx.errors import OnnxFileError
from tools.onnx.export import FORMS, to_onnx
from tools.onnx.files import load
from tools.onnx.foreign import Findings, import_foreign
from tools.onnx.own import import_own
from tools.onnx.wire import count_parts


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    random_model(blocks=(2, 1, 1, 1), width=4, classes=3, pool=2).save(folder)
    (folder / "classes.txt").write_text("tench\nSäge\nshark, white\n", encoding="utf-8")
    return folder


# What export wrote


@pytest.mark.parametrize("form", FORMS)
def test_the_round_trip_of_basic_blocks(form: str, tmp_path: Path) -> None:
    random_model(blocks=(2, 1, 1, 1), width=4, classes=3, pool=2, basic=True).save(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "a.onnx"), "--form", form]) == 0
    assert main(["import", str(tmp_path / "a.onnx"), str(tmp_path / "back")]) == 0
    assert files_of(tmp_path / "back") == files_of(tmp_path / "model")


@pytest.mark.parametrize("form", FORMS)
def test_the_round_trip_gives_the_same_folder(
    form: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny), str(tmp_path / "a.onnx"), "--form", form]) == 0
    assert main(["import", str(tmp_path / "a.onnx"), str(tmp_path / "back")]) == 0
    assert "byte for byte" in capsys.readouterr().out
    assert files_of(tmp_path / "back") == files_of(tiny)


@needs_shared
@pytest.mark.parametrize("form", FORMS)
def test_the_round_trip_of_the_published_model(form: str, tmp_path: Path) -> None:
    folder = SHARED / "model-v0.5" / "model"
    (tmp_path / "a.onnx").write_bytes(to_onnx(Model.load(folder).network, form).SerializeToString())
    net, names = import_own(tmp_path / "a.onnx", load(tmp_path / "a.onnx"))
    Model(net).save(tmp_path / "back")
    assert names is None
    assert files_of(tmp_path / "back") == files_of(folder)


def changed_weight(model: onnx.ModelProto) -> None:
    for i, tensor in enumerate(model.graph.initializer):
        if tensor.name == "layer1_0_quantize1.scale":
            array = numpy_helper.to_array(tensor) * np.float32(1.0000001)
            model.graph.initializer[i].CopyFrom(numpy_helper.from_array(array, tensor.name))


def changed_stride(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name == "layer1_0_conv2")
    next(a for a in node.attribute if a.name == "strides").ints[:] = [2, 2]


def changed_node(model: onnx.ModelProto) -> None:
    next(n for n in model.graph.node if n.name == "layer1_0_quantize1 relu").op_type = "Abs"


def changed_text(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        next(p for p in model.metadata_props if p.key == key).value = value

    return change


def without(name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == name))

    return change


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def oversized(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.name == "conv1.weight").dims[:] = [1 << 40, 1, 1, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed_weight, "constant 'layer1_0_quantize1.scale' is not what export writes"),
        (changed_stride, "node 'layer1_0_conv2' is not what export writes"),
        (changed_node, "node 'layer1_0_quantize1 relu' is not what export writes"),
        (without("fc.bias"), "constant 'fc.bias' is missing"),
        (elsewhere, "constant 'conv1.weight' lies in another file"),
        (oversized, "constant 'conv1.weight' cannot be read"),
        (changed_text("int4core.layers", "[" * 100_000), "metadata int4core.layers is not JSON"),
        (changed_text("class_names", " " * (17 << 20)), "metadata class_names has over 16,777,216 characters"),
        (changed_text("int4core.layers", "[]"), "are not what export writes"),
        (changed_text("int4core.layers", '{"model": {"type": "ResNetQuantized"}}'), "lacks compute_mode"),
        (changed_text("int4core.form", "bf16"), "are not what export writes"),
        (changed_text("class_names", "[1]"), "class_names is not a list of names"),
    ],
)
def test_a_file_changed_since_is_refused(
    change: Callable[[onnx.ModelProto], None], said: str, tiny: Path, tmp_path: Path
) -> None:
    model = to_onnx(Model.load(tiny).network, "float32", ("a", "b", "c"))
    change(model)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OnnxFileError) as error:
        import_own(tmp_path / "a.onnx", load(tmp_path / "a.onnx"))
    assert said in error.value.why
    assert "\n" not in str(error.value)


def test_no_layer_may_be_left_over(tiny: Path, tmp_path: Path) -> None:
    model = to_onnx(Model.load(tiny).network, "integer")
    said = next(p for p in model.metadata_props if p.key == "int4core.layers")
    layers = json.loads(said.value)
    said.value = json.dumps({**layers, "layer9": layers["layer1"]})
    with pytest.raises(OnnxFileError, match="'layer9' is no layer of the network"):
        import_own(tmp_path / "a.onnx", model)


# Graphs of others


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


@pytest.mark.parametrize("source", ["qcdq", "qonnx", "own"])
def test_hostile_files_are_one_error(
    source: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut anywhere, or with bytes changed anywhere but in the weights: an error of one line, or a network."""
    model = to_onnx(Model.load(tiny).network, "qcdq") if source == "own" else Exported(source).model
    data = model.SerializeToString()
    random = np.random.default_rng(4)
    path = tmp_path / "a.onnx"
    refused = 0
    for trial in range(60):
        hurt = bytearray(data)
        if trial % 3:
            for at in random.integers(0, len(data), 1 + trial % 7):
                hurt[at] = random.integers(256)
        else:
            del hurt[random.integers(len(data)) :]
        path.write_bytes(hurt)
        capsys.readouterr()
        status = main(["import", str(path), str(tmp_path / "out")])
        said = capsys.readouterr().err.splitlines()
        assert (status, len(said)) in ((0, 0), (1, 1)), said
        refused += status
    assert refused >= 20


@pytest.mark.parametrize("what", ["scale", "zero point", "weights"])
def test_many_nodes_on_one_large_constant_end_soon(what: str, tmp_path: Path) -> None:
    """Each would make or read a megabyte anew; 2,000 of them come in a file of 1 MB."""
    model = Exported("qcdq").model
    big = np.full(1 << 18, 0 if what == "zero point" else 1, np.int8 if what == "zero point" else np.float32)
    small = np.ones((), np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in ((big, "big"), (small, "small")))
    inputs = {"scale": ["images", "big"], "zero point": ["images", "small", "big"], "weights": ["big", "small"]}
    for i in range(2000):
        node = helper.make_node("QuantizeLinear", inputs[what], [f"more{i}"], f"/more{i}")
        model.graph.node.insert(i, node)
    tracemalloc.start()
    try:
        with pytest.raises(OnnxFileError, match=r"node '/more\d+' .*use the file's numbers over 16 times each"):
            imported(model, tmp_path / "a.onnx")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 32 * (tmp_path / "a.onnx").stat().st_size + (64 << 20)


def message(field: int, data: bytes) -> bytes:
    """A field of protobuf's that is a chunk of bytes."""
    size, rest = [], len(data)
    while rest > 0x7F:
        size.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([field << 3 | 2, *size, rest]) + data


@pytest.mark.parametrize(
    "graph",
    [message(1, b"") * (1 << 20), message(1, message(5, b"") * (1 << 20)), message(5, b"\x08\x01" * (1 << 20))],
    ids=["nodes", "attributes", "sizes"],
)
def test_files_of_many_empty_parts_are_not_decoded(
    graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory each would take 75 bytes instead of two."""
    (tmp_path / "a.onnx").write_bytes(message(7, graph))
    monkeypatch.setattr(
        files, "onnx", SimpleNamespace(ModelProto=SimpleNamespace(DESCRIPTOR=onnx.ModelProto.DESCRIPTOR))
    )
    with pytest.raises(OnnxFileError, match="has over 1,048,576 parts, the most that is read"):
        load(tmp_path / "a.onnx")


def test_messages_in_messages_without_end_are_refused() -> None:
    """A graph in an attribute of a node of a graph, and so on."""
    data = b""
    for _ in range(40):
        data = message(1, message(5, message(6, data)))
    with pytest.raises(ValueError, match="without an end"):
        count_parts(message(7, data), onnx.ModelProto.DESCRIPTOR, 1 << 20)


@pytest.mark.parametrize("seed", range(4))
def test_parts_are_counted_as_protobuf_finds_them(seed: int) -> None:
    """Bytes changed at random: what the count refuses, decoding does too."""
    data = Exported("qcdq").model.SerializeToString()
    whole = count_parts(data, onnx.ModelProto.DESCRIPTOR, 1 << 20)
    assert 1000 < whole < 1 << 20
    assert count_parts(data, onnx.ModelProto.DESCRIPTOR, 99) == 100
    random = np.random.default_rng(seed)
    for _ in range(50):
        hurt = bytearray(data)
        hurt[random.integers(len(data))] = random.integers(256)
        try:
            count_parts(bytes(hurt), onnx.ModelProto.DESCRIPTOR, 1 << 20)
        except ValueError:
            with pytest.raises(DecodeError):
                onnx.ModelProto.FromString(bytes(hurt))


def test_faults_of_files_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no ONNX")
    for name in ("none", "empty", "text", "."):
        assert main(["import", str(tmp_path / name), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert all(line.startswith("import: ") for line in said)
