"""The engine's contract: any N, clear errors, one meaning of logits and top-1."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest

from int4core.arrays import is_torch
from int4core.backends import BACKENDS
from int4core.backends.base import Pending, Want
from int4core.engine import Engine
from int4core.errors import EngineError
from int4core.options import CudaOptions, NumpyOptions
from tests.int4core.networks import as_model, random_input, random_network, reference_trace
from tests.paths import ROOT

NET = random_network(seed=1)
MODEL = as_model(NET)


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_any_number_of_images(n: int) -> None:
    x = random_input(NET, n)
    expected = reference_trace(NET, x)["fc"]
    with Engine(MODEL, batch_size=4) as engine:
        found = engine.accumulators(x)
        logits = engine.logits(x)
        assert (found.dtype, logits.dtype, engine.top1(x).dtype) == (np.int32, np.float32, np.int32)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(logits, expected.astype(np.float32) / NET.scale.out_scale)
        np.testing.assert_array_equal(engine.top1(x), logits.argmax(axis=1))


def test_no_images() -> None:
    x = random_input(NET, 0)
    with Engine(MODEL) as engine:
        assert engine.accumulators(x).shape == (0, 5)
        assert engine.logits(x).shape == (0, 5)
        assert engine.top1(x).shape == (0,)
        with pytest.raises(EngineError, match="at least one image"):
            engine.trace(x)


def test_input_need_not_be_contiguous() -> None:
    x = random_input(NET, 4)
    with Engine(MODEL) as engine:
        flipped = engine.accumulators(x[::-1, :, :, ::-1])
        np.testing.assert_array_equal(flipped, engine.accumulators(x[::-1, :, :, ::-1].copy()))
        assert not np.array_equal(flipped, engine.accumulators(x))


def test_trace_joins_batches() -> None:
    x = random_input(NET, 3)
    with Engine(MODEL, batch_size=2) as engine:
        trace = engine.trace(x)
    expected = reference_trace(NET, x)
    assert list(trace)[:4] == ["conv1", "quantize1", "maxpool", "layer1_0_conv1"]
    assert list(trace)[-1] == "fc"
    for name, values in expected.items():
        np.testing.assert_array_equal(trace[name], values, err_msg=name)


def test_first_of_equal_logits_wins() -> None:
    fc = replace(NET.fc, weight=np.zeros_like(NET.fc.weight), bias=np.array([1, 8, 8, 8, 2], np.int32))
    scale = replace(NET.scale, out_scale=np.array([1, 2, 1, 1, 1], np.float32))
    with Engine(as_model(replace(NET, fc=fc, scale=scale))) as engine:
        np.testing.assert_array_equal(engine.top1(random_input(NET, 2)), [2, 2])


def test_what_the_engine_says_of_itself() -> None:
    with Engine(MODEL, batch_size=3) as engine:
        assert engine.input_shape == (3, 64, 64)
        assert (engine.classes, engine.batch_size, engine.backend.name) == (5, 3, "numpy")


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (np.zeros((1, 3, 64, 64), np.uint8), "uint8, but must be int8"),
        (np.zeros((1, 3, 64, 64), np.float32), "float32, but must"),
        ([[1]], "list, but must"),
        (np.zeros((3, 64, 64), np.int8), r"shape \(3, 64, 64\), but must be \(N, 3, 64, 64\)"),
        (np.zeros((1, 64, 64, 3), np.int8), r"must be \(N, 3, 64, 64\)"),
    ],
)
def test_wrong_input(x: np.ndarray, why: str) -> None:
    with Engine(MODEL) as engine:
        for call in (engine.accumulators, engine.logits, engine.top1, engine.trace):
            with pytest.raises(EngineError, match=why):
                call(x)


def test_strides_without_end_are_an_error() -> None:
    """The network's own input would have 2^1,006 pixels a side."""
    halving = NET.layer2.children[0]
    net = replace(NET, layer2=replace(NET.layer2, children=(halving,) * 1003))
    with pytest.raises(EngineError, match=r"strides up to 'layer2_0_conv2' .* larger than 32768 pixels a side"):
        Engine(as_model(net))
    with pytest.raises(EngineError, match=r"input size '1000000+\.\.\.' is over 32768 pixels a side"):
        Engine(MODEL, options=NumpyOptions(input_size=(10**100, 10**100)))


