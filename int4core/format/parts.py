"""A network in parts: the plain values of each layer, and tensors by name, as files of other kinds carry them.

They are read as a model folder is, by the same grammar and the same rules: a layer's values become the lines of its
file. So nothing that a folder may not say can be said in another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from int4core.errors import ModelError, shown
from int4core.format.files import MODEL, TEXT_LIMIT, Refused
from int4core.format.npdata import Bytes
from int4core.format.read import assemble
from int4core.format.schema import KINDS, SCHEMA, Declared, Plain, Tensor
from int4core.format.text import LINE_END
from int4core.format.write import DATA_FOLDER
from int4core.layers import ResNet, Sequential, walk

TYPE = "type"
"""The key of a layer's type, beside those of `schema`."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in npdata/."""

    declared: Declared
    data: bytes | memoryview


def plain_values(net: ResNet) -> dict[str, dict[str, Any]]:
    """Layer name -> its type and all that is not a tensor, in running order; `model` is the network itself.

    Pairs are lists, so that the values are what JSON gives back.
    """
    found = {}
    for layer in (net, *walk(net)):
        values: dict[str, Any] = {TYPE: KINDS[type(layer)]}
        for key, codec in SCHEMA[values[TYPE]].items():
            if isinstance(codec, Plain):
                value = len(layer.children) if isinstance(layer, Sequential) else getattr(layer, key)
                values[key] = list(value) if isinstance(value, tuple) else value
        found[MODEL if isinstance(layer, ResNet) else layer.name] = values
    return found


def network_of(path: Path, layers: object, tensors: Mapping[str, Stored]) -> ResNet:
    """The network of such values and of tensors called LAYER.KEY, checked; every one of them belongs to it.

    Raises ModelError, which names the file `path` and in it the layer.
    """
    source = _Parts(path, layers, tensors)
    try:
        net = assemble(source)
    except ModelError as error:
        layer = Path(error.file).name
        where = "" if Path(error.file) == path else f"layer {shown(layer)}: "
        raise ModelError(path, 0, f"{where}{error.why}") from None
    known = {MODEL, *(layer.name for layer in walk(net))}
    named = (*source.layers, *(name.rpartition(".")[0] for name in tensors))
    if unused := [name for name in named if name not in known]:
        raise ModelError(path, 0, f"{shown(str(unused[0]))} is no layer of the network that the others make")
    return net


class _Parts:
    """Such values as layer files; see `int4core.format.read.Source`."""

    def __init__(self, path: Path, layers: object, tensors: Mapping[str, Stored]) -> None:
        if not isinstance(layers, dict):
            raise ModelError(path, 0, "its layers are not an object with a layer under each name")
        self.path = path
        self.layers: dict[str, object] = layers
        self.tensors = tensors

    def read_text(self, name: str) -> bytes:
        values = self.layers.get(name)
        if not isinstance(values, dict):
            raise Refused("is not there")
        lines = [str(values.get(TYPE))]
        schema = SCHEMA.get(lines[0], {})
        if wrong := [key for key in values if not key.isidentifier()]:
            raise Refused(f"has a key {shown(wrong[0])}, which no layer has")
        lines += [f"{key}={_text(value)}" for key, value in values.items() if key != TYPE]
        for key, codec in schema.items():
            if isinstance(codec, Tensor) and (stored := self.tensors.get(f"{name}.{key}")):
                lines += [f"{key}={stored.declared}", f"!{MODEL}/{DATA_FOLDER}/{name}.{key}"]
        if not all(line.isascii() and line.isprintable() for line in lines):
            raise Refused("has a value that is not plain text")
        text = "".join(line + LINE_END for line in lines).encode("ascii")
        if len(text) > TEXT_LIMIT:
            raise Refused(f"has {len(text)} bytes; a layer's values have at most {TEXT_LIMIT}")
        return text

    def read_data(self, reference: str, nbytes: int) -> Bytes:
        stored = self.tensors.get(reference.removeprefix(f"{MODEL}/{DATA_FOLDER}/"))
        if stored is None:
            raise Refused("is not there")
        data = np.frombuffer(stored.data, np.uint8)
        if data.size != nbytes:
            raise Refused(f"has {data.size} bytes, and the declared tensor takes {nbytes}")
        return data.copy()


def _text(value: object) -> str:
    """A value as a layer file spells it; what has no such spelling gives text that the grammar refuses."""
    if isinstance(value, list):
        return f"{len(value)}:{' '.join(map(str, value))}"
    return str(value)
