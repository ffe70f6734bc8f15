"""What the assembler made of a kernel: its instructions, read from the binary by nvdisasm."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Za-z0-9_.]*)\s*([^;]*);")


@dataclass(frozen=True)
class Instruction:
    """`predicate` is empty where there is none; operands are as nvdisasm writes them."""

    address: int
    predicate: str
    opcode: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        guard = f"@{self.predicate} " if self.predicate else ""
        return f"{self.address:04x}: {guard}{self.opcode} {', '.join(self.operands)}"


@cache
def find_nvdisasm() -> Path | None:
    """The one of the wheel nvidia-cuda-nvdisasm, else of a CUDA toolkit on PATH."""
    spec = find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [file for place in places for file in Path(place).glob("*/bin/nvdisasm")]
    on_path = shutil.which("nvdisasm")
    return next(iter(found), Path(on_path) if on_path else None)


needs_nvdisasm = pytest.mark.skipif(find_nvdisasm() is None, reason="needs nvdisasm: pip install nvidia-cuda-nvdisasm")


def instructions(cubin: bytes) -> list[Instruction]:
    """All instructions of a binary with one kernel, in the order of their addresses."""
    nvdisasm = find_nvdisasm()
    assert nvdisasm is not None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([nvdisasm, "-c", file.name], check=True, capture_output=True, text=True).stdout
    return list(_parse(text))


def _parse(text: str) -> Iterator[Instruction]:
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            operands = tuple(part.strip() for part in match[4].split(",") if part.strip())
            yield Instruction(int(match[1], 16), match[2] or "", match[3], operands)
