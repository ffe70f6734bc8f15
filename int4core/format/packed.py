"""A model packed for hubs: config.json, model.safetensors and nothing that only this project reads.

config.json has the plain values of every layer and the declaration of every tensor, spelt as in the layer files;
model.safetensors the tensors' bytes: s4 as U8, two values a byte, the first in the low nibble, others in their type and
shape. config.json has the SHA-256 of model.safetensors, so that files of two models are not taken for one. What a model
folder may not say is refused here too: both are read by `int4core.format.parts`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from int4core.errors import ModelError, shown
from int4core.format.files import DATA_LIMIT, MODEL
from int4core.format.npdata import Array, pack
from int4core.format.parts import Stored, network_of, plain_values
from int4core.format.schema import KINDS, SCHEMA, Declared, Tensor, parse_tensor
from int4core.install import install_command
from int4core.layers import ResNet, walk
from int4core.regular import read_regular
from int4core.validate import check_network

CONFIG, TENSORS = "config.json", "model.safetensors"

MODEL_TYPE = "int4core-resnet"

CONFIG_LIMIT = 16 << 20
"""Most bytes of config.json; ResNet-152 with 1,000 labels has 0.4 MB."""

HEADER_LIMIT = 16 << 20
"""Most bytes of model.safetensors' header; ResNet-152 has 0.1 MB."""

DTYPES = {"s4": "uint8", "s8": "int8", "s16": "int16", "u16": "uint16", "s32": "int32", "f32": "float32"}
"""NumPy's name of each tensor type as it is stored."""


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder of this kind and no model folder."""
    # Not by pathlib, which raises for names that no file can have.
    config, tensors = (os.path.isfile(os.path.join(path, name)) for name in (CONFIG, TENSORS))
    return config and tensors and not os.path.lexists(os.path.join(path, MODEL))


def packed_files(net: ResNet, more: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> its bytes; `more` is what else config.json says.

    Raises ModelError: the network breaks a rule of the format, or safetensors is not installed.
    """
    check_network(net)
    declared, stored = {}, {}
    for layer in (net, *walk(net)):
        for key, codec in SCHEMA[KINDS[type(layer)]].items():
            if not isinstance(codec, Tensor):
                continue
            value: Any = getattr(layer, key)
            dtype = getattr(layer, "weight_dtype", "s8") if len(codec.dtypes) > 1 else codec.dtypes[0]
            what = Declared(dtype, (1, *value.shape, 1, 1) if key == "requant_factor" else value.shape)
            name = f"{getattr(layer, 'name', '')}.{key}"
            declared[name] = str(what)
            packed = np.frombuffer(pack(value, dtype), np.uint8) if dtype == "s4" else value
            stored[name] = np.ascontiguousarray(packed, DTYPES[dtype]).reshape(_shape(what))
    data: bytes = _safetensors(Path(TENSORS)).save(stored)
    said = {
        "model_type": MODEL_TYPE, **more, "tensors_sha256": sha256(data).hexdigest(),
        "tensors": declared, "layers": plain_values(net),
    }  # fmt: skip
    text = json.dumps(said, indent=1, ensure_ascii=False) + "\n"
    return {CONFIG: text.encode("utf-8"), TENSORS: data}


def read_packed(path: str | os.PathLike[str]) -> ResNet:
    """The network of the packed folder `path`, checked as a whole.

    Raises ModelError, and nothing else, whatever the folder holds.
    """
    config, file = Path(path) / CONFIG, Path(path) / TENSORS
    try:
        said = json.loads(_read(config, CONFIG_LIMIT))
    except (ValueError, RecursionError):
        raise ModelError(config, 0, "is not JSON, or was cut short") from None
    if not isinstance(said, dict) or said.get("model_type") != MODEL_TYPE:
        raise ModelError(config, 0, f"is not of this project: its model_type must be {MODEL_TYPE}")
    declared = said.get("tensors")
    if not isinstance(declared, dict):
        raise ModelError(config, 0, "has no declarations of tensors, an object under `tensors`")
    try:
        return network_of(config, said.get("layers"), _tensors(config, declared, file, said.get("tensors_sha256")))
    except MemoryError:
        raise ModelError(file, 0, "there is not enough memory to load this model") from None


def _tensors(config: Path, declared: dict[str, Any], file: Path, digest: object) -> dict[str, Stored]:
    data = _read(file, DATA_LIMIT)
    # Folders that were packed before there was such a number have none.
    if digest is not None and digest != sha256(data).hexdigest():
        why = f"is not the file that {CONFIG} was written with: cut short, or of another model; pack or fetch both"
        raise ModelError(file, 0, why)
    if (header := int.from_bytes(data[:8], "little")) > HEADER_LIMIT:
        raise ModelError(file, 0, f"is no safetensors file: its header of {header:,} bytes is over {HEADER_LIMIT:,}")
    try:
        found: dict[str, Array] = _safetensors(file).load(data)
    except ModelError:
        raise
    except Exception as error:  # its own errors, and NumPy's for types that this has not
        raise ModelError(file, 0, f"is no safetensors file, or one that was cut short: {shown(str(error))}") from None
    if different := sorted(found.keys() ^ declared.keys()):
        where, lacks = (config, file) if different[0] in found else (file, config)
        raise ModelError(where, 0, f"lacks the tensor {shown(different[0])}, which {lacks.name} has")
    return {name: _stored(config, file, name, text, found[name]) for name, text in declared.items()}


def _stored(config: Path, file: Path, name: str, text: object, found: Array) -> Stored:
    """A tensor as declared. Its key's own rules come later, with those of its layer."""
    rank = text.count(" ") + 1 if isinstance(text, str) else 0
    try:
        what = parse_tensor(str(text), Tensor(tuple(DTYPES), rank))
    except ValueError as error:
        raise ModelError(config, 0, f"tensor {shown(name)}: {shown(str(text))} is wrong: {error}") from None
    wanted = DTYPES[what.dtype], _shape(what)
    if (found.dtype.name, found.shape) != wanted:
        is_now = f"tensor {shown(name)} is {found.dtype} of shape {shown(str(found.shape))}"
        raise ModelError(file, 0, f"{is_now}, but {what} takes {wanted[0]} of {wanted[1]}")
    return Stored(what, found.tobytes() if what.dtype == "s4" else pack(found, what.dtype))


def _shape(what: Declared) -> tuple[int, ...]:
    return (what.nbytes,) if what.dtype == "s4" else what.dims


def _read(file: Path, limit: int) -> bytes:
    try:
        return read_regular(file, limit)
    except OSError as error:
        raise ModelError(file, 0, f"cannot be read: {error.strerror}") from None


def _safetensors(file: Path) -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ModelError(file, 0, f"needs safetensors: {install_command('interop')}") from None
    return safetensors.numpy
