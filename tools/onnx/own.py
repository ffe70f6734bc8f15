"""Importing what `export` wrote: the same network, in every byte of its folder.

The graph has the tensors, the metadata what is not in a graph (a shift apart from its factors, flags that change
nothing). The network they make is exported again, and that must give the same graph: so a file whose graph was changed
after its export is refused, not half believed.
"""

from __future__ import annotations

import json
from itertools import zip_longest
from math import ldexp
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from int4core.errors import ModelError, shown
from int4core.format.npdata import pack
from int4core.format.packed import CONFIG_LIMIT
from int4core.format.parts import TYPE, Stored, network_of
from int4core.format.schema import SCHEMA, Declared, Tensor
from int4core.layers import ResNet
from tools.onnx.errors import OnnxError, OnnxFileError
from tools.onnx.export import CLASSES, FORM, FORMS, LAYERS, to_onnx
from tools.onnx.files import Array, constants
from tools.onnx.forms import U8_ZERO


def is_own(model: onnx.ModelProto) -> bool:
    """Whether `export` wrote it, by its metadata."""
    return FORM in _metadata(model)


def import_own(path: Path, model: onnx.ModelProto) -> tuple[ResNet, tuple[str, ...] | None]:
    """The network of such a model, and the names of its classes if it has them. Raises OnnxFileError."""
    said = _metadata(model)
    layers, names = _json(path, said, LAYERS), _json(path, said, CLASSES)
    if said[FORM] not in FORMS or not isinstance(layers, dict):
        raise OnnxFileError(path, 0, f"its metadata {FORM} and {LAYERS} are not what export writes")
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise OnnxFileError(path, 0, f"its metadata {CLASSES} is not a list of names")
    tensors = {}
    found = constants(path, model.graph)
    for name, values in layers.items():
        kind = values.get(TYPE) if isinstance(values, dict) else None
        for key, codec in SCHEMA.get(kind, {}).items() if isinstance(kind, str) else ():
            if isinstance(codec, Tensor):
                tensors[f"{name}.{key}"] = _stored(path, found, name, key, values)
    try:
        net = network_of(path, layers, tensors)
        again = to_onnx(net, said[FORM], None if names is None else tuple(names))
    except ModelError as error:
        raise OnnxFileError(path, 0, error.why) from None
    except OnnxError as error:
        raise OnnxFileError(path, 0, str(error)) from None
    _expect_equal(path, model, again)
    return net, None if names is None else tuple(names)


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}


def _json(path: Path, said: dict[str, str], key: str) -> Any:
    text = said.get(key, "null")
    if len(text) > CONFIG_LIMIT:
        raise OnnxFileError(path, 0, f"its metadata {key} has over {CONFIG_LIMIT:,} characters, the most that is read")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise OnnxFileError(path, 0, f"its metadata {key} is not JSON") from None


def _stored(path: Path, found: dict[str, Array], name: str, key: str, values: dict[str, Any]) -> Stored:
    """A tensor as the format has it, from the constant that one of the forms made of it.

    What is wrong here and not found to be, is when the graph is compared: this only has to undo what is right.
    """
    layer = f"{name}.{key}"
    array = found.get(layer)
    if array is None and key == "requant_factor" and f"{name}.scale" in found:
        shift = values.get("shift_bits")
        if not isinstance(shift, int) or not 0 <= shift < 64:
            raise OnnxFileError(path, 0, f"layer {shown(name)}: shift_bits={shown(str(shift))} is no shift")
        array = found[f"{name}.scale"].astype(np.float64) * ldexp(1.0, shift)
    if array is None:
        raise OnnxFileError(path, 0, f"constant {shown(layer)} is missing")
    dtype, mode = (
        {"bias": "s16", "requant_factor": "u16", "out_scale": "f32"}.get(key, "s8"),
        values.get("compute_mode"),
    )
    if values[TYPE] == "Linear":
        array = array.T
        dtype = "s32" if key == "bias" else dtype
    elif key == "weight" and mode == "u4s4s32":
        dtype = "s4"
    elif key == "weight" and array.dtype == np.uint8:
        array = array.astype(np.int16) - U8_ZERO
    if key == "bias":
        array = array.reshape(-1)
    dims = array.shape if key != "requant_factor" else (1, array.size, 1, 1)
    with np.errstate(all="ignore"):
        plain = array if dtype == "f32" else array.astype(np.int64)
    return Stored(Declared(dtype, dims), pack(plain.astype(np.float32) if dtype == "f32" else plain, dtype))


def _expect_equal(path: Path, model: onnx.ModelProto, again: onnx.ModelProto) -> None:
    """Raises OnnxFileError with the first node or constant in which the graphs differ."""
    kinds = (
        ("node", model.graph.node, again.graph.node),
        ("constant", model.graph.initializer, again.graph.initializer),
    )
    for kind, ours, wanted in kinds:
        for a, b in zip_longest(ours, wanted):
            if a != b:
                name = shown((a if a is not None else b).name)
                why = f"{kind} {name} is not what export writes for this network: the graph was changed since"
                raise OnnxFileError(path, 0, why)
    for kind in ("input", "output"):
        if list(getattr(model.graph, kind)) != list(getattr(again.graph, kind)):
            raise OnnxFileError(path, 0, f"its {kind}s are not what export writes for this network")
    if list(model.opset_import) != list(again.opset_import) or model.functions:
        raise OnnxFileError(path, 0, "its operators are not of the version that export writes")
