"""What the engine asks of a backend."""

from __future__ import annotations

from typing import Protocol

from int4core.layers import Float32Array, Int8Array, Int32Array


class Backend(Protocol):
    """Runs one network on batches of at most `batch_size` images of one size.

    The engine checks dtype and shape and splits long inputs before it calls, so `x` is always a
    C-contiguous int8 (n, *input_shape) with 1 <= n <= batch_size, over the full range -128..127.
    Calls come from one thread at a time. Every backend gives the same integers.

    Attributes:
        name: what `Engine(backend=...)` calls it.
        batch_size: the most images of one call.
        input_shape: (3, H, W).
        classes: outputs of the last linear layer.
    """

    @property
    def name(self) -> str: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int, int, int]: ...

    @property
    def classes(self) -> int: ...

    def accumulators(self, x: Int8Array) -> Int32Array:
        """int32 (n, classes): the linear layer's sums with bias, before Scale."""
        ...

    def trace(self, x: Int8Array) -> dict[str, Int32Array]:
        """Layer name -> its output, int32 NCHW, in running order.

        `maxpool`, `avgpool`, `fc` (n, classes) and the Quantize that ends a fused operation: quantize1, 2 and 3 of
        every block; a backend that does not fuse also gives every convolution (sums with bias, before residual
        and ReLU) and the other Quantizes. The names are the model directory's.
        """
        ...

    def top1(self, x: Int8Array) -> Int32Array | None:
        """int32 (n,) classes if the backend computes them itself, else None: the engine then does."""
        ...

    def top_k(self, x: Int8Array, k: int) -> tuple[Int32Array, Float32Array] | None:
        """Classes (n, k) and scores (n, k), the bits of `int4core.scores`, or None: the engine then computes them.

        1 <= k <= 16, and not more than `classes`.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory; the backend is not used after it. May be called twice."""
        ...
