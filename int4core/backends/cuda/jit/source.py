"""A kernel's source: one self-contained text, made from its file, what it includes, and its constants."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
        defines: compile-time constants, by name.
    """

    file: str
    function: str
    defines: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, file: str, function: str, defines: Mapping[str, int]) -> KernelSource:
        return cls(file, function, tuple(sorted(defines.items())))

    @property
    def text(self) -> str:
        """Everything the compiler sees. Raises EngineError when a file is missing."""
        constants = "".join(f"#define {name} {value}\n" for name, value in self.defines)
        return constants + flatten(self.file)

    def __str__(self) -> str:
        return f"{self.function}({', '.join(f'{name}={value}' for name, value in self.defines)})"


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
