"""Files that are damaged, or made to cost: an error of one line, soon and in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from int4core.model import Model
from tests.tools.onnx_agreement import imported
from tests.tools.quantised_onnx import Exported
from tools.onnx import files
from tools.onnx.__main__ import main
from tools.onnx.errors import OnnxFileError
from tools.onnx.export import to_onnx
from tools.onnx.files import load
from tools.onnx.wire import count_parts


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
