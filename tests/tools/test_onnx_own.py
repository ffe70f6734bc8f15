"""What export wrote comes back byte for byte; what has been changed since is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from int4core.model import Model
from int4core.random_model import random_model
from tests.paths import SHARED, needs_shared
from tools.onnx.__main__ import main
from tools.onnx.errors import OnnxFileError
from tools.onnx.export import FORMS, to_onnx
from tools.onnx.files import load
from tools.onnx.own import import_own


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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


def test_names_of_classes_that_are_not_the_files_are_not_passed_over(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may be the user's own, or those of the model that was there before."""
    for name, names in (("named", ("a", "b", "c")), ("nameless", None)):
        graph = to_onnx(Model.load(tiny).network, "integer", names)
        (tmp_path / f"{name}.onnx").write_bytes(graph.SerializeToString())
    said = "classes.txt was there before and stays"
    assert main(["import", str(tmp_path / "nameless.onnx"), str(tmp_path / "out")]) == 0
    assert main(["import", str(tmp_path / "named.onnx"), str(tmp_path / "out")]) == 0
    assert said not in capsys.readouterr().out
    assert main(["import", str(tmp_path / "nameless.onnx"), str(tmp_path / "out")]) == 0
    assert said in capsys.readouterr().out
    assert (tmp_path / "out" / "classes.txt").read_text() == "a\nb\nc\n"
