"""A graph under construction: nodes in order, constants each once, names that say what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
"""Old enough for every runtime in use, and the first with all that is needed."""

IR_VERSION = 8
"""The one that came with that opset; newer ones are refused by older runtimes."""

IMAGES = "images"


class Graph:
    """Adds nodes and constants; values are named by the layer that gives them, and by steps of it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """A constant; one of the same name must be the same value, as the shared scalars are."""
        array = np.ascontiguousarray(value, dtype)
        tensor = numpy_helper.from_array(array.reshape(np.shape(value)), name)
        if self.constants.setdefault(name, tensor) != tensor:
            raise ValueError(f"the constant {name} has two values")
        return name

    def scalar(self, value: float, dtype: npt.DTypeLike) -> str:
        """A constant without dimensions, shared by all that use the same."""
        return self.constant(f"{np.dtype(dtype).name} {value!r}", np.asarray(value, dtype), dtype)

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node with one output, both called `name`; returns it."""
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def cast(self, x: str, dtype: npt.DTypeLike, name: str) -> str:
        return self.node("Cast", [x], name, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def model(self, height: int, width: int, classes: int, metadata: dict[str, str]) -> onnx.ModelProto:
        """The whole: int8 images (N, 3, H, W) in; accumulators int32, logits float32 and top1 int32 out."""
        images = helper.make_tensor_value_info(IMAGES, TensorProto.INT8, ["N", 3, height, width])
        outputs = [
            helper.make_tensor_value_info("accumulators", TensorProto.INT32, ["N", classes]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes]),
            helper.make_tensor_value_info("top1", TensorProto.INT32, ["N"]),
        ]
        graph = helper.make_graph(self.nodes, "int4_resnet", [images], outputs, list(self.constants.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="int4core", ir_version=IR_VERSION
        )
        helper.set_model_props(model, metadata)
        return model
