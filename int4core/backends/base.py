"""What the engine asks of a backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum, auto
from typing import Any, Protocol, TypeAlias

import numpy as np

from int4core import scores
from int4core.layers import Float32Array, Int32Array
from int4core.quantize import dequantize_logits


class Want(Enum):
    """What is asked of a batch."""

    SUMS = auto()
    """int32 (n, classes): the linear layer's sums with bias, before Scale."""

    LOGITS = auto()
    """float32 (n, classes): the sums over out_scale."""

    TOP1 = auto()
    """int32 (n,): the first class with the largest logit."""

    TOP_K = auto()
    """int32 (n, k) and float32 (n, k): the best classes and their scores, the bits of `int4core.scores`."""


Answer: TypeAlias = tuple[Any, ...]
"""The arrays that a Want names."""

Pending: TypeAlias = Callable[[], Answer]
"""Waits for a batch and gives its answer; may be called again."""


class Backend(Protocol):
    """Runs one network on batches of at most `batch_size` images of one size.

    The engine checks dtype and shape and splits long inputs before it calls, so `x` is always int8 (n, *input_shape)
    with n <= batch_size, over the full range -128..127, in any memory and of any strides. Calls come from one thread
    at a time. Every backend gives the same integers.

    Attributes:
        name: what `Engine(backend=...)` calls it.
        batch_size: the most images of one call.
        input_shape: (3, H, W).
        classes: outputs of the last linear layer.
        depth: batches that it has under way at once.
    """

    @property
    def name(self) -> str: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int, int, int]: ...

    @property
    def classes(self) -> int: ...

    @property
    def depth(self) -> int: ...

    def placed(self, x: Any) -> AbstractContextManager[None]:
        """Inside, calls for `x` are made. Raises EngineError when the backend cannot read the memory it lies in."""
        ...

    def begin(self, x: Any, want: Want, k: int = 0) -> Pending:
        """Start a batch. Its answer comes as NumPy arrays for `x` in host memory, else as CuPy arrays.

        `k`, of TOP_K: 1..16, and not more than `classes`.
        """
        ...

    def trace(self, x: Any) -> dict[str, Int32Array]:
        """Layer name -> its output, int32 NCHW, in running order.

        `maxpool`, `avgpool`, `fc` (n, classes) and the Quantize that ends a fused operation: quantize1, 2 and 3 of
        every block; a backend that does not fuse also gives every convolution (sums with bias, before residual
        and ReLU) and the other Quantizes. The names are the model directory's.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory; the backend is not used after it. May be called twice."""
        ...


def answer(sums: Int32Array, out_scale: Float32Array, want: Want, k: int) -> Answer:
    """What is wanted of the sums int32 (n, classes)."""
    if want is Want.SUMS:
        return (sums,)
    if want is Want.TOP_K:
        return scores.top_k(sums, out_scale, k)
    logits = dequantize_logits(sums, out_scale)
    return (logits,) if want is Want.LOGITS else (logits.argmax(axis=1).astype(np.int32),)
