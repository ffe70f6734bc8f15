"""The few array operations on which NumPy and torch differ; everything else is spelt alike in both.

All integer arithmetic is 32-bit and wraps, all real arithmetic is float32, so that both libraries give
the same image to within the last bits of their sines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A NumPy array or a torch tensor: both backends run the same code."""


@dataclass(frozen=True)
class Backend:
    """An array library: `xp` is its module, the rest is what `xp` spells differently."""

    xp: Any
    to_int: Callable[[Array], Array]
    to_float: Callable[[Array], Array]
    arange: Callable[[int], Array]
    choose: Callable[[Array, Sequence[Callable[[], Array]]], Array]
    """choose(index, branches): per image, the value of branches[index]; index is int (B, 1, 1)."""
    compiler: Callable[[Callable[..., Array]], Callable[..., Array]] | None = None
    """Turns a function of arrays into one fused kernel, or None to run it as it stands."""

    def leaf(self, function: Callable[..., Array]) -> Callable[..., Array]:
        """`function(*arrays, b)` with this backend filled in, fused where there is a compiler.

        Only the costly leaves of the renderer are fused: a compiler is slow on the whole of it.
        """
        return partial(function, b=self) if self.compiler is None else self.compiler(function)


def _choose_numpy(index: Array, branches: Sequence[Callable[[], Array]]) -> Array:
    """Evaluate only the branches that some image takes: on the CPU, images come one at a time."""
    used = np.unique(index)
    result = branches[int(used[0])]()
    for i in used[1:]:
        result = np.where(index == i, branches[int(i)](), result)
    return result


NUMPY = Backend(
    xp=np,
    to_int=lambda a: np.asarray(a).astype(np.int32),
    to_float=lambda a: np.asarray(a).astype(np.float32),
    arange=lambda n: np.arange(n, dtype=np.int32),
    choose=_choose_numpy,
)


def torch_backend(device: Any, *, fused: bool = False) -> Backend:
    """The torch backend on `device` (a torch.device or its name); `fused` compiles the leaves."""
    import torch

    def choose(index: Array, branches: Sequence[Callable[[], Array]]) -> Array:
        """Evaluate every branch: a kernel has no use for the question which ones some image takes."""
        result = branches[0]()
        for i, branch in enumerate(branches[1:], start=1):
            result = torch.where(index == i, branch(), result)
        return result

    plain = Backend(
        xp=torch,
        to_int=lambda a: torch.as_tensor(a, device=device).to(torch.int32),
        to_float=lambda a: a.to(torch.float32),
        arange=lambda n: torch.arange(n, dtype=torch.int32, device=device),
        choose=choose,
    )

    @cache
    def compiler(function: Callable[..., Array]) -> Callable[..., Array]:
        compiled: Callable[..., Array] = torch.compile(partial(function, b=plain), dynamic=False)
        return compiled

    return replace(plain, compiler=compiler) if fused else plain
