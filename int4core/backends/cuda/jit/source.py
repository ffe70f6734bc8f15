"""A kernel's source: one self-contained text of its file, what that includes, and its `extern "C"` instantiation.

A kernel that has compile-time constants is a struct template in a file of the kernel's name, `ConvTile` for conv_tile:

    template <int TILE_N, bool WIDE>
    struct ConvTile {
      static constexpr int THREADS = ...;  // of a block
      static constexpr int BLOCKS = ...;   // that a multiprocessor should hold at once; may be left out
      static __device__ __forceinline__ void run(const unsigned* __restrict__ input, ..., const Shape& shape) {

Its function is made from that and takes `run`'s parameters: a reference to one of `structs` by value, another one (of a
tensor map, whose address counts) in the launch's own memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from int4core.errors import EngineError

FOLDER = Path(__file__).resolve().parents[3] / "kernels"

_INCLUDE = re.compile(r'^#include "([^"]+)"[ \t]*$', re.MULTILINE)
_ONCE = re.compile(r"^#pragma once[ \t]*\n", re.MULTILINE)
_RUN = re.compile(r"^  static __device__ __forceinline__ void run\(([^()]*)\)", re.MULTILINE)
_USING = re.compile(r"^  using (\w+) = ", re.MULTILINE)
_REFERENCE = re.compile(r"^const (\w+)& (\w+)$")
_SCALARS: Mapping[np.dtype[Any], str] = {
    np.dtype("u1"): "unsigned char",
    np.dtype("<u2"): "unsigned short",
    np.dtype("<i4"): "int",
    np.dtype("<u4"): "unsigned",
    np.dtype("<f4"): "float",
}
_POINTS_TO = "points_to"

Structs = Mapping[str, "np.dtype[Any]"]


def pointer(to: str) -> np.dtype[Any]:
    """A field that is an address on the device, uint64 for NumPy: in C++ `to*`, where `to` is a type of C++ itself."""
    return np.dtype("<u8", metadata={_POINTS_TO: to})


@dataclass(frozen=True)
class KernelSource:
    """A function of a file in int4core/kernels, or of a kernel that lies elsewhere, compiled with constants.

    Attributes:
        file: path below the kernels' folder, or an absolute one.
        function: the `extern "C"` kernel.
        constants: compile-time constants by name: the template's arguments.
        structs: what comes by value or in arrays, as NumPy has it; what one holds comes before it.
        elements: what lies in arrays in device memory and is read 16 bytes at a time, likewise.
    """

    file: str
    function: str
    constants: tuple[tuple[str, int], ...]
    structs: tuple[tuple[str, np.dtype[Any]], ...] = ()
    elements: tuple[tuple[str, np.dtype[Any]], ...] = ()

    @classmethod
    def of(
        cls,
        file: str,
        function: str,
        constants: Mapping[str, int],
        structs: Structs = MappingProxyType({}),
        elements: Structs = MappingProxyType({}),
    ) -> KernelSource:
        return cls(file, function, tuple(sorted(constants.items())), tuple(structs.items()), tuple(elements.items()))

    @property
    def text(self) -> str:
        """Everything the compiler sees.

        Raises:
            EngineError: a file is missing, or its template takes other constants.
        """
        names = dict(_SCALARS)
        parts = [_struct(f"alignas(16) {name}", dtype, names) for name, dtype in self.elements]
        for name, dtype in self.structs:
            parts.append(_struct(name, dtype, names))
            names[dtype] = name
        parts.append(flatten(self.file))
        if self.constants:
            parts.append(self._instantiation(parts[-1]))
        return "".join(parts)

    def _instantiation(self, text: str) -> str:
        """The function, made from its template in `text`."""
        template = "".join(word.capitalize() for word in self.function.split("_"))
        head = re.search(rf"^template <([^<>]*)>\nstruct {template} {{$", text, re.MULTILINE)
        run = _RUN.search(text, head.end()) if head else None
        if head is None or run is None:
            raise EngineError(f"{self.file}: no template {template} with a function `run`; install the package again")
        takes = [parameter.split() for parameter in head[1].split(",")]
        given = dict(self.constants)
        if {name for _, name in takes} != set(given):
            raise EngineError(f"{self.file}: {template} takes {head[1]}, not {', '.join(given)}")
        values = ", ".join(f"{kind}({given[name]})" for kind, name in takes)
        parameters = [" ".join(parameter.split()) for parameter in run[1].split(",")]
        own = "|".join(_USING.findall(text, head.end(), run.start())) or "(?!)"
        taken = [re.sub(rf"\b({own})\b", r"Kernel::\1", _REFERENCE.sub(self._by_value, one)) for one in parameters]
        arguments = ", ".join(parameter.split()[-1] for parameter in parameters)
        bounds = ["THREADS", "BLOCKS"] if re.search(r" BLOCKS = ", text[head.end() : run.start()]) else ["THREADS"]
        return (
            f"\nusing Kernel = {template}<{values}>;\n\n"
            f'extern "C" __global__ void __launch_bounds__({", ".join(f"Kernel::{bound}" for bound in bounds)})\n'
            f"    {self.function}({', '.join(taken)}) {{\n"
            f"  Kernel::run({arguments});\n}}\n"
        )

    def _by_value(self, reference: re.Match[str]) -> str:
        place = "" if reference[1] in dict(self.structs) else "__grid_constant__ "
        return f"const {place}{reference[1]} {reference[2]}"

    def __str__(self) -> str:
        return f"{self.function}({', '.join(f'{name}={value}' for name, value in self.constants)})"


def _struct(name: str, dtype: np.dtype[Any], names: Mapping[np.dtype[Any], str]) -> str:
    """The definition of a struct in C++; `names` are the types of fields, without gaps between them."""
    assert dtype.fields is not None
    fields = []
    for key, field in dtype.fields.items():
        counts = "".join(f"[{count}]" for count in field[0].shape)
        fields.append(f"  {_type(field[0].base, names)} {key}{counts};\n")
    plain = name.rpartition(" ")[2]
    return f"struct {name} {{\n{''.join(fields)}}};\nstatic_assert(sizeof({plain}) == {dtype.itemsize});\n"


def _type(dtype: np.dtype[Any], names: Mapping[np.dtype[Any], str]) -> str:
    metadata: Mapping[str, Any] = dtype.metadata or {}
    return f"{metadata[_POINTS_TO]}*" if _POINTS_TO in metadata else names[dtype]


@cache
def flatten(file: str) -> str:
    """The text of `file` with every `#include "..."` replaced by that file, each once.

    A file is looked for beside the one that includes it, then in the kernels' folder.
    """
    return _flatten(FOLDER / file, set())


def _flatten(path: Path, seen: set[Path]) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}; install the package again") from error

    def included(match: re.Match[str]) -> str:
        beside = path.parent / match[1]
        found = beside if beside.is_file() else FOLDER / match[1]
        if found in seen:
            return ""
        seen.add(found)
        return _flatten(found, seen)

    return _INCLUDE.sub(included, _ONCE.sub("", text))
