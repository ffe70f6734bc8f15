"""The engine's contract: any N, clear errors, one meaning of logits and top-1."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from int4core.backends import BACKENDS
from int4core.engine import Engine
from int4core.errors import EngineError
from tests.int4core.networks import as_model, random_input, random_network, reference_trace

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
        (np.zeros((1, 3, 64, 64), np.uint8), "uint8, but must be a NumPy array of int8"),
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
        Engine(MODEL, input_size=(10**100, 10**100))


def test_unknown_backend_and_option() -> None:
    with pytest.raises(EngineError, match=f"unknown backend 'tpu': choose one of {', '.join(BACKENDS)}"):
        Engine(MODEL, backend="tpu")
    with pytest.raises(EngineError, match=r"backend 'numpy': .*'gpu'"):
        Engine(MODEL, gpu="h200")
    with pytest.raises(EngineError, match="batch_size=0"):
        Engine(MODEL, batch_size=0)


def test_backends_own_errors_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoGpu:
        def __init__(self, model: object, *, batch_size: int) -> None:
            raise EngineError("no GPU here")

    module = ModuleType("a_backend_without_gpu")
    module.NoGpu = NoGpu
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BACKENDS, "nogpu", (module.__name__, "NoGpu"))
    monkeypatch.setitem(BACKENDS, "absent", ("a_module_that_is_not_there", "Backend"))
    with pytest.raises(EngineError, match=r"^no GPU here$"):
        Engine(MODEL, backend="nogpu")
    with pytest.raises(EngineError, match="backend 'absent' cannot be loaded"):
        Engine(MODEL, backend="absent")


def test_a_backend_may_compute_classes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(MODEL, batch_size=2) as engine:
        monkeypatch.setattr(engine.backend, "top1", lambda x: np.full(len(x), 4, np.int32))
        np.testing.assert_array_equal(engine.top1(random_input(NET, 3)), [4, 4, 4])


def test_a_closed_engine_says_so() -> None:
    with Engine(MODEL) as engine:
        engine.close()
        with pytest.raises(EngineError, match="the engine is closed: make another one"):
            engine.top1(random_input(NET, 1))
