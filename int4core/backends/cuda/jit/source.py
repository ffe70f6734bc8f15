"""A kernel's source: one self-contained text, made from its file, what it includes, and its constants."""

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


@dataclass(frozen=True)
class KernelSource:
    """A function of a file in int4core/kernels, or of a kernel that lies elsewhere, compiled with constants.

    Attributes:
        file: path below the kernels' folder, or an absolute one.
        function: the `extern "C"` kernel.
        defines: compile-time constants, by name: of the scope around the file, so that no header's names are theirs.
        structs: arguments by value, as NumPy has them; what one holds comes before it.
    """

    file: str
    function: str
    defines: tuple[tuple[str, int], ...]
    structs: tuple[tuple[str, np.dtype[Any]], ...] = ()

    @classmethod
    def of(
        cls,
        file: str,
        function: str,
        defines: Mapping[str, int],
        structs: Mapping[str, np.dtype[Any]] = MappingProxyType({}),
    ) -> KernelSource:
        return cls(file, function, tuple(sorted(defines.items())), tuple(structs.items()))

    @property
    def text(self) -> str:
        """Everything the compiler sees. Raises EngineError when a file is missing."""
        constants = "".join(f"constexpr int {name} = {value};\n" for name, value in self.defines)
        names: dict[np.dtype[Any], str] = {np.dtype("<i4"): "int"}
        structs = []
        for name, dtype in self.structs:
            structs.append(_struct(name, dtype, names))
            names[dtype] = name
        return constants + "".join(structs) + flatten(self.file)

    def __str__(self) -> str:
        return f"{self.function}({', '.join(f'{name}={value}' for name, value in self.defines)})"


def _struct(name: str, dtype: np.dtype[Any], names: Mapping[np.dtype[Any], str]) -> str:
    """The definition of a struct in C++; `names` are the types of fields, without gaps between them."""
    assert dtype.fields is not None
    fields = "".join(f"  {names[field[0]]} {key};\n" for key, field in dtype.fields.items())
    return f"struct {name} {{\n{fields}}};\nstatic_assert(sizeof({name}) == {dtype.itemsize});\n"


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
