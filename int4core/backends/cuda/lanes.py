"""Batches under way on a GPU: each lane has device memory, a stream and pinned memory of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.base import Answer, Pending, Want
from int4core.backends.cuda.families.head import TopK
from int4core.backends.cuda.jit.launch import Launch
from int4core.backends.cuda.network import DeviceBatch, DeviceNetwork, top_parts
from int4core.backends.cuda.plan.ops import TopOp
from int4core.layers import Int8Array

_PINNED = 1
"""cudaMemoryTypeHost, of cudaPointerGetAttributes."""

PIECE_BYTES = 4 << 20
"""A thread copies about as much to pinned memory at a time."""


class Lane:
    """Memory and a graph for batches of at most `n` images, and one batch under way.

    What is begun on a lane first finishes what was begun before. Inputs in host memory come and go on the lane's own
    stream, through pinned memory unless they lie there; those on the GPU are computed on CuPy's current stream.
    """

    def __init__(self, network: DeviceNetwork, n: int, copiers: ThreadPoolExecutor) -> None:
        self._network = network
        self._cupy = network.cupy
        self._batch: DeviceBatch = network.batch(n)
        self._copiers = copiers
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._done = self._cupy.cuda.Event(disable_timing=True)
        self._pinned: dict[str, npt.NDArray[Any]] = {}
        self._tops: dict[int, tuple[Launch, Any, Any]] = {}
        self._scale: Any = None
        self._job = _Job(tuple)
        self._job()

    @property
    def idle(self) -> bool:
        """Whether the answer of what was begun has been taken."""
        return self._job.over

    def begin_on_host(self, x: Int8Array, want: Want, k: int) -> Pending:
        """Copy, compute and copy back; the answer is NumPy arrays."""
        self._settle()
        batch, stream, n = self._batch, self._stream, len(x)
        source = x if self._is_pinned(x) else self._stage(x)
        with self._in_turn(stream), stream:
            if n:
                batch.input[:n].set(source, stream=stream)
            batch.run(stream)
            outputs = self._outputs(want, k, n)
            targets = [self._place(f"{want} {i}", array) for i, array in enumerate(outputs)]
            for array, target in zip(outputs, targets, strict=True):
                array.get(stream=stream, out=target, blocking=False)
        self._job = _Job(lambda: self._collect(source, targets))
        return self._job

    def begin_on_device(self, x: Any, want: Want, k: int) -> Pending:
        """`x` is a CuPy array; so is the answer, there in the order of the current stream."""
        self._settle()
        batch, n = self._batch, len(x)
        stream = self._cupy.cuda.get_current_stream()
        with self._in_turn(stream):
            self._cupy.copyto(batch.input[:n], x)
            batch.run(stream)
            answer = tuple(array.copy() for array in self._outputs(want, k, n))
        return lambda: answer

    @contextmanager
    def _in_turn(self, stream: Any) -> Iterator[None]:
        """What `stream` is asked for here comes after the batch before, which another stream may run.

        The next batch comes after it, even if half of it cannot be asked for.
        """
        stream.wait_event(self._done)
        try:
            yield
        finally:
            self._done.record(stream)

    def wait(self) -> None:
        """Until nothing of it is under way: whoever has its memory next does not wait for it."""
        self._done.synchronize()

    def _settle(self) -> None:
        """Its last batch's answer is taken from the memory that the next one uses."""
        self._job()

    def _collect(self, source: Int8Array, targets: list[npt.NDArray[Any]]) -> Answer:
        """`source` is held until it has been read."""
        self._done.synchronize()
        return tuple(target.copy() for target in targets)

    def _outputs(self, want: Want, k: int, n: int) -> tuple[Any, ...]:
        """Device arrays of the batch, those of TOP_K and LOGITS computed now on the current stream."""
        batch = self._batch
        if want is Want.SUMS:
            return (batch.sums[:n],)
        if want is Want.TOP1:
            return (batch.top1[:n],)
        if want is Want.LOGITS:
            if self._scale is None:
                self._scale = self._cupy.asarray(self._network.model.network.scale.out_scale)
            return (batch.sums[:n].astype(np.float32) / self._scale,)
        launch, ids, shares = self._top(k)
        launch()
        return ids[:n], shares[:n]

    def _top(self, k: int) -> tuple[Launch, Any, Any]:
        """The kernel that finds the best `k` in the batch's sums, and what it writes."""
        if k not in self._tops:
            op = self._batch.plan.steps[-1].op
            assert isinstance(op, TopOp)
            kernel = TopK(replace(op, k=k))
            memory = self._cupy.empty(kernel.op.output.bytes, np.uint8)
            (launch,) = self._network.launches((kernel,), {**self._batch.addresses, op.target: memory.data.ptr})
            _, ids, shares = top_parts(memory, self._batch.n)
            # What comes before it on the stream is a graph, which ends as a whole.
            self._tops[k] = replace(launch, overlap=False), ids, shares
        return self._tops[k]

    def _is_pinned(self, x: Int8Array) -> bool:
        if not x.flags.c_contiguous:
            return False
        attributes = self._cupy.cuda.runtime.pointerGetAttributes(x.ctypes.data)
        return bool(attributes.type == _PINNED)

    def _stage(self, x: Int8Array) -> Int8Array:
        """A copy in pinned memory: from any other, the driver would copy piece by piece while the caller waits."""
        staged: Int8Array = self._place("input", x, len(self._batch.input))
        rows = max(1, PIECE_BYTES // math.prod(x.shape[1:]))
        pieces = [slice(first, first + rows) for first in range(0, len(x), rows)]
        list(self._copiers.map(lambda piece: np.copyto(staged[piece], x[piece]), pieces))
        return staged

    def _place(self, name: str, like: Any, most: int | None = None) -> npt.NDArray[Any]:
        """Pinned memory of this name for an array of this shape and dtype, of `most` rows at the most."""
        shape = tuple(like.shape)
        rows = max(1, len(self._batch.input) if most is None else most)
        key = f"{name} {shape[1:]}"
        if key not in self._pinned:
            count = rows * math.prod(shape[1:])
            memory = self._cupy.cuda.alloc_pinned_memory(count * like.dtype.itemsize)
            self._pinned[key] = np.frombuffer(memory, like.dtype, count).reshape(rows, *shape[1:])
        return self._pinned[key][: shape[0]]


class _Job:
    """A Pending that waits once."""

    def __init__(self, wait: Callable[[], Answer]) -> None:
        self._wait = wait
        self._answer: Answer | None = None

    @property
    def over(self) -> bool:
        return self._answer is not None

    def __call__(self) -> Answer:
        if self._answer is None:
            self._answer = self._wait()
            self._wait = tuple  # what it held is free
        return self._answer


def as_cupy(cupy: Any, x: Any) -> Any:
    """An array on the GPU as CuPy sees it, no copy; CuPy's current stream waits for what writes it."""
    return x if isinstance(x, cupy.ndarray) else cupy.from_dlpack(x)
