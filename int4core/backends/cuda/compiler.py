"""Kernels compiled once a machine: a cache of binaries on disk, keyed by everything that affects them.

The key is a hash of the flattened source with its constants, the target, NVRTC's options and version. Files are
written to another name and renamed, so that any number of processes may share the folder.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from int4core.atomic import write_atomically
from int4core.backends.cuda import nvrtc
from int4core.backends.cuda.source import KernelSource
from int4core.errors import EngineError

REQUIRE_CACHED = "INT4CORE_REQUIRE_CACHED"
"""Environment variable: when `1`, a kernel that is not in the cache is an error, so that nothing compiles unseen."""

CACHE_DIR = "INT4CORE_CACHE_DIR"
"""Environment variable: the folder, instead of `int4core` below XDG_CACHE_HOME or ~/.cache."""


def cache_folder() -> Path:
    named = os.environ.get(CACHE_DIR)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "int4core"


def cache_key(source: KernelSource, arch: str, compiler: str) -> str:
    """32 hex digits; `compiler` is NVRTC's version."""
    parts = (source.text, source.function, arch, compiler, *nvrtc.OPTIONS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Compiled:
    """Binaries by source, how many of them had to be compiled, and how long all of it took."""

    files: dict[KernelSource, Path]
    missed: int
    seconds: float

    def __str__(self) -> str:
        start = "warm" if self.missed == 0 else "cold"
        return f"{len(self.files)} kernels, {self.missed} compiled now: a {start} start of {self.seconds:.1f} s"


def compile_all(sources: Iterable[KernelSource], arch: str) -> Compiled:
    """The binary of each source for `arch`, from the cache or compiled side by side.

    Raises:
        EngineError: NVRTC is missing or refuses a source, the folder cannot be written, or something would have
            to be compiled although INT4CORE_REQUIRE_CACHED is 1.
    """
    began = time.perf_counter()
    library, folder = nvrtc.require_nvrtc(), cache_folder()
    compiler = nvrtc.version(library)
    files = {source: folder / f"{cache_key(source, arch, compiler)}.cubin" for source in sources}
    missing = [source for source, file in files.items() if not file.is_file()]
    if missing and os.environ.get(REQUIRE_CACHED) == "1":
        raise EngineError(
            f"{REQUIRE_CACHED}=1, and {len(missing)} of {len(files)} kernels for {arch} are not in {folder}, such as "
            f"{missing[0]}; run once without it"
        )

    def compile_one(source: KernelSource) -> None:
        try:
            write_atomically(files[source], nvrtc.compile_source(library, source, arch).cubin)
        except OSError as error:
            raise EngineError(
                f"{files[source]}: cannot be written: {error.strerror}; name a folder with {CACHE_DIR}"
            ) from error

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(compile_one, missing))
    return Compiled(files, len(missing), time.perf_counter() - began)
