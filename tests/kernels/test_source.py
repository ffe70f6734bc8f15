"""What the compiler sees of a kernel besides its file: the structs that NumPy has, and the template's instantiation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from int4core.backends.cuda.families.conv_tile import CONV_SHAPE, WINDOW
from int4core.backends.cuda.families.epilogue import CHANNEL_PAIR, ELEMENTS
from int4core.backends.cuda.families.head import MEAN_SHAPE
from int4core.backends.cuda.jit.nvrtc import compile_source, find_nvrtc
from int4core.backends.cuda.jit.source import FOLDER, KernelSource, pointer
from int4core.errors import EngineError

NVRTC = find_nvrtc()
MEAN = KernelSource.of("mean.cu", "mean", {"SIZE": 7, "WARPS": 8, "ROWS_AT_ONCE": 1}, {"MeanShape": MEAN_SHAPE})
TILE = """
template <int TILE_N, bool WIDE>
struct MyTile {
  using Pair = int;

  static constexpr int THREADS = 32;
  static constexpr int BLOCKS = 2;

  static __device__ __forceinline__ void run(const TensorMap& map, const Pair* __restrict__ pairs,
                                             const ConvShape& shape) {
  }
};
"""
STRUCTS = {"Window": WINDOW, "ConvShape": CONV_SHAPE}


@pytest.fixture
def tile(tmp_path: Path) -> str:
    file = tmp_path / "my_tile.cu"
    file.write_text(TILE)
    return str(file)


def test_structs_are_numpy_s() -> None:
    text = KernelSource.of("mean.cu", "mean", {}, STRUCTS, ELEMENTS).text
    assert text.startswith("struct alignas(16) ChannelPair {\n  int offset[2];\n  float factor[2];\n")
    assert f"static_assert(sizeof(ChannelPair) == {CHANNEL_PAIR.itemsize});" in text
    assert "struct ConvShape {\n  int pixels;\n  int p;\n  int q;\n  Window input;\n  Window residual;\n" in text
    assert f"static_assert(sizeof(ConvShape) == {CONV_SHAPE.itemsize});" in text


def test_fields_of_a_struct_may_be_bytes_and_addresses() -> None:
    record = np.dtype([("out", pointer("const unsigned char")), ("sums", pointer("int"), 2), ("table", "u1", (4, 16)),
                       ("size", "<u2"), ("pad", "u1", 6)])  # fmt: skip
    text = KernelSource.of("mean.cu", "mean", {}, {"Record": record}).text
    fields = ["const unsigned char* out", "int* sums[2]", "unsigned char table[4][16]", "unsigned short size"]
    assert text.startswith("struct Record {\n" + "".join(f"  {field};\n" for field in fields))
    assert "static_assert(sizeof(Record) == 96);" in text


@pytest.mark.skipif(NVRTC is None, reason="needs the nvidia-cuda-nvrtc wheel")
def test_a_struct_that_lies_otherwise_in_cpp_is_not_compiled() -> None:
    apart = np.dtype([("size", "<u2"), ("count", "<u4")])
    with pytest.raises(EngineError, match="static assertion failed"):
        compile_source(NVRTC, KernelSource.of("mean.cu", "mean", {}, {"Apart": apart}), "sm_80")


def test_a_template_s_function_is_made_from_it(tile: str) -> None:
    text = KernelSource.of(tile, "my_tile", {"WIDE": 1, "TILE_N": 64}, STRUCTS).text
    assert text.endswith(
        "\nusing Kernel = MyTile<int(64), bool(1)>;\n\n"
        'extern "C" __global__ void __launch_bounds__(Kernel::THREADS, Kernel::BLOCKS)\n'
        "    my_tile(const __grid_constant__ TensorMap map, const Kernel::Pair* __restrict__ pairs, "
        "const ConvShape shape) {\n"
        "  Kernel::run(map, pairs, shape);\n}\n"
    )
    assert "__launch_bounds__(Kernel::THREADS)\n    mean(" in MEAN.text


def test_nothing_is_defined_around_a_header() -> None:
    for text in (MEAN.text, *(file.read_text() for file in FOLDER.rglob("*.cu*"))):
        assert "#define" not in text
    assert not MEAN.text.startswith("constexpr")


def test_constants_without_a_template_are_a_mistake(tile: str) -> None:
    with pytest.raises(EngineError, match="no template Others with a function `run`"):
        _ = KernelSource.of(tile, "others", {"TILE_N": 64}, STRUCTS).text


def test_constants_that_the_template_does_not_take_are_a_mistake(tile: str) -> None:
    for constants, names in (({"TILE_N": 64}, "TILE_N"), ({"TILE_N": 64, "WIDE": 0, "DEEP": 1}, "DEEP, TILE_N, WIDE")):
        with pytest.raises(EngineError, match=f"MyTile takes int TILE_N, bool WIDE, not {names}$"):
            _ = KernelSource.of(tile, "my_tile", constants, STRUCTS).text


def test_a_struct_before_what_it_holds_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        _ = KernelSource.of("mean.cu", "mean", {}, {"ConvShape": CONV_SHAPE, "Window": WINDOW}).text