def test_unknown_backend_and_option() -> None:
    with pytest.raises(EngineError, match=f"unknown backend 'tpu': choose one of {', '.join(BACKENDS)}"):
        Engine(MODEL, backend="tpu")
    with pytest.raises(EngineError, match="backend 'numpy' takes NumpyOptions, not CudaOptions"):
        Engine(MODEL, options=CudaOptions(gpu="h200"))
    with pytest.raises(EngineError, match="backend 'torch' takes TorchOptions, not NumpyOptions"):
        Engine(MODEL, backend="torch", options=NumpyOptions())
    with pytest.raises(EngineError, match="batch_size=0"):
        Engine(MODEL, batch_size=0)


def test_backends_own_errors_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoGpu:
        def __init__(self, model: object, batch_size: int, options: object) -> None:
            raise EngineError("no GPU here")

    module = ModuleType("a_backend_without_gpu")
    module.NoGpu = NoGpu
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BACKENDS, "nogpu", (module.__name__, "NoGpu", NumpyOptions))
    monkeypatch.setitem(BACKENDS, "absent", ("a_module_that_is_not_there", "Backend", NumpyOptions))
    with pytest.raises(EngineError, match=r"^no GPU here$"):
        Engine(MODEL, backend="nogpu")
    with pytest.raises(EngineError, match="backend 'absent' cannot be loaded"):
        Engine(MODEL, backend="absent")


def test_a_backend_whose_extra_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("int4core.backends.torch.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        EngineError, match=r"backend 'torch' cannot be loaded: .*torch.*: .* -m pip install .*\[torch\]'"
    ):
        Engine(MODEL, backend="torch")


class Lanes:
    """A backend that answers with the first byte of each image, `depth` batches at a time."""

    name, batch_size, input_shape, classes, depth = "lanes", 2, (3, 64, 64), 5, 3

    def __init__(self, *_given: object) -> None:
        self.under_way = self.most = 0

    def placed(self, x: Any) -> Any:
        return nullcontext()

    def begin(self, x: Any, want: Want, k: int = 0) -> Pending:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        answer = np.array(x[:, 0, 0, 0], np.int32)

        def wait() -> tuple[Any, ...]:
            self.under_way -= 1
            return (answer,)

        return wait

    def close(self) -> None:
        pass


def test_a_stream_keeps_as_many_batches_under_way_as_the_backend_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_backend_of_lanes")
    module.Lanes = Lanes
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BACKENDS, "lanes", (module.__name__, "Lanes", NumpyOptions))
    taken = []

    def batches() -> Iterator[np.ndarray[Any, Any]]:
        for i in range(7):
            taken.append(i)
            yield np.full((2, 3, 64, 64), i, np.int8)

    with Engine(MODEL, "lanes", batch_size=2) as engine:
        for i, classes in enumerate(engine.stream(batches())):
            assert classes.tolist() == [i, i]
            assert len(taken) == min(i + 3, 7)  # no more are taken than are begun
        lanes = cast("Lanes", engine.backend)
        assert (lanes.most, lanes.under_way) == (3, 0)


def test_a_stream_gives_what_the_calls_give() -> None:
    inputs = [random_input(NET, n, seed=n) for n in (3, 0, 1, 5)]
    with Engine(MODEL, batch_size=2) as engine:
        for x, classes in zip(inputs, engine.stream(inputs), strict=True):
            np.testing.assert_array_equal(classes, engine.top1(x))
        for x, (ids, shares) in zip(inputs, engine.stream(iter(inputs), k=3), strict=True):
            expected_ids, expected_shares = engine.top_k(x, 3)
            np.testing.assert_array_equal(ids, expected_ids)
            np.testing.assert_array_equal(shares, expected_shares)
        with pytest.raises(EngineError, match="top 6 of 5 classes"):
            next(engine.stream(inputs, k=6))
        with pytest.raises(EngineError, match="float32, but must be int8"):
            list(engine.stream([inputs[0], inputs[0].astype(np.float32)]))
        half = engine.stream(inputs)
        next(half)
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            next(half)


