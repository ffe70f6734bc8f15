"""The engine: int8 images in, class scores out, the same integers from every backend."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from int4core import scores
from int4core.arrays import alike, check_images, gpu_of, on_host
from int4core.backends import Backend, create_backend
from int4core.backends.base import Answer, Pending, Want
from int4core.errors import EngineError
from int4core.layers import Int32Array
from int4core.options import BackendOptions

if TYPE_CHECKING:
    from int4core.model import Model


class Engine:
    """A model on a backend.

    Inputs are int8 (N, 3, H, W), RGB, of any N including 0, split into batches of at most `batch_size`;
    the whole range -128..127 is exact. They are arrays of NumPy, CuPy, torch, or whatever has `__dlpack__`. Answers
    are arrays of the same library in the same memory; those of an array on the GPU are computed on the caller's current
    stream (CuPy's or torch's), without waiting for it. Use the engine from one thread at a time, as a context manager,
    or call `close`. In a forked process the CPU's engines compute as before, and a GPU's is an error.

    Args:
        model: a loaded model.
        backend: a name in `int4core.backends.BACKENDS`; `numpy` runs anywhere, `torch` several times as fast with the
            package's extra `torch`, `cuda` on NVIDIA GPUs.
        batch_size: the most images the backend gets at once.
        options: NumpyOptions, TorchOptions or CudaOptions; the backend's defaults without.

    Raises:
        EngineError: unknown backend, another one's options, a backend that cannot run here, a network it cannot run.
    """

    def __init__(
        self, model: Model, backend: str = "numpy", batch_size: int = 16, options: BackendOptions | None = None
    ) -> None:
        if batch_size < 1:
            raise EngineError(f"batch_size={batch_size}: at least 1 is needed")
        self._closed = False
        self.model = model
        self.batch_size = batch_size
        self.backend: Backend = create_backend(backend, model, batch_size, options)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(3, H, W) of one image."""
        return self.backend.input_shape

    @property
    def classes(self) -> int:
        return self.backend.classes

    def accumulators(self, x: Any) -> Any:
        """int32 (N, classes): the last linear layer's exact sums, before Scale."""
        return self._one(x, Want.SUMS)[0]

    def logits(self, x: Any) -> Any:
        """float32 (N, classes): accumulators / out_scale."""
        return self._one(x, Want.LOGITS)[0]

    def top1(self, x: Any) -> Any:
        """int32 (N,): the class of the largest float32 logit, the first of equals."""
        return self._one(x, Want.TOP1)[0]

    def top_k(self, x: Any, k: int) -> tuple[Any, Any]:
        """int32 (N, k) classes, the best first, and float32 (N, k) scores: their shares of the softmax of all classes.

        `int4core.scores` says which bits; the first column is `top1`. Raises EngineError when `k` is not 1..16, or more
        than there are classes.
        """
        scores.check_k(k, self.classes)
        ids, shares = self._one(x, Want.TOP_K, k)
        return ids, shares

    def stream(self, batches: Iterable[Any], k: int = 0) -> Iterator[Any]:
        """What `top1` gives for each input of `batches`, or `top_k` for k > 0, in their order.

        On a GPU, inputs are copied to it under the kernels of those before: the next ones are taken from `batches`
        before an answer is given, so an input must not be changed before its answer is there. Raises as they do.
        """
        if k:
            scores.check_k(k, self.classes)
        for found in self._flow(batches, Want.TOP_K if k else Want.TOP1, k):
            yield found if k else found[0]

    def trace(self, x: Any) -> dict[str, Int32Array]:
        """Layer name -> its integer output, NumPy NCHW (`fc`: (N, classes)), in running order.

        Convolutions give their sums with bias, before residual and ReLU; a backend that fuses layers has only the
        outputs of the fused ones. For comparing backends layer by layer; it holds every layer of all N images,
        112 MB per image for ResNet-50, so keep N small. `x` lies in host memory.
        """
        self._check(x)
        if not x.shape[0]:
            raise EngineError("trace needs at least one image")
        with self.backend.placed(x):
            traces = [self.backend.trace(batch) for batch in self._batches(x)]
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

    def _one(self, x: Any, want: Want, k: int = 0) -> Answer:
        (found,) = self._flow((x,), want, k)
        return found

    def _flow(self, inputs: Iterable[Any], want: Want, k: int) -> Iterator[Answer]:
        """The answers of each input, with as many inputs begun before one is waited for as the backend takes."""
        begun: deque[tuple[Any, list[Pending]]] = deque()
        for x in inputs:
            self._check(x)
            with self.backend.placed(x):
                begun.append((x, [self.backend.begin(batch, want, k) for batch in self._batches(x)]))
            if len(begun) == self.backend.depth:
                yield self._finish(*begun.popleft())
        while begun:
            yield self._finish(*begun.popleft())

    def _finish(self, x: Any, pending: list[Pending]) -> Answer:
        if self._closed:
            raise EngineError("the engine was closed before its answers were taken")
        with self.backend.placed(x):
            parts = [wait() for wait in pending]
            columns = zip(*parts, strict=True)
            return tuple(alike(x, np.concatenate(c) if len(parts) > 1 else c[0]) for c in columns)

    def _check(self, x: Any) -> None:
        if self._closed:
            raise EngineError("the engine is closed: make another one")
        check_images(x, self.input_shape)

    def _batches(self, x: Any) -> Iterator[Any]:
        """`x` in parts of at most `batch_size`; one empty part of none."""
        if gpu_of(x) is None:
            x = on_host(x)  # what speaks DLPack need have neither a length nor slices
        for start in range(0, max(len(x), 1), self.batch_size):
            yield x[start : start + self.batch_size]
