"""The exact executor for any machine: float32 BLAS on integers, one image group a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from int4core.arrays import on_host
from int4core.backends.host import HostBackend
from int4core.backends.numpy.blas_threads import BLAS, BlasThreads
from int4core.backends.numpy.program import Program
from int4core.backends.numpy.tiles import Array, Tile, Workspace, even_cuts
from int4core.backends.workers import Workers
from int4core.layers import Int8Array, Int32Array, Linear, ReLU, Scale
from int4core.options import NumpyOptions

if TYPE_CHECKING:
    from int4core.model import Model

GROUP = 4
"""Most images a thread takes at once: enough pixels in the last small maps, few enough to share evenly."""


class NumpyBackend(HostBackend):
    """Every sum is an integer that its float type holds exactly, which is proved from the weights at load.

    Args:
        model: a loaded model.
        batch_size: the most images of one call.
        options: image size and threads.

    Raises:
        EngineError: the input size does not fit, or the weights allow a sum of more than 32 bits.
    """

    name = "numpy"

    def __init__(self, model: Model, batch_size: int = 16, options: NumpyOptions | None = None) -> None:
        super().__init__(model, batch_size, options or NumpyOptions())
        self._program = Program(model.network, self.layers)
        self._pool = Workers(self.threads, "int4core-numpy")
        self._local = threading.local()

    def _sums(self, x: Int8Array) -> Int32Array:
        with limited(BLAS):
            groups = self._groups(len(x))
            parts = list(self._pool.map(lambda group: self._program.run(x[group], self._space()), groups))
        return np.concatenate(parts)

    def trace(self, x: Any) -> dict[str, Int32Array]:
        """Layer name -> int32 NCHW output (`fc`: (n, classes)), in running order."""
        x = on_host(x)
        outputs: dict[str, Int32Array] = {
            layer.name: np.zeros((len(x), layer.output.channels, layer.output.height, layer.output.width), np.int32)
            for layer in self.layers
            if not isinstance(layer.layer, (ReLU, Scale))
        }
        for group in self._groups(len(x)):

            def record(name: str, tile: Tile, values: Array, group: slice = group) -> None:
                outputs[name][group][tile.images, :, tile.rows] = values.transpose(0, 3, 1, 2)

            self._program.run(x[group], self._space(), record)
        for layer in self.layers:
            if isinstance(layer.layer, Linear):
                outputs[layer.name] = outputs[layer.name].reshape(len(x), -1)
        return outputs

    def close(self) -> None:
        self._pool.close()
        self._local = threading.local()

    def _groups(self, n: int) -> Iterator[slice]:
        """`n` images in equal parts: at least one for each thread if there are enough, none above GROUP."""
        return even_cuts(n, max(min(n, self.threads), -(-n // GROUP)))

    def _space(self) -> Workspace:
        space = getattr(self._local, "space", None)
        if space is None:
            space = self._local.space = Workspace()
        return space


def limited(blas: BlasThreads | None) -> contextlib.AbstractContextManager[None]:
    """BLAS on one thread for the duration; nothing when BLAS is not a known one."""
    return blas.limited() if blas else contextlib.nullcontext()
