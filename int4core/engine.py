"""The engine: int8 images in, class scores out, the same integers from every backend."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from int4core import scores
from int4core.backends import Backend, create_backend
from int4core.errors import EngineError
from int4core.layers import Float32Array, Int8Array, Int32Array
from int4core.quantize import dequantize_logits

if TYPE_CHECKING:
    from int4core.model import Model


class Engine:
    """A model on a backend.

    Inputs are int8 (N, 3, H, W), RGB, of any N including 0, split into batches of at most `batch_size`;
    the whole range -128..127 is exact. Use it as a context manager, or call `close`.

    Args:
        model: a loaded model.
        backend: a name in `int4core.backends.BACKENDS`; `numpy` runs anywhere, `cuda` on NVIDIA GPUs.
        batch_size: the most images the backend gets at once.
        options: the backend's own, such as `input_size`, `threads` (numpy), `gpu` and `autoconfig` (cuda).

    Raises:
        EngineError: unknown backend or option, a backend that cannot run here, a network it cannot run.
    """

    def __init__(self, model: Model, backend: str = "numpy", batch_size: int = 16, **options: Any) -> None:
        if batch_size < 1:
            raise EngineError(f"batch_size={batch_size}: at least 1 is needed")
        self._closed = False
        self.model = model
        self.batch_size = batch_size
        self._out_scale = model.network.scale.out_scale
        self.backend: Backend = create_backend(backend, model, batch_size=batch_size, **options)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(3, H, W) of one image."""
        return self.backend.input_shape

    @property
    def classes(self) -> int:
        return self.backend.classes

    def accumulators(self, x: Int8Array) -> Int32Array:
        """int32 (N, classes): the last linear layer's exact sums, before Scale."""
        parts = [self.backend.accumulators(batch) for batch in self._batches(x)]
        return np.concatenate(parts) if parts else np.empty((0, self.classes), np.int32)

    def logits(self, x: Int8Array) -> Float32Array:
        """float32 (N, classes): accumulators / out_scale."""
        return dequantize_logits(self.accumulators(x), self._out_scale)

    def top1(self, x: Int8Array) -> Int32Array:
        """int32 (N,): the class of the largest float32 logit, the first of equals."""
        parts = [self._top1(batch) for batch in self._batches(x)]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def _top1(self, batch: Int8Array) -> Int32Array:
        classes = self.backend.top1(batch)
        if classes is None:
            logits = dequantize_logits(self.backend.accumulators(batch), self._out_scale)
            classes = logits.argmax(axis=1).astype(np.int32)
        return classes

    def top_k(self, x: Int8Array, k: int) -> tuple[Int32Array, Float32Array]:
        """int32 (N, k) classes, the best first, and float32 (N, k) scores: their shares of the softmax of all classes.

        `int4core.scores` says which bits; the first column is `top1`. Raises EngineError when `k` is not 1..16, or more
        than there are classes.
        """
        scores.check_k(k, self.classes)
        parts = [self._top_k(batch, k) for batch in self._batches(x)]
        if not parts:
            return np.empty((0, k), np.int32), np.empty((0, k), np.float32)
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([shares for _, shares in parts])

    def _top_k(self, batch: Int8Array, k: int) -> tuple[Int32Array, Float32Array]:
        found = self.backend.top_k(batch, k)
        return found or scores.top_k(self.backend.accumulators(batch), self._out_scale, k)

    def trace(self, x: Int8Array) -> dict[str, Int32Array]:
        """Layer name -> its integer output, NCHW (`fc`: (N, classes)), in running order.

        Convolutions give their sums with bias, before residual and ReLU; a backend that fuses layers has only the
        outputs of the fused ones. For comparing backends layer by layer; it holds every layer of all N images,
        112 MB an image for ResNet-50, so keep N small.
        """
        traces = [self.backend.trace(batch) for batch in self._batches(x)]
        if not traces:
            raise EngineError("trace needs at least one image")
        return {name: np.concatenate([t[name] for t in traces]) for name in traces[0]}

    def close(self) -> None:
        """Give back the backend's threads and memory; the engine computes nothing after it. May be called twice."""
        self._closed = True
        self.backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _batches(self, x: Int8Array) -> Iterator[Int8Array]:
        if self._closed:
            raise EngineError("the engine is closed: make another one")
        if not isinstance(x, np.ndarray) or x.dtype != np.int8:
            found = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise EngineError(f"input is {found}, but must be a NumPy array of int8")
        if x.ndim != 4 or x.shape[1:] != self.input_shape:
            wanted = ", ".join(map(str, self.input_shape))
            raise EngineError(f"input has shape {x.shape}, but must be (N, {wanted})")
        for start in range(0, len(x), self.batch_size):
            yield np.ascontiguousarray(x[start : start + self.batch_size])
