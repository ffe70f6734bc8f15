"""How many threads NumPy's BLAS uses, while one of our own threads works on each image.

One single-threaded matrix product a core, next to the element-wise work of the same thread, keeps every
core busy; the BLAS's own threads would leave all but one idle outside the products, and wait for each
other by spinning, which is slow where other processes use the cores too. The count belongs to the whole
process, so it is lowered only while an engine runs, and put back by the last one to finish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy  # noqa: F401 - its BLAS is loaded with it
from threadpoolctl import ThreadpoolController


@dataclass
class BlasThreads:
    """Thread count of a loaded BLAS: `get` reads it, `put` sets it."""

    get: Callable[[], int]
    put: Callable[[int], None]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _users: int = 0
    _outside: int = 0

    @contextmanager
    def limited(self) -> Iterator[None]:
        """One BLAS thread inside; the count found by the first user comes back after the last."""
        with self._lock:
            if self._users == 0:
                self._outside = self.get()
                self.put(1)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self.put(self._outside)


def find_blas() -> BlasThreads | None:
    """The BLAS that NumPy has loaded (OpenBLAS, MKL, BLIS), or None when it is one whose threads cannot be set."""
    found = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    own = [library for library in found if "numpy" in library.filepath] or found
    return BlasThreads(get=own[0].get_num_threads, put=own[0].set_num_threads) if own else None


BLAS = find_blas()
"""Shared by every engine of the process, as the thread count is."""