class Foreign:
    """What speaks DLPack, and has no more than that, a dtype and a shape: on the CPU, or said to lie on a GPU."""

    def __init__(self, array: np.ndarray[Any, Any], device: tuple[int, int] = (1, 0)) -> None:
        self._array, self._device = array, device
        self.dtype, self.shape = array.dtype, array.shape

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


def test_whatever_speaks_dlpack_is_read() -> None:
    x = random_input(NET, 5)
    with Engine(MODEL, batch_size=2) as engine:
        found = engine.top1(Foreign(x))
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, engine.top1(x))
        trace = engine.trace(Foreign(x[:1]))
        np.testing.assert_array_equal(trace["fc"], engine.accumulators(x[:1]))
        with pytest.raises(EngineError, match="lies on a GPU, and backend 'numpy' computes on the CPU"):
            engine.top1(Foreign(x, (2, 0)))


class Bare:
    """What speaks DLPack and is no array."""

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("nobody is to ask")


def test_what_speaks_dlpack_and_is_no_array_is_refused() -> None:
    with Engine(MODEL) as engine, pytest.raises(EngineError, match="input is Bare, but must be an array of int8"):
        engine.top1(Bare())


@pytest.mark.parametrize("refused", ["sparse", "meta"])
def test_what_its_library_does_not_give_by_dlpack_is_refused(refused: str) -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(random_input(NET, 1))
    x = x.to_sparse() if refused == "sparse" else x.to("meta")
    with Engine(MODEL) as engine:
        for call in (engine.top1, engine.trace):
            with pytest.raises(
                EngineError, match="input is Tensor, which its library does not give by DLPack: "
            ) as error:
                call(x)
            assert "\n" not in str(error.value)


def test_answers_to_torch_are_torch_s() -> None:
    torch = pytest.importorskip("torch")
    x = random_input(NET, 5)
    with Engine(MODEL, batch_size=2) as engine:
        ids, shares = engine.top_k(torch.from_numpy(x), 2)
        assert isinstance(ids, torch.Tensor)
        assert isinstance(shares, torch.Tensor)
        expected = engine.top_k(x, 2)
        np.testing.assert_array_equal(ids.numpy(), expected[0])
        np.testing.assert_array_equal(shares.numpy(), expected[1])
        flipped = torch.from_numpy(x).flip(0)[:, :, ::2].repeat(1, 1, 2, 1)
        np.testing.assert_array_equal(engine.logits(flipped).numpy(), engine.logits(flipped.numpy()))
        assert engine.top1(torch.from_numpy(x[:0])).shape == (0,)


def test_a_class_derived_from_a_librarys_is_of_that_library() -> None:
    """Such as torchvision's images: else its stream would not be waited for either."""
    torch = pytest.importorskip("torch")

    class Derived(torch.Tensor):
        pass

    x = torch.from_numpy(random_input(NET, 3))
    assert is_torch(x.as_subclass(Derived))
    assert not is_torch(x.numpy())
    with Engine(MODEL, batch_size=2) as engine:
        found = engine.top1(x.as_subclass(Derived))
        assert isinstance(found, torch.Tensor)
        assert found.tolist() == engine.top1(x.numpy()).tolist()
        assert type(engine.top1(x.numpy().view(type("Own", (np.ndarray,), {})))) is np.ndarray


IN_A_FORK = """
import os, signal, sys
from int4core import Engine
from int4core.random_model import random_model
from tests.int4core.networks import random_input
model = random_model(width=2, classes=3, pool=1)
x = random_input(model.network, 5)
with Engine(model, sys.argv[1]) as engine:
    expected = engine.accumulators(x)
    pid = os.fork()
    if not pid:
        signal.alarm(60)  # ends a process that waits for threads that it has not
    with engine:
        same = bool((engine.accumulators(x) == expected).all())
    if not pid:
        os._exit(0 if same else 1)
    sys.exit(os.waitpid(pid, 0)[1] or not same)
"""


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_an_engine_computes_in_a_forked_process_too(backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
        pytest.importorskip("numba")
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FORK, backend], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_closed_engine_says_so() -> None:
    with Engine(MODEL) as engine:
        engine.close()
        with pytest.raises(EngineError, match="the engine is closed: make another one"):
            engine.top1(random_input(NET, 1))
