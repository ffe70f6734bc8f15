"""What the Python of this process takes: it runs one thread at a time, whatever the machine has.

The kernel counts the CPU seconds of a process. Those that its threads spend in libraries which let go of the
interpreter for long are no part of it, and are counted where they are spent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()
_beside_s = 0.0


@contextmanager
def beside_python() -> Iterator[None]:
    """What this thread does meanwhile runs beside Python: a library's work without the interpreter."""
    global _beside_s
    began_s = time.thread_time()
    try:
        yield
    finally:
        with _lock:
            _beside_s += time.thread_time() - began_s


def python_s() -> float:
    """CPU seconds of this process so far, those `beside_python` left out."""
    with _lock:
        return time.process_time() - _beside_s
