"""Builds a kernel for the CPU with g++, and runs it on NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda.jit.source import KernelSource
from tests.kernels.emulator.translate import translate

FOLDER = Path(__file__).resolve().parent

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to emulate kernels")

EAGER, REVERSE, PROMPT = 1, 2, 4
"""Flags of a run: background copies happen at once; threads run in reverse order; products of wgmma happen at once."""

MOST_SHARED = 227 << 10
"""Dynamic shared memory of a launch that does not say how much it asks for: what no chip has more of."""

_ENTRY = """
template <typename... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
}
template <typename... A>
void call(void (*kernel)(A...), void** arguments) {
  call(kernel, arguments, std::index_sequence_for<A...>());
}
extern "C" const char* run(const int* grid, int threads, int shared_bytes, void** arguments, int flags) {
  const Index size = {grid[0], grid[1], grid[2]};
  return emulator::launch(size, {threads, 1, 1}, shared_bytes, [=] { call(FUNCTION, arguments); }, flags);
}
"""


class Emulated:
    """A kernel as a shared library in `folder`, as if compiled for `arch` (sm_75: 750)."""

    def __init__(self, source: KernelSource, folder: Path, arch: int = 800) -> None:
        text = f"#define __CUDA_ARCH__ {arch}\n" + translate(source.text) + _ENTRY.replace("FUNCTION", source.function)
        self.run = _build(text, folder).run
        self.run.restype = ctypes.c_char_p

    def __call__(
        self, grid: Sequence[int], threads: int, arguments: Sequence[Any], flags: int = 0,
        shared_bytes: int = MOST_SHARED,
    ) -> None:  # fmt: skip
        held = [np.ascontiguousarray(value) for value in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(value.ctypes.data for value in held))
        failure = self.run((ctypes.c_int * 3)(*grid), threads, shared_bytes, pointers, flags)
        assert failure is None, failure.decode()


def emulated_driver(folder: Path) -> ctypes.CDLL:
    """What `load_driver` gives on a machine with a GPU, as far as kernels need it: tensor maps, for the emulator."""
    return _build((FOLDER / "libcuda.cpp").read_text(), folder)


def _build(text: str, folder: Path) -> ctypes.CDLL:
    """C++ as a library in `folder`, made once."""
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    code, library = folder / f"{name}.cpp", folder / f"{name}.so"
    if not library.exists():
        code.write_text(text)
        command = [
            "g++", "-std=c++17", "-O1", "-frounding-math", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-fPIC",
            "-shared", "-w", f"-I{FOLDER}", str(code), "-o", str(library),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))
