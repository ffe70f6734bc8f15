"""The driver's launch call: what cuLaunchKernelEx gets to see, without a driver."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda.jit import launch
from int4core.backends.cuda.jit.launch import Launch
from int4core.errors import EngineError

STREAM, FUNCTION = 0x1234, 0x5678
SHAPE = np.array((7, 9), [("a", "<i4"), ("b", "<i4")])


class Driver:
    """Reads its arguments as C would: by the sizes and places that cuda.h gives them."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.config: tuple[int, ...] = ()
        self.attribute: tuple[int, int] = (0, 0)
        self.values: list[bytes] = []

    def cuLaunchKernelEx(self, config: Any, function: Any, values: Any, extra: None) -> int:  # noqa: N802
        raw = ctypes.string_at(ctypes.addressof(config._obj), 56)
        words = np.frombuffer(raw[:28], "<u4")
        stream, attributes = np.frombuffer(raw[32:48], "<u8")
        self.config = (*map(int, words), int(stream), int(np.frombuffer(raw[48:52], "<u4")[0]))
        attribute = ctypes.string_at(int(attributes), 72)
        self.attribute = int.from_bytes(attribute[:4], "little"), int.from_bytes(attribute[8:12], "little")
        self.values = [ctypes.string_at(pointer, size) for pointer, size in zip(values, (8, 8, 4), strict=True)]
        assert function.value == FUNCTION
        assert extra is None
        return self.status


def make(overlap: bool, calls: list[Any]) -> Launch:
    stream = SimpleNamespace(ptr=STREAM)
    cupy = SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda: stream))

    class Function:
        kernel = SimpleNamespace(ptr=FUNCTION)

        def __call__(self, *arguments: Any, **options: Any) -> None:
            calls.append((arguments, options))

    arguments = (np.uint64(1 << 40), SHAPE, np.int32(-3))
    return Launch(cupy, "conv1", Function(), (4, 5, 6), 128, arguments, 50_000, overlap)


def test_the_driver_sees_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, calls = Driver(), []  # type: ignore[var-annotated]
    monkeypatch.setattr(launch, "load_driver", lambda: driver)
    make(True, calls)()
    assert driver.config == (4, 5, 6, 128, 1, 1, 50_000, STREAM, 1)
    assert driver.attribute == (6, 1)  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, allowed
    assert driver.values == [(1 << 40).to_bytes(8, "little"), SHAPE.tobytes(), (-3).to_bytes(4, "little", signed=True)]
    assert not calls


def test_an_error_of_the_driver_names_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "load_driver", lambda: Driver(701))
    with pytest.raises(EngineError, match=r"conv1: .*CUDA error 701"):
        make(True, [])()


def test_older_chips_launch_through_cupy() -> None:
    calls: list[Any] = []
    make(False, calls)()
    ((arguments, options),) = calls
    assert arguments[:2] == ((4, 5, 6), (128, 1, 1))
    assert options == {"shared_mem": 50_000}
