"""What the compiler sees of a kernel besides its file: constants, and the structs that NumPy has."""

from __future__ import annotations

import pytest

from int4core.backends.cuda.families.conv_tile import CONV_SHAPE, WINDOW
from int4core.backends.cuda.jit.source import KernelSource

SOURCE = KernelSource.of("mean.cu", "mean", {"SIZE": 7, "THREADS": 256}, {"Window": WINDOW, "ConvShape": CONV_SHAPE})


def test_constants_are_no_macros_and_structs_are_numpy_s() -> None:
    text = SOURCE.text
    assert text.startswith("constexpr int SIZE = 7;\nconstexpr int THREADS = 256;\nstruct Window {\n  int h;\n")
    assert "struct ConvShape {\n  int pixels;\n  int p;\n  int q;\n  Window input;\n  Window residual;\n" in text
    assert f"static_assert(sizeof(ConvShape) == {CONV_SHAPE.itemsize});" in text
    assert "#define" not in text


def test_a_struct_before_what_it_holds_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        _ = KernelSource.of("mean.cu", "mean", {}, {"ConvShape": CONV_SHAPE, "Window": WINDOW}).text
