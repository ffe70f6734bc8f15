"""A kernel's machine code: its instructions, and its loops, from nvdisasm."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from int4core.errors import EngineError

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)\s*([^;]*);")
_LABEL = re.compile(r"^(\.L\w+):")
_TARGET = re.compile(r"`\((\.L\w+)\)")


def find_nvdisasm() -> Path | None:
    """nvdisasm of an installed nvidia wheel, else of a CUDA toolkit, or None."""
    spec = find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [tool for place in places for tool in Path(place).glob("*/bin/nvdisasm")]
    on_path = shutil.which("nvdisasm", path="/usr/local/cuda/bin") or shutil.which("nvdisasm")
    return max(found, default=Path(on_path) if on_path else None)


@dataclass(frozen=True)
class Instruction:
    """One of the listing.

    Attributes:
        name: with its modifiers, such as `IMMA.16864.U4.S4`.
        predicate: `P0` or `!P0`; `` for none.
        operands: as nvdisasm writes them.
    """

    name: str
    predicate: str
    operands: str

    @property
    def base(self) -> str:
        return self.name.partition(".")[0]

    @property
    def target(self) -> str | None:
        """The label that a branch goes to."""
        match = _TARGET.search(self.operands) if self.base == "BRA" else None
        return match[1] if match else None


@dataclass(frozen=True)
class Loop:
    """Instructions `first` to `last`, the branch back."""

    first: int
    last: int

    def __contains__(self, other: Loop) -> bool:
        return self.first <= other.first and other.last <= self.last


@dataclass(frozen=True)
class Listing:
    """A function: `labels` are places in `instructions`."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    @classmethod
    def parse(cls, text: str) -> Listing:
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for line in text.splitlines():
            if label := _LABEL.match(line):
                labels[label[1]] = len(instructions)
            elif found := _INSTRUCTION.match(line):
                instructions.append(Instruction(found[3], found[2] or "", found[4].strip()))
        return cls(tuple(instructions), labels)

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """Every branch back, outer loops and inner ones.

        Not the one that ends a function by standing still, and none across an unconditional EXIT: those come from code
        that was moved behind the end, such as waiting once more.
        """
        ends = [place for place, i in enumerate(self.instructions) if i.base == "EXIT" and not i.predicate]
        found: dict[int, int] = {}
        for place, instruction in enumerate(self.instructions):
            first = self.labels.get(instruction.target or "")
            if first is not None and first < place and not any(first < end < place for end in ends):
                found[first] = max(place, found.get(first, 0))
        return tuple(Loop(first, last) for first, last in sorted(found.items()))

    def loop_of(self, base: str) -> Loop:
        """The loop with the most instructions `base`, and of several that have as many the innermost.

        Raises EngineError when no loop has one.
        """
        counts = {loop: self.counts(loop)[base] for loop in self.loops}
        if not any(counts.values()):
            raise EngineError(f"the code has no loop with {base}")
        return max(counts, key=lambda loop: (counts[loop], loop.first - loop.last))

    def part(self, loop: Loop) -> tuple[Instruction, ...]:
        return self.instructions[loop.first : loop.last + 1]

    def counts(self, loop: Loop | None = None) -> Counter[str]:
        """How often each base name stands in a loop, or in the whole function."""
        return Counter(i.base for i in (self.part(loop) if loop else self.instructions))


def disassemble(cubin: bytes) -> Listing:
    """The function of a binary that has one. Raises EngineError without nvdisasm, or when it fails."""
    tool = find_nvdisasm()
    if tool is None:
        raise EngineError("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(tool), "-c", file.name], capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"{tool}: {done.stderr.strip()}")
    return Listing.parse(done.stdout)
