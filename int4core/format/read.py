"""A model folder -> the typed network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol, TypeVar

from int4core.errors import ModelError, shown
from int4core.format.files import MODEL, ModelFolder, Refused
from int4core.format.npdata import Array, Bytes, unpack
from int4core.format.schema import KINDS, Declared
from int4core.format.text import Entry, LayerText, parse_layer
from int4core.layers import (
    AvgPool2d,
    BasicBlock,
    Block,
    Bottleneck,
    Conv2d,
    Linear,
    MaxPool2d,
    Quantize,
    ReLU,
    ResNet,
    Scale,
    Sequential,
)
from int4core.validate import check_network

Leaf = TypeVar("Leaf", Conv2d, Quantize, ReLU, MaxPool2d, AvgPool2d, Linear, Scale)

MAX_CHILDREN = 1000
"""Most blocks of one stage; ResNet-152 has 36."""


class Source(Protocol):
    """What layer texts and tensors are read from. Both raise `Refused`.

    Attributes:
        path: the folder of the layer files, for messages.
    """

    @property
    def path(self) -> Path: ...

    def read_text(self, name: str) -> bytes:
        """The text of the layer `name`."""
        ...

    def read_data(self, reference: str, nbytes: int) -> Bytes:
        """The `nbytes` bytes of the tensor that a `!` line names, in an array that may be written into."""
        ...


def read_network(path: str | os.PathLike[str]) -> ResNet:
    """Read and check the model folder `path`.

    At no time does it hold more than three times the bytes of the folder's files (s4 weights take two
    bytes in memory for each on disk, and their packed bytes go once they are unpacked), plus about 1 KB a
    layer for its objects and 100 KB of buffers.

    Raises ModelError, and nothing else, whatever the folder holds.
    """
    return assemble(ModelFolder(path))


def assemble(source: Source) -> ResNet:
    """The network whose layers `source` has, checked. Raises ModelError, and nothing else."""
    reader = _Reader(source)
    try:
        network = reader.network()
        check_network(network, reader.locate)
    except MemoryError:
        raise ModelError(source.path, 0, "there is not enough memory to load this model") from None
    return network


class _Reader:
    """Reads layer files by name. Each place in the network takes one type, so nothing here can recurse."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def locate(self, name: str, key: str) -> tuple[Path, int]:
        """File and line of a layer's key, for messages.

        The file is parsed again: texts kept for a message would be most of what a small model takes.
        """
        file = self.source.path / name
        try:
            return file, parse_layer(file, self.source.read_text(name)).line(key)
        except (Refused, ModelError):
            return file, 0

    def network(self) -> ResNet:
        return ResNet(
            **self.text(MODEL, "the folder is a model only with this file", ResNet).plain(),
            conv1=self.leaf("conv1", Conv2d),
            quantize1=self.leaf("quantize1", Quantize),
            relu=self.leaf("relu", ReLU),
            maxpool=self.leaf("maxpool", MaxPool2d),
            layer1=self.stage("layer1"),
            layer2=self.stage("layer2"),
            layer3=self.stage("layer3"),
            layer4=self.stage("layer4"),
            avgpool=self.leaf("avgpool", AvgPool2d),
            fc=self.leaf("fc", Linear),
            scale=self.leaf("scale", Scale),
        )

    def stage(self, name: str) -> Sequential:
        count = self.children_count(self.text(name, "every ResNet has it", Sequential))
        return Sequential(name, tuple(self.block(f"{name}_{i}", name) for i in range(count)))

    def block(self, name: str, stage: str) -> Block:
        text = self.text(name, f"children_count of {stage} asks for it", Bottleneck, BasicBlock)
        parts: dict[str, Any] = {}
        kind, count = (BasicBlock, 2) if text.kind == KINDS[BasicBlock] else (Bottleneck, 3)
        for i in range(1, count + 1):
            parts[f"conv{i}"] = self.leaf(f"{name}_conv{i}", Conv2d)
            parts[f"quantize{i}"] = self.leaf(f"{name}_quantize{i}", Quantize)
        return kind(
            name=name,
            **text.plain(),
            **parts,
            relu=self.leaf(f"{name}_relu", ReLU),
            downsample=self.residual(f"{name}_downsample"),
        )

    def residual(self, name: str) -> Sequential | Quantize:
        text = self.text(name, "every block has a residual branch", Sequential, Quantize)
        if text.kind == KINDS[Quantize]:
            return self.leaf(name, Quantize)
        if self.children_count(text) != 3:
            where = self.locate(name, "children_count")
            raise ModelError(*where, "children_count must be 3: Conv2d, Quantize to s8, Quantize to s32")
        return Sequential(
            name,
            (
                self.leaf(f"{name}_0", Conv2d),
                self.leaf(f"{name}_1", Quantize),
                self.leaf(f"{name}_2", Quantize),
            ),
        )

    def children_count(self, text: LayerText) -> int:
        count: int = text.entries["children_count"].value
        if not 1 <= count <= MAX_CHILDREN:
            why = f"children_count={count} is out of range: 1..{MAX_CHILDREN} are possible"
            raise ModelError(text.file, text.line("children_count"), why)
        return count

    def leaf(self, name: str, kind: type[Leaf]) -> Leaf:
        text = self.text(name, "the network needs it", kind)
        values: dict[str, Any] = {"name": name, **text.plain()}
        for key, entry in text.tensors().items():
            values[key] = self.tensor(text.file, key, entry)
        if kind is Conv2d:
            values["weight_dtype"] = text.entries["weight"].value.dtype
        return kind(**values)

    def tensor(self, file: Path, key: str, entry: Entry) -> Array:
        declared: Declared = entry.value
        if key == "requant_factor":
            if declared.dims != (1, declared.count, 1, 1):
                raise ModelError(file, entry.line, f"{key}={declared} must have the shape 1 C 1 1")
            declared = Declared(declared.dtype, (declared.count,))
        try:
            return unpack(self.source.read_data(entry.data, declared.nbytes), declared)
        except (Refused, ValueError) as error:
            why = f"data file {shown(entry.data)} of {key}={entry.value} {error}"
            raise ModelError(file, entry.data_line, why) from None

    def text(self, name: str, needed: str, *kinds: type) -> LayerText:
        file = self.source.path / name
        try:
            data = self.source.read_text(name)
        except Refused as error:
            raise ModelError(file, 0, f"{error}; {needed}") from None
        text = parse_layer(file, data)
        allowed = [KINDS[kind] for kind in kinds]
        if text.kind not in allowed:
            raise ModelError(file, 1, f"{text.kind} cannot be here, only {' or '.join(allowed)}")
        return text
