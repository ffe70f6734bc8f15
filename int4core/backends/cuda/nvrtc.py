"""Compile a kernel for a chip that need not be here: NVRTC from its wheel, with ptxas's report."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from int4core.errors import EngineError

KERNELS = Path(__file__).resolve().parents[2] / "kernels"


def find_nvrtc() -> Path | None:
    """The newest libnvrtc of an installed nvidia wheel, or None."""
    spec = find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [lib for place in places for lib in Path(place).glob("*/lib/libnvrtc.so.*")]
    return max(found, default=None)


@dataclass(frozen=True)
class Report:
    """A compiled kernel: bytes spilled, whether wgmma had to be serialised, and the binary."""

    spilled: int
    serialised: bool
    cubin: bytes


def compile_kernel(library: Path, name: str, defines: dict[str, int], arch: str) -> Report:
    """Compile int4core/kernels/`name` for `arch` (such as `sm_90a`), with `library` as NVRTC.

    Raises EngineError with the compiler's log when it fails.
    """
    nvrtc = ctypes.CDLL(str(library))
    program = ctypes.c_void_p()
    source = (KERNELS / name).read_bytes()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None):
        raise EngineError(f"{library}: NVRTC does not take the program {name}")
    options = [f"--gpu-architecture={arch}", "-std=c++17", f"-I{KERNELS}", "--ptxas-options=-v"]
    options += [f"-D{key}={value}" for key, value in defines.items()]
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    text = log.value.decode()
    if status:
        raise EngineError(f"{name} does not compile for {arch}:\n{text}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    if not spills:
        raise EngineError(f"{name}: ptxas gave no report of its spills:\n{text}")
    return Report(sum(int(a) + int(b) for a, b in spills), "serialized" in text, cubin.raw)
