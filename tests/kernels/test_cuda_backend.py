"""The CUDA engine on a GPU, bit for bit against NumPy: whole random networks, and every kernel of the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda.families.kernel import Kernel
from int4core.backends.cuda.families.table import candidates
from int4core.backends.cuda.network import DeviceNetwork
from int4core.backends.cuda.plan.ops import joined, outputs, parts
from int4core.backends.cuda.plan.planner import make_plan
from int4core.engine import Engine
from int4core.errors import EngineError
from int4core.model import Model
from int4core.options import CudaOptions, NumpyOptions
from int4core.random_model import random_model
from int4core.tune import main, to_autoconfig, tune
from int4core.tuning.autoconfig import Autoconfig, read
from int4core.tuning.choices import fastest, groups
from tests.int4core.networks import as_model, random_input, random_network
from tests.kernels.problems import draws
from tests.paths import SHARED, needs_shared

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cupy")]

DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "model"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    with Engine(model, "cuda", batch_size=4) as engine:
        yield engine


def images(n: int, shape: tuple[int, ...] = (3, 224, 224)) -> np.ndarray[Any, Any]:
    return draws().integers(-128, 128, (n, *shape), dtype=np.int8)


def assert_same_trace(gpu: Engine, cpu: Engine, x: np.ndarray[Any, Any]) -> None:
    trace, expected = gpu.trace(x), cpu.trace(x)
    assert len(trace) > 5
    for name, values in trace.items():
        np.testing.assert_array_equal(values, expected[name], name)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_every_layer_of_the_default_model(engine: Engine, model: Model, n: int) -> None:
    with Engine(model) as cpu:
        assert_same_trace(engine, cpu, images(n))


def test_longer_input_than_the_batch(engine: Engine, model: Model) -> None:
    x = images(10)
    with Engine(model) as cpu:
        np.testing.assert_array_equal(engine.accumulators(x), cpu.accumulators(x))
        np.testing.assert_array_equal(engine.top1(x), cpu.top1(x))


def test_another_image_size(model: Model) -> None:
    x = images(2, (3, 193, 201))
    with (
        Engine(model, "cuda", batch_size=2, options=CudaOptions(input_size=(193, 201))) as gpu,
        Engine(model, options=NumpyOptions(input_size=(193, 201))) as cpu,
    ):
        assert_same_trace(gpu, cpu, x)


@needs_shared
def test_every_layer_of_the_published_model() -> None:
    published = Model.load(SHARED / "model-v0.5" / "model")
    with np.load(SHARED / "golden" / "inputs8.npz") as golden, Engine(published, "cuda", batch_size=8) as gpu:
        np.testing.assert_array_equal(gpu.accumulators(golden["x"]), golden["logits"])
        with Engine(published) as cpu:
            assert_same_trace(gpu, cpu, golden["x"][:2])


def test_arrays_on_the_gpu_are_answered_on_their_stream(engine: Engine, model: Model, cupy: Any) -> None:
    """Written just before on the same stream, read just after: nothing waits for the host."""
    x = images(11)
    with Engine(model) as cpu:
        expected = cpu.accumulators(x), cpu.logits(x), cpu.top1(x), *cpu.top_k(x, 5)
    source = cupy.asarray(x)
    for stream in (cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream.null):
        with stream:
            for _ in range(3):
                given = cupy.zeros(x.shape, np.int8)
                given += source
                found = engine.accumulators(given), engine.logits(given), engine.top1(given), *engine.top_k(given, 5)
                given.fill(0)
                for mine, theirs in zip(found, expected, strict=True):
                    assert isinstance(mine, cupy.ndarray)
                    np.testing.assert_array_equal(mine.get(stream=stream), theirs)
            assert engine.top1(given[:0]).shape == (0,)
            flipped = source[:, :, ::-1]
            np.testing.assert_array_equal(engine.top1(flipped).get(stream=stream), engine.top1(x[:, :, ::-1]))


def test_tensors_of_torch_on_the_gpu(engine: Engine, model: Model) -> None:
    torch = pytest.importorskip("torch")
    x = images(6)
    expected = engine.top1(x)
    for stream in (torch.cuda.Stream(), torch.cuda.default_stream()):
        with torch.cuda.stream(stream):
            given = torch.zeros(x.shape, dtype=torch.int8, device="cuda")
            given += torch.from_numpy(x).cuda()
            found = engine.top1(given)
            given.zero_()
            assert isinstance(found, torch.Tensor)
            assert found.is_cuda
            np.testing.assert_array_equal(found.cpu().numpy(), expected)


def test_a_stream_of_host_arrays(engine: Engine, model: Model, cupy: Any) -> None:
    """Pageable ones, pinned ones, of any length; calls between them, and a stream that is left half way."""
    inputs = [images(n) for n in (4, 4, 1, 9, 0, 3, 4, 4)]
    memory = cupy.cuda.alloc_pinned_memory(inputs[1].nbytes)
    pinned = np.frombuffer(memory, np.int8, inputs[1].size).reshape(inputs[1].shape)
    pinned[:] = inputs[1]
    inputs[1] = pinned
    with Engine(model) as cpu:
        expected = [cpu.top1(x) for x in inputs]
        other = cpu.top1(inputs[3])
    next(engine.stream(inputs))
    for found, classes in zip(engine.stream(inputs), expected, strict=True):
        np.testing.assert_array_equal(engine.top1(inputs[3]), other)
        np.testing.assert_array_equal(found, classes)
    for (ids, _), classes in zip(engine.stream(map(cupy.asarray, inputs), k=2), expected, strict=True):
        np.testing.assert_array_equal(ids[:, 0].get(), classes)


def run_one(network: DeviceNetwork, kernel: Kernel, inputs: dict[str, Any]) -> list[Any]:
    written = {tensor.name: network.cupy.full(tensor.bytes, 0xA5, np.uint8) for tensor in outputs(kernel.op)}
    addresses = {name: array.data.ptr for name, array in (inputs | written).items()}
    (launch,) = network.launches((kernel,), addresses)
    launch()
    return [array.get() for array in written.values()]


def test_a_launch_finds_its_constants_whatever_its_stream_waits_for(model: Model, cupy: Any) -> None:
    """The current stream has much to do before it copies them; the launch is on another one."""
    network = DeviceNetwork(model)
    kernel = next(step.kernel for step in network.plan(2).steps if step.op.name == "layer1_0_conv1")
    op = kernel.op
    network.load([kernel.source])
    source = cupy.random.randint(0, 256, 2 * 56 * 56 * 32, cupy.uint8)
    poison = [cupy.full(max(1, array.nbytes), 0x55, cupy.uint8) for array in kernel.constants()]
    work = cupy.zeros(1 << 28, cupy.int32)
    network.device.synchronize()
    del poison  # where the constants will lie
    written = [cupy.full(op.output.bytes, 0xA5, np.uint8) for _ in range(2)]
    stream = cupy.cuda.Stream(non_blocking=True)
    for _ in range(50):
        work += 1
    for output in written:  # the second launch has what the first one may have missed
        (launch,) = network.launches((kernel,), {op.source: source.data.ptr, op.target: output.data.ptr})
        with stream:
            launch()
    network.device.synchronize()
    np.testing.assert_array_equal(written[0].get(), written[1].get())


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("basic", [False, True], ids=["default model", "ResNet-18"])
def test_every_kernel_of_the_table_agrees(model: Model, n: int, basic: bool) -> None:
    """On what the network's own tensors hold: the default kernels' results, which other tests compare with NumPy."""
    network = DeviceNetwork(random_model(blocks=(2, 2, 2, 2), width=64, basic=True) if basic else model)
    batch = network.batch(n, keep_all=True)
    batch.input.set(images(n))
    stream = network.cupy.cuda.Stream()
    batch.run(stream)
    stream.synchronize()
    single = [part for step in batch.plan.steps for part in parts(step.op)]
    ops = [group[0] for group in groups([*single, *joined(single)])]
    kernels = {op.name: list(candidates(op, network.chip)) for op in ops}
    network.load([kernel.source for found in kernels.values() for kernel in found])
    for op in ops:
        inputs = {name: batch.tensor(name) for name in op.reads}
        expected = [batch.tensor(tensor.name).get() for tensor in outputs(op)]
        for kernel in kernels[op.name]:
            for result, wanted in zip(run_one(network, kernel, inputs), expected, strict=True):
                np.testing.assert_array_equal(result, wanted, f"{op.name}: {kernel.number} {kernel}")
    assert len({kernel.number for found in kernels.values() for kernel in found}) > 20


def test_the_tuner_chooses_for_every_layer_of_basic_blocks() -> None:
    network = DeviceNetwork(random_model(blocks=(1, 2, 1, 1), width=64, basic=True))
    with network.device:
        choices = list(tune(network, 8))
    fastest_alone = {name: timed.kernel.number for name, timed in fastest(choices).items()}
    ops = [op for choice in choices for op in choice.ops]
    numbers = to_autoconfig(network.chip, 8, ops, fastest_alone).by_layer()
    plan = make_plan(network.model.network, network.chip, 8, numbers=numbers)
    assert plan.misfits == ()
    assert {step.op.name for step in plan.steps if step.kernel.number is not None} <= numbers.keys()
    assert {f"layer{i}_0_downsample_0" for i in (2, 3, 4)} <= numbers.keys()


def test_the_network_chooses_among_the_fastest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch", "4", "--out", str(tmp_path), "--verbose", "--finalists", "2"]) == 0
    assert " kept | layer" in capsys.readouterr().out
    (file,) = tmp_path.iterdir()
    network = DeviceNetwork(Model.load(DEFAULT_MODEL), CudaOptions(autoconfig=read(file)))
    assert network.plan(4).misfits == ()


def test_numbers_of_an_autoconfig_are_used(model: Model) -> None:
    config = Autoconfig({"layer3_residual2_conv2": 6}, {"engine": "int4core"})
    plan = DeviceNetwork(model, CudaOptions(autoconfig=config)).plan(8)
    numbers = {step.op.name: step.kernel.number for step in plan.steps}
    assert numbers["layer3_1_conv2"] == 6


def test_a_network_with_pairs_and_another_stem(model: Model) -> None:
    """On a Hopper; elsewhere the numbers do not fit, and the defaults compute the same."""
    layers = [f"layer{stage}_residual{block}_conv{conv}" for stage, block, conv in
              ((1, 2, 3), (1, 3, 1), (1, 3, 3), (2, 1, 1), (2, 2, 3), (2, 3, 1))]  # fmt: skip
    numbers = dict(zip(layers, (160, 160, 161, 161, 163, 163), strict=True))
    config = Autoconfig({"conv1": 240} | numbers, {"engine": "int4core"})
    options = CudaOptions(autoconfig=config)
    with Engine(model, "cuda", batch_size=3, options=options) as gpu, Engine(model) as cpu:
        assert_same_trace(gpu, cpu, images(3))


def test_another_gpu_than_the_one_asked_for_is_refused(model: Model) -> None:
    with pytest.raises(EngineError, match="not a t4"):
        DeviceNetwork(model, CudaOptions(gpu="t4"))


def test_a_batch_larger_than_memory_is_an_error_that_names_the_mend(model: Model) -> None:
    with pytest.raises(EngineError, match="choose a smaller batch"):
        Engine(model, "cuda", batch_size=1 << 18)


@pytest.mark.parametrize(
    "options",
    [
        {"width": 20, "classes": 37, "stem_channels": 24, "seed": 1},
        {"width": 32, "classes": 1001, "blocks": (2, 1, 2, 1), "seed": 2},
        {"width": 8, "classes": 5, "seed": 3},
        {"width": 20, "classes": 37, "blocks": (2, 1, 2, 1), "seed": 4, "basic": True},
        {"width": 64, "classes": 10, "blocks": (2, 2, 2, 2), "seed": 5, "basic": True},
    ],
    ids=str,
)
def test_networks_of_odd_channels(options: dict[str, Any]) -> None:
    network = random_model(**options)
    with Engine(network, "cuda", batch_size=3) as gpu, Engine(network) as cpu:
        assert_same_trace(gpu, cpu, images(3, gpu.input_shape))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("basic", [False, True], ids=["bottlenecks", "basic blocks"])
def test_random_networks(seed: int, basic: bool) -> None:
    """Factors and biases of the whole range, other shifts, depths and pools, over inputs that hold the extremes."""
    net = random_network(
        seed, (1, 2, 1, 2), width=8 + 4 * seed, shift=10 + 2 * seed, bias=30000, pool=1 + seed % 3, basic=basic
    )
    x = random_input(net, 3, seed)
    with Engine(as_model(net), "cuda", batch_size=3) as gpu, Engine(as_model(net)) as cpu:
        assert_same_trace(gpu, cpu, x)


def test_the_cache_can_be_required(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INT4CORE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("INT4CORE_REQUIRE_CACHED", "1")
    with pytest.raises(EngineError, match="not in"):
        Engine(model, "cuda", batch_size=1)
