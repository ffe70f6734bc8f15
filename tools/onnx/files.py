"""Reading ONNX files that may be hostile: bounded, without other files, every fault one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from int4core.errors import shown
from int4core.regular import read_regular
from tools.onnx.errors import OnnxFileError
from tools.onnx.wire import count_parts

Array = npt.NDArray[Any]

FILE_LIMIT = 1 << 30
"""Most bytes of a file; ResNet-152 takes 240 MB in float32."""

NODE_LIMIT = 20_000
"""Most nodes and constants of a graph; ResNet-152 has 2,000 as Brevitas writes it."""


PART_LIMIT = 1 << 20
"""Most fields of a file, those of nodes and constants included; a ResNet-152 that export wrote has 17,000."""


def load(path: Path) -> onnx.ModelProto:
    """The model in the file `path`, with no more than NODE_LIMIT nodes. Raises OnnxFileError."""
    try:
        data = read_regular(path, FILE_LIMIT)
    except OSError as error:
        raise OnnxFileError(path, 0, f"cannot be read: {error.strerror}") from error
    try:
        if count_parts(data, onnx.ModelProto.DESCRIPTOR, PART_LIMIT) > PART_LIMIT:
            raise OnnxFileError(path, 0, f"has over {PART_LIMIT:,} parts, the most that is read")
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError):
        raise OnnxFileError(path, 0, "is no ONNX file, or one that was cut short") from None
    graph = model.graph
    if not graph.node:
        raise OnnxFileError(path, 0, "is no ONNX file, or one that was cut short: it has no node")
    if max(len(graph.node), len(graph.initializer)) > NODE_LIMIT:
        raise OnnxFileError(path, 0, f"has over {NODE_LIMIT} nodes or constants, the most that is read")
    return model


def constants(path: Path, graph: onnx.GraphProto) -> dict[str, Array]:
    """Every initializer by name. Raises OnnxFileError for one that is wrong, or that lies in another file."""
    return {tensor.name: to_array(path, tensor, tensor.name) for tensor in graph.initializer}


def to_array(path: Path, tensor: onnx.TensorProto, name: str) -> Array:
    """A tensor's values; no more memory than the file has bytes, eightfold."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        why = f"constant {shown(name)} lies in another file: save the model as one file"
        raise OnnxFileError(path, 0, why)
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # whatever NumPy and ONNX make of nonsense
        raise OnnxFileError(path, 0, f"constant {shown(name)} cannot be read: {shown(str(error))}") from None
    if array.dtype.kind not in "iufb" or array.size == 0:
        raise OnnxFileError(
            path, 0, f"constant {shown(name)} is {array.dtype} of shape {array.shape}: numbers are needed"
        )
    return np.asarray(array)
