"""Which keys each layer type has, in the order in which they are written, and how values are spelt."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from int4core.layers import (
    AvgPool2d,
    BasicBlock,
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

_INT = r"(?:0|[1-9][0-9]{0,9})"
_INT_LIMIT = 2**31


@dataclass(frozen=True)
class Plain:
    """A value that stands in the text itself.

    Attributes:
        example: a well-formed value, for messages.
        parse: text -> value; raises ValueError.
        show: value -> text; `show(parse(text)) == text` for every text that parses.
    """

    example: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str]


@dataclass(frozen=True)
class Tensor:
    """A value whose text declares type and shape, and whose data lie in a file of their own."""

    dtypes: tuple[str, ...]
    rank: int

    @property
    def example(self) -> str:
        return str(Declared(self.dtypes[0], (8,) * self.rank))


Codec: TypeAlias = Plain | Tensor

BITS = {"s4": 4, "s8": 8, "s16": 16, "u16": 16, "s32": 32, "f32": 32}
"""Bits of one stored value of each tensor type."""


@dataclass(frozen=True)
class Declared:
    """What a tensor's text says of it: `s4,4:64 64 1 1`."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def count(self) -> int:
        return prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes of its data; an odd number of s4 values leaves half a byte unused."""
        return (self.count * BITS[self.dtype] + 7) // 8

    def __str__(self) -> str:
        return f"{self.dtype},{len(self.dims)}:{' '.join(map(str, self.dims))}"


def parse_int(text: str) -> int:
    """Raises ValueError for any spelling but the one that `str` gives, and from 2^31 on."""
    if not re.fullmatch(_INT, text) or int(text) >= _INT_LIMIT:
        raise ValueError("not a whole number below 2^31, in digits and without leading zeros")
    return int(text)


def parse_tensor(text: str, codec: Tensor) -> Declared:
    """Raises ValueError when `text` is no declaration or one that `codec` does not allow."""
    match = re.fullmatch(rf"([a-z][0-9]+),([0-9]):({_INT}(?: {_INT})*)", text)
    if not match:
        raise ValueError("not a tensor declaration")
    declared = Declared(match[1], tuple(parse_int(dim) for dim in match[3].split(" ")))
    if declared.dtype not in codec.dtypes:
        raise ValueError(f"its type must be {' or '.join(codec.dtypes)}")
    if int(match[2]) != codec.rank or len(declared.dims) != codec.rank:
        raise ValueError(f"it must have {codec.rank} dimensions")
    if 0 in declared.dims:
        raise ValueError("no dimension may be 0")
    return declared


def _parse_pair(text: str) -> tuple[int, int]:
    match = re.fullmatch(rf"2:({_INT}) ({_INT})", text)
    if not match:
        raise ValueError("not two numbers")
    return parse_int(match[1]), parse_int(match[2])


def _parse_flag(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError("neither True nor False")
    return text == "True"


def _parse_mode(text: str) -> str:
    if not re.fullmatch(r"(?:[suf][1-9][0-9]?)+", text):
        raise ValueError("not a run of type names")
    return text


MODE = Plain("u4s4s32", _parse_mode, str)
INT = Plain("64", parse_int, str)
FLAG = Plain("True", _parse_flag, str)
PAIR = Plain("2:1 1", _parse_pair, lambda pair: f"2:{pair[0]} {pair[1]}")

SCHEMA: dict[str, dict[str, Codec]] = {
    "Conv2d": {
        "compute_mode": MODE,
        "in_channels": INT,
        "out_channels": INT,
        "kernel_size": PAIR,
        "stride": PAIR,
        "padding": PAIR,
        "dilation": PAIR,
        "groups": INT,
        "bias": Tensor(("s16",), 1),
        "weight": Tensor(("s4", "s8"), 4),
    },
    "Quantize": {
        "compute_mode": MODE,
        "output_bits": INT,
        "shift_bits": INT,
        "max_requant": INT,
        "requant_factor": Tensor(("u16",), 4),
    },
    "ReLU": {"compute_mode": MODE, "inplace": FLAG},
    "MaxPool2d": {
        "compute_mode": MODE,
        "kernel_size": INT,
        "stride": INT,
        "padding": INT,
        "dilation": INT,
        "return_indices": FLAG,
        "ceil_mode": FLAG,
    },
    "AvgPool2d": {
        "compute_mode": MODE,
        "kernel_size": INT,
        "stride": INT,
        "padding": INT,
        "ceil_mode": FLAG,
        "count_include_pad": FLAG,
    },
    "Linear": {
        "compute_mode": MODE,
        "in_features": INT,
        "out_features": INT,
        "bias": Tensor(("s32",), 1),
        "weight": Tensor(("s8",), 2),
    },
    "Scale": {"compute_mode": MODE, "out_scale": Tensor(("f32",), 1)},
    "Sequential": {"children_count": INT},
    "BottleneckQuantized": {"stride": INT, "downsample_layer": FLAG},
    "BasicBlockQuantized": {"stride": INT, "downsample_layer": FLAG},
    "ResNetQuantized": {"compute_mode": MODE},
}

KINDS: dict[type, str] = {
    Conv2d: "Conv2d",
    Quantize: "Quantize",
    ReLU: "ReLU",
    MaxPool2d: "MaxPool2d",
    AvgPool2d: "AvgPool2d",
    Linear: "Linear",
    Scale: "Scale",
    Sequential: "Sequential",
    Bottleneck: "BottleneckQuantized",
    BasicBlock: "BasicBlockQuantized",
    ResNet: "ResNetQuantized",
}
"""Layer class -> the type name on the first line of its file."""
