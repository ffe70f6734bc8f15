"""The host side of the CUDA engine over stand-ins: what is reported, refused and given back, without a GPU."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda import device as device_module
from int4core.backends.cuda import network as network_module
from int4core.backends.cuda.families.kernel import WORKSPACE
from int4core.backends.cuda.jit import nvrtc
from int4core.backends.cuda.jit.cache import CACHE_DIR
from int4core.backends.cuda.jit.compiler import REQUIRE_CACHED
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.network import DeviceNetwork
from int4core.engine import Engine
from int4core.errors import EngineError
from int4core.options import CudaOptions
from int4core.tuning.autoconfig import parse
from tests.int4core.networks import as_model, random_network

MODEL = as_model(random_network(seed=1))


class FakeDevice:
    id = 0

    def __init__(self, *_number: int) -> None:
        pass

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


class FakeModule:
    """Remembers which binary a function is of."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def get_function(self, name: str) -> tuple[Path, str]:
        return self.path, name


@pytest.fixture
def properties() -> dict[str, Any]:
    """Those of the GPU at hand: an A100."""
    return {
        "name": b"NVIDIA A100-SXM4-80GB", "major": 8, "minor": 0, "multiProcessorCount": 108,
        "sharedMemPerBlockOptin": 166912,
    }  # fmt: skip


