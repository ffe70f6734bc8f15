"""How many threads NumPy's OpenBLAS uses, while one of our own threads works on each image.

One single-threaded matrix product a core, next to the element-wise work of the same thread, keeps every
core busy; OpenBLAS's own threads would leave all but one idle outside the products, and wait for each
other by spinning, which is slow where other processes use the cores too. The count belongs to the whole
process, so it is lowered only while an engine runs, and put back by the last one to finish.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_PREFIXES = ("scipy_openblas", "openblas")
_SUFFIXES = ("64_", "_64", "")


@dataclass
class BlasThreads:
    """Thread count of one loaded OpenBLAS; `get` and `put` are its own functions."""

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
    """The OpenBLAS that NumPy has loaded, or None when it uses another BLAS (MKL, Accelerate)."""
    for path in _candidates():
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
                if get is not None and put is not None:
                    put.argtypes, put.restype = [ctypes.c_int], None
                    return BlasThreads(get=get, put=put)
    return None


def _candidates() -> Iterator[Path]:
    """Shared libraries named openblas: first those of NumPy's wheel, then any this process has mapped."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".libs", package / ".dylibs"):
        yield from sorted(folder.glob("*openblas*"))
    maps = Path("/proc/self/maps")
    if maps.exists():
        fields = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
        yield from sorted({Path(f[5]) for f in fields if len(f) == 6 and "openblas" in Path(f[5]).name})


OPENBLAS = find_blas()
"""Shared by every engine of the process, as the thread count is."""
