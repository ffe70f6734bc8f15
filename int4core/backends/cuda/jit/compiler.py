"""Kernels compiled once a machine: what is not in the cache is compiled side by side, by one process, and kept there.

The key is a hash of the flattened source with its constants, the target, NVRTC's options and version.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from int4core.backends.cuda.jit import nvrtc
from int4core.backends.cuda.jit.cache import HEX_DIGITS, KernelCache, cache_folder
from int4core.backends.cuda.jit.source import KernelSource
from int4core.cores import usable_cores
from int4core.errors import EngineError

REQUIRE_CACHED = "INT4CORE_REQUIRE_CACHED"
"""Environment variable: when `1`, a kernel that is not in the cache is an error, so that nothing compiles unseen."""


def cache_key(source: KernelSource, arch: str, compiler: str) -> str:
    """HEX_DIGITS hex digits; `compiler` is NVRTC's version."""
    parts = (source.text, source.function, arch, compiler, *nvrtc.OPTIONS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:HEX_DIGITS]


@dataclass(frozen=True)
class Compiled:
    """Binaries by source.

    Attributes:
        missed: how many of them had to be compiled.
        seconds: how long all of it took.
        damaged: how many of the missed were in the cache with another content than the one that was kept there.
    """

    files: dict[KernelSource, Path]
    missed: int
    seconds: float
    damaged: int = 0

    def __str__(self) -> str:
        start = "warm" if self.missed == 0 else "cold"
        damaged = f" ({self.damaged} damaged in the cache)" if self.damaged else ""
        compiled = f"{len(self.files)} kernels, {self.missed} compiled now{damaged}"
        return f"{compiled}: a {start} start of {self.seconds:.1f} s"


def compile_all(sources: Iterable[KernelSource], arch: str) -> Compiled:
    """The binary of each source for `arch` (PTX where NVRTC does not know it), from the cache or compiled side by side.

    Raises:
        EngineError: NVRTC is missing or refuses a source, the cache cannot be used (see KernelCache), or something
            would have to be compiled although INT4CORE_REQUIRE_CACHED is 1.
    """
    began = time.perf_counter()
    library, cache = nvrtc.require_nvrtc(), KernelCache(cache_folder())
    compiler, arch = nvrtc.version(library), nvrtc.target(library, arch)
    keys = {source: cache_key(source, arch, compiler) for source in sources}
    found = cache.find(set(keys.values()))
    files = {source: found.files[key] for source, key in keys.items() if key in found.files}
    missing = [source for source in keys if source not in files]
    if missing and os.environ.get(REQUIRE_CACHED) == "1":
        raise EngineError(
            f"{REQUIRE_CACHED}=1, and {len(missing)} of {len(keys)} kernels for {arch} are not in {cache.folder}, such "
            f"as {missing[0]}; run once without it"
        )

    def compile_one(source: KernelSource) -> Path:
        return cache.keep(keys[source], nvrtc.compile_source(library, source, arch).cubin)

    if missing:
        with cache.locked():
            # What another process compiled while this one waited is there.
            late = cache.find({keys[source] for source in missing})
            files |= {source: late.files[keys[source]] for source in missing if keys[source] in late.files}
            missing = [source for source in missing if source not in files]
            with ThreadPoolExecutor(usable_cores()) as pool:
                files |= zip(missing, pool.map(compile_one, missing), strict=True)
    return Compiled(files, len(missing), time.perf_counter() - began, found.damaged)
