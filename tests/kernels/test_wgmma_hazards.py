"""No register that a wgmma under way reads or writes is touched before it is waited for.

The compiler takes a wgmma for done when it is issued; the kernels pin registers where that matters. Whether that is
enough shows only in the machine code: ptxas 13.0 once turned a condition into moves between the fragments of the stem,
one of them still read by the tensor cores, and the sums were wrong. The code is read in the order of its addresses.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families.table import candidates
from int4core.backends.cuda.jit.nvrtc import compile_source, find_nvrtc
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import joined
from int4core.model import Model
from int4core.tuning.static.sass import Instruction, disassemble, find_nvdisasm
from tests.paths import ROOT

NVRTC = find_nvrtc()
CHIP = CHIPS["h200"]
_REGISTER = re.compile(r"\bR(\d+)")
_WIDTHS = {".64": 2, ".128": 4}

pytestmark = pytest.mark.skipif(
    NVRTC is None or find_nvdisasm() is None, reason="needs the nvidia-cuda-nvrtc and nvidia-cuda-nvdisasm wheels"
)


def sources() -> list[KernelSource]:
    """A wgmma kernel of every number and function on the default model, on shapes that differ as much as they can."""
    chosen: dict[tuple[str, object, object], KernelSource] = {}
    single = fuse(Model.load(ROOT / "model").network, 64)
    for op in (*single, *joined(single)):
        for kernel in candidates(op, CHIP):
            source = kernel.source
            if "wgmma" in source.file:
                constants = dict(source.constants)
                key = (
                    source.function,
                    constants.get("RESIDUAL", constants.get("K_OUT")),
                    (constants.get("K_BYTES", constants.get("C_IN")), kernel.number),
                )
                chosen.setdefault(key, source)
    # Of each function and residual, every fourth: all of them take minutes (`make check-all`).
    return sorted(chosen.values(), key=str)[:: 1 if os.environ.get("INT4CORE_TEST_ALL") == "1" else 4]


def registers(operand: str, count: int) -> set[int]:
    match = _REGISTER.search(operand)
    return set(range(int(match[1]), int(match[1]) + count)) if match else set()


def split(instruction: Instruction) -> list[str]:
    return [operand.strip() for operand in instruction.operands.split(",") if operand.strip()]


def touched(instruction: Instruction) -> tuple[set[int], set[int]]:
    """(written, read); more than that is counted as read where an operand is wide."""
    width = next((n for mark, n in _WIDTHS.items() if mark in instruction.name), 1)
    operands = [operand for operand in split(instruction) if not operand.startswith(("P", "UP", "!"))]
    stores = instruction.name.startswith(("ST", "RED", "BRA", "BAR", "SYNCS", "UTMA", "R2UR", "ISETP", "PLOP"))
    written = registers(operands[0], width) if operands and not stores else set()
    read = {int(n) for operand in operands[0 if stores else 1 :] for n in _REGISTER.findall(operand)}
    return written, read


def hazards(code: Sequence[Instruction]) -> Iterator[str]:
    groups: list[tuple[set[int], set[int]]] = []  # committed: (sums, fragments) of each group under way
    sums: set[int] = set()
    fragments: set[int] = set()
    for instruction in code:
        operands = split(instruction)
        if instruction.base == "IGMMA":
            columns = int(re.search(r"\.64x(\d+)x32", instruction.name)[1])  # type: ignore[index]
            sums |= registers(operands[0], columns // 2)
            fragments |= registers(operands[1], 4)
            if "gsb0" in operands:
                groups.append((sums, fragments))
                sums, fragments = set(), set()
        elif instruction.name.startswith("WARPGROUP.DEPBAR"):
            left = int(operands[-1], 16)
            groups = groups[len(groups) - left :] if left else []
        else:
            written, read = touched(instruction)
            busy_sums = sums.union(*(group[0] for group in groups))
            busy_fragments = fragments.union(*(group[1] for group in groups))
            if written & (busy_sums | busy_fragments) or read & busy_sums:
                yield str(instruction)


@pytest.mark.parametrize("source", sources() if NVRTC else [], ids=str)
def test_registers_of_products_under_way_are_left_alone(source: KernelSource) -> None:
    assert isinstance(NVRTC, Path)
    code = disassemble(compile_source(NVRTC, source, CHIP.arch).cubin)
    assert code.counts()["IGMMA"] >= 2
    assert list(hazards(code.instructions)) == []


def test_the_reader_sees_a_hazard() -> None:
    def make(text: str) -> Instruction:
        name, _, operands = text.partition(" ")
        return Instruction(name, "", operands)

    product = make("IGMMA.64x64x32.S8.S8 R24, R88, gdesc[UR8], R24, gsb0")
    wait = make("WARPGROUP.DEPBAR.LE gsb0, 0x0")
    assert list(hazards([product, make("IADD3 R8, R88, R9, RZ"), wait, make("MOV R88, R8")])) == []
    assert len(list(hazards([product, make("MOV R89, R8"), wait]))) == 1  # a fragment
    assert len(list(hazards([product, make("FADD R8, R55, R9"), wait]))) == 1  # a sum
