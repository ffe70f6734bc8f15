"""What C libraries do in a loader behind Python's back is kept in bounds: what they print, and what they allocate.

Both act on the whole process and are for one that decodes and does nothing else.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

STDOUT, STDERR = 1, 2
MOST_SHOWN = 200


class NativeOutput:
    """Keeps what is written to the process's standard output and error, past Python, until it is asked for.

    Python's own `sys.stdout` and `sys.stderr` go on to where they went.
    """

    def __init__(self) -> None:
        self._streams = sys.stdout, sys.stderr
        self._saved = _duplicate(STDOUT), _duplicate(STDERR)
        sys.stdout, sys.stderr = (
            os.fdopen(os.dup(saved), "w", buffering=1, errors="backslashreplace") for saved in self._saved
        )
        kept = _unnamed_file()
        for number in (STDOUT, STDERR):
            os.dup2(kept, number)
        os.close(kept)

    def take(self) -> str:
        """What has come since the last call: one line of printable characters, cut to MOST_SHOWN."""
        if not os.lseek(STDERR, 0, os.SEEK_CUR):
            return ""
        said = os.pread(STDERR, 2 * MOST_SHOWN, 0).decode(errors="replace")
        self.drop()
        plain = " ".join("".join(c if c.isprintable() else " " for c in said).split())
        return plain if len(plain) <= MOST_SHOWN else f"{plain[:MOST_SHOWN]}..."

    def drop(self) -> None:
        """Forget what has come."""
        if os.lseek(STDERR, 0, os.SEEK_CUR):
            os.ftruncate(STDERR, 0)
            os.lseek(STDERR, 0, os.SEEK_SET)

    def close(self) -> None:
        """Put everything back."""
        for stream in (sys.stdout, sys.stderr):
            stream.close()
        sys.stdout, sys.stderr = self._streams
        for saved, number in zip(self._saved, (STDOUT, STDERR), strict=True):
            os.dup2(saved, number)
            os.close(saved)


def _duplicate(number: int) -> int:
    """Another number for an open file; where it was closed, one that goes nowhere."""
    try:
        return os.dup(number)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def _unnamed_file() -> int:
    """An empty file that ends with its last descriptor; in memory where the system can."""
    in_memory: Callable[[str], int] | None = getattr(os, "memfd_create", None)
    if in_memory is not None:
        return in_memory("native output")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def limit_memory(more: int) -> None:
    """Let this process allocate `more` bytes on top of what it has; beyond, allocations fail.

    Memory that is shared does not count. Systems other than Linux have no such limit.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except OSError:
        return
    # pyarrow's own allocator sets a gigabyte aside at once, which counts as well.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = pages * resource.getpagesize() + more
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
