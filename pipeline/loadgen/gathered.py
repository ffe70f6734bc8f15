"""Short queries that gather in a LoadGen of tools.build_loadgen until the next batch is made of them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from pipeline.arrays import Ids, Indices

# The functions of such a build (tools/loadgen_arrays.h).
TAKE, CALL_AT = "TakeGathered", "CallAt"


class Gathered:
    """Those of one test: `pipeline.session.batches.Gathering`. Thread-safe; after `close` there are none."""

    def __init__(self, lg: Any, sut: int) -> None:
        self._take = getattr(lg, TAKE)
        self._call_at = getattr(lg, CALL_AT)
        self._sut: int | None = sut
        self._lock = threading.Lock()

    def take(self) -> tuple[Ids, Indices, float] | None:
        with self._lock:
            if self._sut is None:
                return None
            samples, since = self._take(self._sut)
        if not len(samples):
            return None
        return samples["id"], samples["index"].view(np.int64), since

    def call_at(self, count: int) -> bool:
        with self._lock:
            return self._sut is not None and bool(self._call_at(self._sut, count))

    def close(self) -> None:
        """To be called before LoadGen's side of it is destroyed."""
        with self._lock:
            self._sut = None
