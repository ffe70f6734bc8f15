"""gather.cu itself, on a CPU where threads are emulated, and through the cache of binaries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from int4core.backends.cuda.jit import nvrtc
from int4core.backends.cuda.jit.cache import CACHE_DIR
from int4core.backends.cuda.jit.compiler import REQUIRE_CACHED, compile_all
from int4core.errors import EngineError
from pipeline.device.transfer import BLOCKS, KERNEL, THREADS, WORD_BYTES
from tests.kernels.emulator.driver import REVERSE, Emulated, needs_compiler

TILE = 8 * THREADS
"""Words that a block copies at a time."""


@pytest.fixture(scope="module")
def gather(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated(KERNEL, tmp_path_factory.mktemp("gather"))


@needs_compiler
@pytest.mark.parametrize("flags", [0, REVERSE])
@pytest.mark.parametrize(
    ("words", "slot_words", "count"),
    [(1, 1, 3), (THREADS + 1, THREADS + 16, 2), (TILE, TILE, 3), (TILE + 1, TILE + 8, 20), (9408, 9408, 4)],
    ids=["one word", "padded", "a tile", "more jobs than blocks", "an image of ResNet-50"],
)
def test_samples_come_by_slot_and_nothing_else_is_written(
    gather: Emulated, words: int, slot_words: int, count: int, flags: int
) -> None:
    rng = np.random.default_rng(words)
    slots = 24
    arena = rng.integers(0, 1 << 32, (slots, slot_words, 4), dtype=np.uint32)
    chosen = rng.integers(0, slots, count, dtype=np.int32)  # with repeats, in no order
    chosen[0] = slots - 1
    places = count + 1
    out = np.full((places, words, 4), 0xA5A5A5A5, np.uint32)
    expected = out.copy()
    expected[:count] = arena[chosen, :words]
    arguments = (
        np.uint64(arena.ctypes.data),
        np.uint64(chosen.ctypes.data),
        np.uint64(out.ctypes.data),
        np.int64(slot_words),
        np.int32(words),
        np.int32(count),
    )
    assert arena.ctypes.data % WORD_BYTES == out.ctypes.data % WORD_BYTES == 0
    gather((BLOCKS, 1, 1), THREADS, arguments, flags)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.skipif(nvrtc.find_nvrtc() is None, reason="needs the nvidia-cuda-nvrtc wheel")
def test_the_kernel_is_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path))
    monkeypatch.setenv(REQUIRE_CACHED, "1")
    with pytest.raises(EngineError, match=r"1 of 1 kernels for sm_90a are not in .*, such as gather\(\)"):
        compile_all([KERNEL], "sm_90a")
    monkeypatch.delenv(REQUIRE_CACHED)
    for arch in ("sm_75", "sm_80", "sm_90a"):
        assert compile_all([KERNEL], arch).missed == 1
    monkeypatch.setenv(REQUIRE_CACHED, "1")
    assert compile_all([KERNEL], "sm_90a").missed == 0
