"""The exact executor for CPUs with PyTorch and Numba: an image group a thread, as the NumPy executor has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from int4core.arrays import on_host
from int4core.backends.host import HostBackend
from int4core.backends.numpy.tiles import Array, even_cuts
from int4core.backends.torch.convolution import check_library
from int4core.backends.torch.program import Program
from int4core.backends.workers import Workers
from int4core.layers import Int8Array, Int32Array
from int4core.options import TorchOptions

if TYPE_CHECKING:
    from int4core.model import Model

GROUP = 8
"""Most images a thread takes at once: each layer's weights are read once for all of them."""


class TorchBackend(HostBackend):
    """Every sum and every rescaled value is an integer that its float type holds, which is proved at load.

    Args:
        model: a loaded model.
        batch_size: the most images of one call.
        options: image size and threads.

    Raises:
        EngineError: the input size does not fit, the weights allow a sum of more than 32 bits, or this PyTorch lacks
            oneDNN's convolution of integers, or rounds in another way.
    """

    name = "torch"

    def __init__(self, model: Model, batch_size: int = 16, options: TorchOptions | None = None) -> None:
        super().__init__(model, batch_size, options or TorchOptions())
        self._pool = Workers(self.threads, "int4core-torch", _one_thread)
        group = next(self._groups(batch_size))
        try:
            self._pool.submit(check_library).result()
            self._program = self._pool.submit(Program, model.network, self.layers, group.stop - group.start).result()
        except BaseException:
            self._pool.close()
            raise

    def _sums(self, x: Int8Array) -> Int32Array:
        return np.concatenate(list(self._pool.map(lambda group: self._program.run(x[group]), self._groups(len(x)))))

    def trace(self, x: Any) -> dict[str, Int32Array]:
        """Layer name -> int32 NCHW output (`fc`: (n, classes)), in running order.

        Those of every convolution and of every Quantize but the residual branches', which are parts of the block's end.
        """
        x = np.ascontiguousarray(on_host(x))
        found: dict[str, Int32Array] = {}

        def record(name: str, some: slice, values: Array) -> None:
            if name not in found:
                _, height, width, channels = values.shape
                found[name] = np.zeros((len(x), channels, height, width), np.int32)
            found[name][some] = values.transpose(0, 3, 1, 2)

        self._pool.submit(self._program.run, x, record).result()
        outputs = {layer.name: found[layer.name] for layer in self.layers if layer.name in found}
        return outputs | {self._program.fc: outputs[self._program.fc].reshape(len(x), -1)}

    def close(self) -> None:
        self._pool.close()

    def _groups(self, n: int) -> Iterator[slice]:
        """`n` images in equal parts: at least one for each thread if there are enough, none above GROUP."""
        return even_cuts(n, max(min(n, self.threads), -(-n // GROUP)))


def _one_thread() -> None:
    """One OpenMP thread for what the calling thread starts; OpenMP keeps the count for each thread on its own.

    Threads that share a layer wait for each other after every one of its 60; those that share the images never do.
    """
    torch.get_num_threads()  # a thread's first call sets its count to PyTorch's: it comes before ours
    for library in ThreadpoolController().select(user_api="openmp").lib_controllers:
        library.set_num_threads(1)
