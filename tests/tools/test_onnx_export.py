from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from int4core.engine import Engine
from int4core.layers import Bottleneck, Quantize, ResNet, Sequential
from int4core.model import Model
from int4core.random_model import random_model
from tests.int4core.networks import random_input, random_network, reference_trace
from tests.paths import SHARED, needs_shared
from tools.onnx.__main__ import main
from tools.onnx.errors import OnnxError
from tools.onnx.export import FORMS, to_onnx
from tools.onnx.verify import verify

TINY = {"blocks": (2, 1, 1, 1), "width": 4, "classes": 5, "pool": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    random_model(**TINY).save(folder)
    (folder / "classes.txt").write_text("tench\nfish\nshark, white\nray\nSäge\n", encoding="utf-8")
    return Model.load(folder)


def in_runtime(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["accumulators", "logits", "top1"], {"images": x})


def with_quantizes(net: ResNet, change: Callable[[Quantize], Quantize]) -> ResNet:
    """`net` with every Quantize of its blocks and its stem changed."""

    def block(b: Bottleneck) -> Bottleneck:
        branch = b.downsample
        if isinstance(branch, Sequential):
            conv, down, up = branch.children
            assert isinstance(down, Quantize)
            branch = replace(branch, children=(conv, change(down), up))
        return replace(
            b, quantize1=change(b.quantize1), quantize2=change(b.quantize2), quantize3=change(b.quantize3),
            downsample=branch,
        )  # fmt: skip

    stages = {
        name: replace(stage, children=tuple(block(b) for b in stage.children if isinstance(b, Bottleneck)))
        for name, stage in vars(net).items()
        if name.startswith("layer")
    }
    return replace(net, quantize1=change(net.quantize1), **stages)


@pytest.mark.parametrize("form", FORMS)
def test_every_value_is_the_engines(form: str, tiny: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x" / "tiny.onnx"
    assert main(["export", str(tiny.path), str(out), "--form", form, "--verify", "5"]) == 0
    assert "25 of 25 sums equal" in capsys.readouterr().out
    onnx.checker.check_model(out, full_check=True)


@pytest.mark.parametrize("form", ["integer", "float32"])
def test_another_reader_of_the_graph_agrees(form: str, tiny: Model) -> None:
    x = random_input(tiny.network, 2)
    found = ReferenceEvaluator(to_onnx(tiny.network, form)).run(None, {"images": x})
    with Engine(tiny) as engine:
        for ours, theirs in zip((engine.accumulators(x), engine.logits(x), engine.top1(x)), found, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("more", [{"shift": 0}, {"shift": 9}, {"dilation": 2}, {"pool": 3}])
def test_any_network_of_the_format(form: str, more: dict[str, int]) -> None:
    net = random_network(3, (1, 2, 1, 1), 4, **more)
    x = random_input(net, 3, seed=1)
    np.testing.assert_array_equal(in_runtime(to_onnx(net, form), x)[0], reference_trace(net, x)["fc"])


@pytest.mark.parametrize("form", FORMS)
def test_basic_blocks(form: str) -> None:
    net = random_model(blocks=(2, 1, 1, 1), width=4, classes=5, pool=2, basic=True).network
    x = random_input(net, 3)
    np.testing.assert_array_equal(in_runtime(to_onnx(net, form), x)[0], reference_trace(net, x)["fc"])


@pytest.mark.parametrize("form", FORMS)
def test_partial_windows_and_maps_larger_than_the_average(form: str) -> None:
    """ceil_mode adds a column to the stem's maps, which arrive as 3x3 at an average of 2x2."""
    net = random_network(1, width=4, ceil_mode=True)
    net = replace(net, avgpool=replace(net.avgpool, stride=2))
    x = random_input(net, 2)
    np.testing.assert_array_equal(in_runtime(to_onnx(net, form), x)[0], reference_trace(net, x)["fc"])


def tied_network(shift: int) -> ResNet:
    """Factors that are powers of two: about one rescaled value in 2^8 is in the middle of two integers."""

    def tied(q: Quantize) -> Quantize:
        bits = shift if q.compute_mode.endswith("u4") else 16
        exponent = np.rint(np.log2(q.requant_factor)).astype(np.int64) + bits - 16
        factor = np.left_shift(1, exponent.clip(0, 15)).astype(np.uint16)
        return replace(q, requant_factor=factor, max_requant=int(factor.max()), shift_bits=bits)

    return with_quantizes(random_model(width=8, classes=5, pool=2, seed=5).network, tied)


@pytest.mark.parametrize(("form", "shift"), [*((f, 16) for f in FORMS), ("qcdq", 20)])
def test_ties_are_rounded_as_the_engine_rounds_them(form: str, shift: int) -> None:
    """With shift 20 a 2^-21 would not fit beside 15: qcdq then takes whole numbers to QuantizeLinear."""
    net = tied_network(shift)
    x = random_input(net, 2)
    trace = reference_trace(net, x)

    def ties(conv: str, q: Quantize) -> np.ndarray:
        v = trace[conv] * q.requant_factor[:, None, None].astype(np.int64)
        return v[v % (1 << q.shift_bits) == 1 << (q.shift_bits - 1)] >> q.shift_bits

    block = net.layer1.children[0]
    assert isinstance(block, Bottleneck)
    assert isinstance(block.downsample, Sequential)
    down = block.downsample.children[1]
    assert isinstance(down, Quantize)
    rounded = ties("layer1_0_conv1", block.quantize1)
    assert np.count_nonzero((rounded >= 0) & (rounded < 15) & (rounded % 2 == 0)) > 5
    branch = ties("layer1_0_downsample_0", down)
    assert np.count_nonzero((branch < 0) & (branch > -128)) > 5
    np.testing.assert_array_equal(in_runtime(to_onnx(net, form), x)[0], trace["fc"])


@pytest.mark.parametrize("form", ["float32", "qcdq"])
def test_sums_that_float32_cannot_hold_are_refused_by_layer(form: str) -> None:
    net = random_network(width=4)
    fc = replace(net.fc, bias=np.full(5, 1 << 24, np.int32))
    with pytest.raises(OnnxError, match=r"^fc: its sums could reach 1\d,\d{3},\d{3}, .* use --form integer"):
        to_onnx(replace(net, fc=fc), form)
    wide = replace(net.quantize1, shift_bits=23)
    with pytest.raises(OnnxError, match=r"^quantize1: .*not exact in float32; use --form integer"):
        to_onnx(replace(net, quantize1=wide), form)
    pool = replace(net.avgpool, kernel_size=128)
    with pytest.raises(OnnxError, match=r"^avgpool: a mean of 16384 values"):
        to_onnx(replace(net, avgpool=pool), form)
    for changed in (replace(net, fc=fc), replace(net, quantize1=wide)):
        x = random_input(changed, 2)
        found = in_runtime(to_onnx(changed, "integer"), x)
        np.testing.assert_array_equal(found[0], reference_trace(changed, x)["fc"])


@pytest.mark.parametrize("count", [1, 4, 49, 64, 121 * 121])
def test_means_in_float32_are_the_engines_by_division_and_by_reciprocal(count: int) -> None:
    """Every total is tried: what `_float_mean` says of its proof."""
    total = np.arange(127 * count + 1, dtype=np.float32)
    right = (2 * total.astype(np.int64) + count) // (2 * count)
    scaled = total * np.float32(4) + np.float32(2 * count + 1)
    np.testing.assert_array_equal(np.floor(scaled / np.float32(4 * count)), right)
    np.testing.assert_array_equal(np.floor(scaled * (np.float32(1) / np.float32(4 * count))), right)


def test_metadata_says_how_to_prepare_an_image_and_what_classes_mean(tiny: Model, tmp_path: Path) -> None:
    assert main(["export", str(tiny.path), str(tmp_path / "a.onnx")]) == 0
    model = onnx.load(tmp_path / "a.onnx")
    said = {p.key: p.value for p in model.metadata_props}
    assert json.loads(said["class_names"]) == ["tench", "fish", "shark, white", "ray", "Säge"]
    assert json.loads(said["preprocessing"])["mean"] == [0.485, 0.456, 0.406]
    ops = {node.op_type for node in model.graph.node}
    assert {"ConvInteger", "MatMulInteger"} <= ops
    assert not ops & {"Conv", "MatMul", "Gemm"}


def test_qcdq_has_eight_bit_carriers_only(tiny: Model) -> None:
    model = to_onnx(tiny.network, "qcdq")
    weights = [t for t in model.graph.initializer if t.name.endswith(".weight")]
    assert len(weights) == 21
    assert {t.data_type for t in weights} == {onnx.TensorProto.INT8}


def test_a_difference_names_its_first_layer(tiny: Model, tmp_path: Path) -> None:
    """The file is made of another network: one bias of layer2_0_conv2 is not the model's."""
    net = tiny.network
    block = net.layer2.children[0]
    assert isinstance(block, Bottleneck)
    changed = replace(block, conv2=replace(block.conv2, bias=block.conv2.bias + np.int16(900)))
    other = replace(net, layer2=replace(net.layer2, children=(changed,)))
    (tmp_path / "a.onnx").write_bytes(to_onnx(other, "integer").SerializeToString())
    with pytest.raises(OnnxError, match=r"accumulators differ in .*; first in layer layer2_0_conv2$"):
        verify(tmp_path / "a.onnx", tiny, 2)


def test_faults_are_one_sentence(tiny: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "a.onnx")]) == 1
    assert main(["export", str(tiny.path), str(tmp_path)]) == 1
    assert main(["export", str(tiny.path), "/dev/null/a.onnx"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(line.startswith("export: ") for line in said)


@needs_shared
@pytest.mark.parametrize("form", FORMS)
def test_golden_sums_of_the_published_model(form: str) -> None:
    model = Model.load(SHARED / "model-v0.5" / "model")
    with np.load(SHARED / "golden" / "inputs8.npz") as golden:
        x, sums = golden["x"], golden["logits"]
    found = in_runtime(to_onnx(model.network, form), x)
    np.testing.assert_array_equal(found[0], sums)
    np.testing.assert_array_equal(found[2], (sums / model.network.scale.out_scale).argmax(axis=1))
