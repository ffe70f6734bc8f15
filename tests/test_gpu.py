"""The tests that need a GPU: skipped without one, and failing where one is required."""

from __future__ import annotations

import builtins
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.gpu import REQUIRE_GPU, cupy_or_skip


class CudaError(RuntimeError):
    pass


def cupy_with(count: Any) -> Any:
    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CudaError)
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))


def no_driver() -> int:
    raise CudaError("cudaErrorInsufficientDriver")


@pytest.fixture(params=["not installed", "broken", "broken otherwise", "no driver", "no GPU"])
def why(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the message must say; CuPy as it is then."""
    errors = {
        "not installed": ModuleNotFoundError("No module named 'cupy'"),
        "broken": ImportError("libcublas.so.13: cannot open shared object file"),
        "broken otherwise": AttributeError("module 'numpy' has no attribute 'bool8'"),
    }
    if error := errors.get(request.param):
        real = builtins.__import__

        def refuse(name: str, *more: Any) -> Any:
            if name == "cupy":
                raise error
            return real(name, *more)

        monkeypatch.setattr(builtins, "__import__", refuse)
        return f"CuPy cannot be imported ({error})"
    monkeypatch.setitem(sys.modules, "cupy", cupy_with(no_driver if request.param == "no driver" else lambda: 0))
    return "no usable GPU: " + ("cudaErrorInsufficientDriver" if request.param == "no driver" else "the driver shows")


def test_without_a_gpu_tests_are_skipped_with_the_reason(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REQUIRE_GPU, raising=False)
    with pytest.raises(pytest.skip.Exception) as caught:
        cupy_or_skip()
    assert why in str(caught.value)


def test_a_gpu_that_is_required_and_cannot_be_had_is_a_failure(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REQUIRE_GPU, "1")
    with pytest.raises(pytest.fail.Exception) as caught:
        cupy_or_skip()
    assert f"{REQUIRE_GPU}=1" in str(caught.value)
    assert why in str(caught.value)


def test_cupy_with_a_gpu_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = cupy_with(lambda: 1)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert cupy_or_skip() is cupy