@pytest.fixture
def freed(properties: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """That GPU as CuPy shows it; how often its pool was emptied."""
    calls: list[str] = []
    cuda = SimpleNamespace(
        Device=FakeDevice,
        Stream=lambda **_options: SimpleNamespace(),
        Event=lambda **_options: SimpleNamespace(synchronize=lambda: None),
        runtime=SimpleNamespace(getDeviceProperties=lambda _index: properties),
        driver=SimpleNamespace(CUDADriverError=RuntimeError),
    )
    pool = SimpleNamespace(free_all_blocks=lambda: calls.append("freed"))
    cupy = SimpleNamespace(cuda=cuda, RawModule=FakeModule, get_default_memory_pool=lambda: pool)
    monkeypatch.setattr(network_module, "load_cupy", lambda: cupy)
    return calls


def test_an_engine_is_closed_twice_and_computes_nothing_after(
    freed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceNetwork, "batch", lambda _self, n: SimpleNamespace(n=n))
    x = np.zeros((1, 3, 64, 64), np.int8)
    with Engine(MODEL, "cuda") as engine:
        engine.close()
        for call in (engine.top1, engine.accumulators, engine.trace):
            with pytest.raises(EngineError, match="the engine is closed"):
                call(x)
    assert freed


@pytest.mark.usefixtures("freed")
def test_an_engine_of_the_process_before_a_fork_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for threads that are the other process's, or end in an error of CUDA's own."""
    monkeypatch.setattr(DeviceNetwork, "batch", lambda _self, n: SimpleNamespace(n=n))
    here, closed = os.getpid(), []
    with Engine(MODEL, "cuda") as engine:
        monkeypatch.setattr(DeviceNetwork, "close", lambda _self: closed.append("closed"))
        monkeypatch.setattr(os, "getpid", lambda: here + 1)
        for call in (engine.top1, engine.trace):
            with pytest.raises(EngineError, match="of the process that this one was forked from"):
                call(np.zeros((1, 3, 64, 64), np.int8))
        engine.backend.close()
        assert not closed
        monkeypatch.undo()


@pytest.mark.skipif(nvrtc.find_nvrtc() is None, reason="needs the nvidia-cuda-nvrtc wheel")
def test_a_kernel_besides_the_network_s_is_of_its_cache(
    freed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    source = KernelSource.of("top1.cu", "top1", {"WARPS": 4})
    network: Any = DeviceNetwork(MODEL)
    monkeypatch.setenv(REQUIRE_CACHED, "1")
    with pytest.raises(EngineError, match=REQUIRE_CACHED):
        network.function(source)
    monkeypatch.delenv(REQUIRE_CACHED)
    path, name = network.function(source)
    assert name == "top1"
    assert path.parent == tmp_path / "cache"
    assert network.function(source) is network.function(source)
    assert "1 kernels, 1 compiled now" in network.notice


def test_constants_are_there_before_anything_is_launched(freed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are copied on the current stream, and a launch may be on another one."""
    network: Any = DeviceNetwork(MODEL)
    done: list[str] = []
    stream = SimpleNamespace(synchronize=lambda: done.append("waited"))
    network.cupy.cuda.get_current_stream = lambda: stream
    network.cupy.asarray = lambda array: done.append(f"copied {array.nbytes}") or array
    monkeypatch.setattr(network_module, "memory_errors", lambda *_: nullcontext())
    step = next(step for step in network.plan(1).steps if step.op.name == "conv1")
    arrays = network._uploaded(step.kernel)
    copied = [f"copied {max(1, array.nbytes)}" for array in step.kernel.constants()]
    assert done == [*copied, "waited"]
    assert network._uploaded(step.kernel) is arrays
    assert done == [*copied, "waited"]


def test_every_launch_has_a_workspace_of_its_own_that_is_zero(
    freed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeroed on the current stream, and a launch may be on another one."""
    network: Any = DeviceNetwork(MODEL)
    done: list[str] = []
    network.cupy.cuda.get_current_stream = lambda: SimpleNamespace(synchronize=lambda: done.append("waited"))

    def zeros(size: int, dtype: Any) -> Any:
        done.append(f"{size} zeros")
        array = np.zeros(size, dtype)
        return SimpleNamespace(data=SimpleNamespace(ptr=array.ctypes.data), array=array)

    network.cupy.zeros = zeros
    monkeypatch.setattr(network_module, "memory_errors", lambda *_: nullcontext())
    network._constants["two layers", "any"] = ()

    def arguments(tensors: dict[str, int], _constants: list[int]) -> tuple[int, ...]:
        return tensors["input"], tensors[WORKSPACE]

    given = {"source": "source", "op": SimpleNamespace(name="two layers"), "layout": "any", "shared_bytes": 0}
    kernel: Any = SimpleNamespace(**given, grid=(1, 1, 1), threads=32, arguments=arguments, workspace_bytes=640)
    network._functions["source"] = SimpleNamespace(shared_size_bytes=0)
    first, second = network.launches((kernel, kernel), {"input": 5})
    assert done == ["640 zeros", "waited"] * 2
    assert first.workspace is not second.workspace
    for launch in (first, second):
        assert launch.arguments == (5, launch.workspace.data.ptr)
    plain = network._launch(SimpleNamespace(**given, grid=(1, 1, 1), threads=32, arguments=lambda *_: ()), {})
    assert plain.workspace is None


def test_no_memory_for_what_every_batch_needs_names_no_batch(freed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemoryError(Exception):
        pass

    def zeros(_size: int, _dtype: Any) -> Any:
        raise OutOfMemoryError("640 bytes")

    network: Any = DeviceNetwork(MODEL)
    network.cupy.zeros = zeros
    network.cupy.cuda.memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    monkeypatch.setattr(device_module, "load_cupy", lambda: network.cupy)
    given = {"source": "source", "op": SimpleNamespace(name="conv9"), "layout": "any", "shared_bytes": 0}
    network._functions["source"] = SimpleNamespace(shared_size_bytes=0)
    network._constants["conv9", "any"] = ()
    kernel: Any = SimpleNamespace(**given, workspace_bytes=640)
    said = r"no device memory for conv9's workspace: choose a smaller batch \(640 bytes\)"
    with pytest.raises(EngineError, match=said):
        network.launches((kernel,), {})


TABLE = """# engine: int4core
# gpu: a100
# batch: 64
conv1=212
layer2_residual1_conv1=100
fc=5
"""


def test_numbers_that_do_not_fit_are_warned_of_once_with_their_lines(
    freed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    network = DeviceNetwork(MODEL, CudaOptions(autoconfig=parse(TABLE, "mine")))
    assert not caplog.records
    for n in (1, 64, 64):
        network.plan(n)
    assert {(record.name, record.levelname) for record in caplog.records} == {("int4core", "WARNING")}
    first, second = caplog.messages
    assert first.startswith("mine:5: layer2_0_conv1: kernel 100 does not fit here (wgmma runs on compute capability")
    assert second.startswith("mine:6: fc: kernel 5 does not fit here")


def test_numbers_that_do_not_fit_are_an_error_if_strict(freed: list[str], caplog: pytest.LogCaptureFixture) -> None:
    network = DeviceNetwork(MODEL, CudaOptions(autoconfig=parse(TABLE, "mine"), strict=True))
    with pytest.raises(EngineError, match=r"^mine:5: layer2_0_conv1: .* \(and 1 more like it\); .*--strict"):
        network.plan(1)
    mine = parse("# engine: int4core\nconv1=212\n", "mine")
    fitting = DeviceNetwork(MODEL, CudaOptions(autoconfig=mine, strict=True))
    assert fitting.plan(1).misfits == ()
    assert not caplog.records


def test_a_file_of_another_engine_is_an_error_if_strict(freed: list[str]) -> None:
    foreign = parse("conv1=13\n", "original")
    assert "original submission" in DeviceNetwork(MODEL, CudaOptions(autoconfig=foreign)).notice
    with pytest.raises(EngineError, match=r"^original: no `# engine:` line.*--strict"):
        DeviceNetwork(MODEL, CudaOptions(autoconfig=foreign, strict=True))


@pytest.mark.skipif(nvrtc.find_nvrtc() is None, reason="needs the nvidia-cuda-nvrtc wheel")
def test_a_chip_without_a_record_runs_on_kernels_chosen_by_rule(
    freed: list[str], properties: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    properties |= {"name": b"NVIDIA Next 1000", "major": 99, "minor": 9}
    network: Any = DeviceNetwork(MODEL)
    assert caplog.messages == [
        f"NVIDIA Next 1000 (sm_999): NVRTC {nvrtc.version(nvrtc.require_nvrtc())} does not know this chip: the driver "
        "compiles the kernels from PTX for compute_80"
    ]
    assert "chosen by rule: there is no tuned file for NVIDIA Next 1000" in network.notice
    assert len(network.plan(8).steps) > 10
    kernel = network.plan(8, top=2).steps[-1].kernel
    path, _ = network.function(kernel.source)
    assert b".target sm_80" in path.read_bytes()
    network._constants[kernel.op.name, kernel.layout] = ()
    monkeypatch.setattr(type(kernel), "arguments", lambda *_: ())
    network._functions[kernel.source] = SimpleNamespace(shared_size_bytes=0)
    (launch,) = network.launches((kernel,), {})
    assert not launch.overlap  # its kernels do not wait for the one before


def test_a_chip_that_is_slow_at_int8_says_so(
    freed: list[str], properties: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    properties |= {"name": b"NVIDIA B300 SXM6 AC", "major": 10, "minor": 3}
    DeviceNetwork(MODEL)
    assert any("b300: this chip is slow at int8" in message for message in caplog.messages)
