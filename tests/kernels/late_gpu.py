"""A GPU that does nothing before somebody waits for it: what is not ordered can then be had in any order."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np


class LateStream:
    """Does what it is asked for when `run_to` says so, or a stream or an event that somebody waits for."""

    def __init__(self, gpu: LateGpu) -> None:
        self._gpu = gpu
        self._before: list[LateStream] = []
        self.asked: list[Callable[[], object]] = []
        self.done = 0

    def ask(self, work: Callable[[], object]) -> None:
        self.asked.append(work)

    def run_to(self, place: int) -> None:
        """Do the first `place` things that were asked for, if they are not done."""
        while self.done < place:
            self.done += 1
            self.asked[self.done - 1]()

    def synchronize(self) -> None:
        self.run_to(len(self.asked))

    def wait_event(self, event: LateEvent) -> None:
        self.ask(event.reached())

    def __enter__(self) -> LateStream:
        self._before.append(self._gpu.current)
        self._gpu.current = self
        return self

    def __exit__(self, *_error: object) -> None:
        self._gpu.current = self._before.pop()


class LateEvent:
    def __init__(self) -> None:
        self.reached: Callable[[], Callable[[], object]] = lambda: lambda: None

    def record(self, stream: LateStream) -> None:
        place = len(stream.asked)
        self.reached = lambda: lambda: stream.run_to(place)

    def synchronize(self) -> None:
        self.reached()()


class LateArray:
    """An array on that GPU."""

    def __init__(self, gpu: LateGpu, array: np.ndarray) -> None:
        self._gpu = gpu
        self.array = array
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes
        self.data = SimpleNamespace(ptr=array.ctypes.data, memset_async=self._memset_async)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, place: Any) -> LateArray:
        return LateArray(self._gpu, self.array[place])

    def view(self, dtype: Any) -> LateArray:
        return LateArray(self._gpu, self.array.view(dtype))

    def reshape(self, *shape: Any) -> LateArray:
        return LateArray(self._gpu, self.array.reshape(*shape))

    def set(self, source: np.ndarray, stream: LateStream) -> None:
        stream.ask(lambda: np.copyto(self.array, source))

    def get(self, stream: LateStream, out: np.ndarray, blocking: bool) -> None:
        assert not blocking
        stream.ask(lambda: np.copyto(out, self.array))

    def copy(self) -> LateArray:
        copied = LateArray(self._gpu, np.full_like(self.array, -1))
        self._gpu.copyto(copied, self)
        return copied

    def _memset_async(self, value: int, size: int) -> None:
        self._gpu.current.ask(lambda: self.array.view(np.uint8).reshape(-1)[:size].fill(value))


class LateGpu:
    """As much of CuPy as lanes and batches use.

    Attributes:
        null, current: streams.
    """

    uint8, int8, int32 = np.uint8, np.int8, np.int32

    def __init__(self) -> None:
        self.null = self.current = LateStream(self)
        self.cuda = SimpleNamespace(
            Stream=lambda **_options: LateStream(self),
            Event=lambda **_options: LateEvent(),
            get_current_stream=lambda: self.current,
            alloc_pinned_memory=bytearray,
            memory=SimpleNamespace(OutOfMemoryError=MemoryError),
            runtime=SimpleNamespace(pointerGetAttributes=lambda _address: SimpleNamespace(type=0)),
        )

    def copyto(self, target: LateArray, source: LateArray) -> None:
        self.current.ask(lambda: np.copyto(target.array, source.array))

    def empty(self, size: int, dtype: Any) -> LateArray:
        return LateArray(self, np.full(size, 255, dtype))
