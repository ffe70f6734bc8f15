"""What every kernel offers the program: its source, how it is launched, and the constants it wants in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.ops import Op

Arguments: TypeAlias = tuple[Any, ...]
"""NumPy scalars, in the kernel's order: addresses as uint64, numbers as int32, structures as they are."""

Grid: TypeAlias = tuple[int, int, int]


def resident_grid(chip: Chip, tiles: int, columns: int = 1) -> Grid:
    """A block a multiprocessor, which takes one tile after another: `columns` of output channels, each with `tiles`."""
    return min(tiles, max(1, chip.multiprocessors // columns)), columns, 1


class Kernel(Protocol):
    """One operation on one entry of the kernel table.

    Attributes:
        op: the operation.
        number: the entry, as tuning files name it; None for an operation with a single kernel.
        source: what is compiled.
        grid, threads, shared_bytes: the launch; `shared_bytes` is the dynamic part.
        layout: what the constants depend on besides the layer: equal layouts share them.
    """

    @property
    def op(self) -> Op: ...

    @property
    def number(self) -> int | None: ...

    @property
    def source(self) -> KernelSource: ...

    @property
    def grid(self) -> Grid: ...

    @property
    def threads(self) -> int: ...

    @property
    def shared_bytes(self) -> int: ...

    @property
    def layout(self) -> str: ...

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        """Weights and channel constants, arranged for this kernel."""
        ...

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        """The kernel's arguments, from the addresses of tensors by name and of `constants()` in order."""
        ...


WORKSPACE = "workspace"
"""The name, among the tensors of `Kernel.arguments`, of what a HasWorkspace works in."""


@runtime_checkable
class HasWorkspace(Protocol):
    """A kernel that needs memory which is zero when it starts, and zero again when it is done.

    Each launch has its own: batches that are under way at once do not meet in it. It is zeroed when it is allocated,
    and never again: a kernel that has started ends, or its whole context is lost.
    """

    @property
    def workspace_bytes(self) -> int: ...


def address(value: int) -> np.uint64:
    return np.uint64(value)
