"""The best classes and their scores on a device, every bit as `int4core.scores` has them: emulated, and on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from int4core import scores
from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families.head import Top1, TopK
from int4core.backends.cuda.jit.nvrtc import compile_source, find_nvrtc
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.network import DeviceNetwork, top_parts
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import CLASSES, TOP1, TopOp
from int4core.backends.cuda.plan.planner import make_plan
from int4core.engine import Engine
from int4core.errors import EngineError
from int4core.model import Model
from int4core.quantize import dequantize_logits
from int4core.random_model import random_model
from tests.int4core.networks import as_model, random_input, random_network
from tests.kernels.emulator.driver import REVERSE, Emulated, needs_compiler
from tests.paths import ROOT, SHARED, needs_shared

Problem = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]

CASES = [
    (16, 1000, 2**31 - 1, 1e4),
    (16, 1000, 30_000, 900.0),
    (5, 37, 200, 20.0),
    (1, 1, 5, 1.0),
    (1, 257, 2**31 - 1, 1e-20),
    (2, 2, 1, 3e38),
    (7, 777, 2, 0.5),
    (3, 255, 300, 5.0),
    (10, 10, 2**31 - 1, 1e8),
    (4, 3001, 5000, 77.0),
]
"""k, classes, the largest accumulator, out_scale: the full range, ties, odd numbers of classes, logits far and near."""


def problem(classes: int, spread: int, scale: float, rows: int = 6) -> Problem:
    """Accumulators and scales. Of the rows, two are of ties and extremes."""
    rng = np.random.default_rng(classes + spread)
    sums = rng.integers(-spread - 1, spread, (rows, classes), dtype=np.int32, endpoint=True)
    sums[0] = spread
    sums[1] = rng.choice(np.array([-spread - 1, 0, spread], np.int32), classes)
    # Equal scales in half of the problems: only there are equal accumulators equal logits.
    factors = rng.uniform(0.9, 1, classes) if classes % 2 else np.ones(classes)
    return sums, (scale * factors).astype(np.float32)


def op_of(sums: np.ndarray[Any, Any], out_scale: np.ndarray[Any, Any], k: int) -> TopOp:
    return TopOp("scale", CLASSES, TOP1, len(sums), out_scale, k)


PROBE = """
extern "C" __global__ void probe(const int* sums, const float* out_scale, const double* largest, double* output,
                                 const int classes) {
  extern __shared__ __align__(128) unsigned char memory[];
  double* const terms = reinterpret_cast<double*>(memory);
  const int* const row = sums + static_cast<size_t>(blockIdx.x) * classes;
  terms[threadIdx.x] = sum_of_thread<Kernel::THREADS>(row, out_scale, classes, largest[blockIdx.x]);
  __syncthreads();
  if (threadIdx.x < 32) output[blockIdx.x] = folded_sum<Kernel::THREADS / 32>(terms);
}
"""


class Probe(KernelSource):
    """The kernel's file with one more kernel: the sums of exponentials, which a score shows no more than half of."""

    @property
    def text(self) -> str:
        return KernelSource.of(self.file, "top_k", {"WARPS": scores.LANES // 32}).text + PROBE


PROBED = Probe.of("top_k.cu", "probe", {})
PROBES = [(1, 4000, 0.0), (1, 4000, 90.0), (1000, 300, 0.0), (2999, 300, 3.0)]
"""Classes, images, and how far the largest logit is above those of the image."""


def probed(classes: int, rows: int, above: float) -> tuple[Problem, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A problem, what exponents count from (rows,), and the sums of exponentials float64 (rows,)."""
    sums, out_scale = problem(classes, 30_000, 900.0, rows)
    logits = dequantize_logits(sums, out_scale)
    largest = logits.max(axis=1).astype(np.float64) + above * np.random.default_rng(0).uniform(0, 1, rows)
    return (sums, out_scale), largest, scores.folded_sum(scores.exponential(logits - largest[:, None]))


def assert_equal_bits(found: tuple[Any, Any, Any], sums: np.ndarray[Any, Any], scale: Any, k: int) -> None:
    classes, ids, values = found
    wanted_ids, wanted = scores.top_k(sums, scale, k)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(values.view(np.int32), wanted.view(np.int32))
    np.testing.assert_array_equal(classes, dequantize_logits(sums, scale).argmax(axis=1))


@needs_compiler
@pytest.mark.parametrize("flags", [0, REVERSE], ids=["in order", "in reverse"])
@pytest.mark.parametrize(("k", "classes", "spread", "scale"), CASES)
def test_the_kernel_gives_the_bits_of_numpy(
    k: int, classes: int, spread: int, scale: float, flags: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sums, out_scale = problem(classes, spread, scale)
    op = op_of(sums, out_scale, k)
    kernel = TopK(op)
    output = np.full(op.output.bytes, 0xA5, np.uint8)
    arguments = kernel.arguments(
        {CLASSES: sums.ctypes.data, TOP1: output.ctypes.data}, [array.ctypes.data for array in kernel.constants()]
    )
    Emulated(kernel.source, tmp_path_factory.getbasetemp())(kernel.grid, kernel.threads, arguments, flags)
    assert_equal_bits(top_parts(output, len(sums)), sums, out_scale, k)


@needs_compiler
@pytest.mark.parametrize(("classes", "rows", "above"), PROBES)
def test_sums_of_exponentials_have_the_bits_of_numpy(
    classes: int, rows: int, above: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (sums, out_scale), largest, wanted = probed(classes, rows // 10, above)
    found = np.full(len(sums), np.nan)
    addresses = [np.uint64(array.ctypes.data) for array in (sums, out_scale, largest, found)]
    emulated = Emulated(PROBED, tmp_path_factory.getbasetemp())
    emulated((len(sums), 1, 1), scores.LANES, (*addresses, np.int32(classes)))
    np.testing.assert_array_equal(found.view(np.int64), wanted.view(np.int64))
    assert len(np.unique(found)) > 0.9 * len(found) or not above


@pytest.mark.skipif(find_nvrtc() is None, reason="needs the nvidia-cuda-nvrtc wheel")
@pytest.mark.parametrize("name", ["titan_rtx", "h100"])
def test_it_compiles_without_spills(name: str) -> None:
    """The other chips are in test_compile.py."""
    nvrtc = find_nvrtc()
    assert nvrtc is not None
    report = compile_source(nvrtc, TopK(op_of(*problem(5, 3, 1.0), 5)).source, CHIPS[name].arch, fresh=True)
    assert report.spilled == 0
    assert report.registers <= 64, "several blocks have to fit a multiprocessor"


def test_a_batch_is_planned_with_them_only_when_asked() -> None:
    network = Model.load(ROOT / "model").network
    alone, best = (make_plan(network, CHIPS["h200"], 32, top=top) for top in (0, 5))
    assert isinstance(alone.steps[-1].kernel, Top1)
    assert isinstance(best.steps[-1].kernel, TopK)
    assert len(alone.steps) == len(best.steps), "one kernel takes the other's place"
    assert alone.steps[-1].op.output.bytes == 32 * 4
    assert best.steps[-1].op.output.bytes == 32 * 4 * 11
    parts = top_parts(np.zeros(32 * 4 * 11, np.uint8), 32)
    assert [part.shape for part in parts] == [(32,), (32, 5), (32, 5)]
    assert [part.shape for part in top_parts(np.zeros(32 * 4, np.uint8), 32)] == [(32,), (32, 0), (32, 0)]
    with pytest.raises(EngineError, match="top 17 of 1000 classes: ask for 1 to 16"):
        fuse(network, 1, top=17)


@pytest.mark.gpu
@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize(("k", "classes", "spread", "scale"), CASES)
def test_a_gpu_gives_the_bits_of_numpy(k: int, classes: int, spread: int, scale: float) -> None:
    sums, out_scale = problem(classes, spread, scale, rows=300)
    network = DeviceNetwork(Model.load(ROOT / "model"))
    op = op_of(sums, out_scale, k)
    output = network.cupy.full(op.output.bytes, 0xA5, np.uint8)
    held = network.cupy.asarray(sums)
    (launch,) = network.launches((TopK(op),), {CLASSES: held.data.ptr, TOP1: output.data.ptr})
    launch()
    assert_equal_bits(top_parts(output.get(), len(sums)), sums, out_scale, k)
    network.close()


@pytest.mark.gpu
@pytest.mark.parametrize(("classes", "rows", "above"), PROBES)
def test_a_gpu_sums_exponentials_to_the_bits_of_numpy(cupy: Any, classes: int, rows: int, above: float) -> None:
    (sums, out_scale), largest, wanted = probed(classes, rows, above)
    found = cupy.full(rows, np.nan)
    arrays = [cupy.asarray(array) for array in (sums, out_scale, largest)]
    probe = DeviceNetwork(Model.load(ROOT / "model")).function(PROBED)
    probe((rows,), (scores.LANES,), (*arrays, found, np.int32(classes)), shared_mem=8 * scores.LANES)
    np.testing.assert_array_equal(found.get().view(np.int64), wanted.view(np.int64))


@pytest.mark.gpu
@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize(
    "options", [{"width": 20, "classes": 37, "seed": 1}, {"width": 16, "classes": 1001, "seed": 2}]
)
def test_the_engine_on_a_gpu_gives_those_of_the_cpu(options: dict[str, Any]) -> None:
    model = random_model(**options)
    with Engine(model, "cuda", batch_size=4) as gpu, Engine(model) as cpu:
        x = np.random.default_rng(3).integers(-128, 128, (10, *gpu.input_shape), dtype=np.int8)
        for k in (1, 5, 16, 5):
            for found, wanted in zip(gpu.top_k(x, k), cpu.top_k(x, k), strict=True):
                np.testing.assert_array_equal(found.view(np.int32), wanted.view(np.int32))
        np.testing.assert_array_equal(gpu.top1(x), cpu.top1(x))


@pytest.mark.gpu
@pytest.mark.usefixtures("cupy")
def test_the_graph_of_a_batch_gives_them_again_and_again() -> None:
    net = random_network(1, (1, 2, 1, 2), width=24, classes=19)
    network = DeviceNetwork(as_model(net))
    batch = network.batch(3, top=4)
    stream = network.cupy.cuda.Stream(non_blocking=True)
    with Engine(as_model(net)) as cpu:
        for seed in range(3):
            x = random_input(net, 3, seed)
            batch.input.set(x, stream=stream)
            batch.run(stream)
            found = [part.get(stream=stream) for part in (batch.top1, batch.top_ids, batch.top_scores)]
            assert_equal_bits((found[0], found[1], found[2]), cpu.accumulators(x), net.scale.out_scale, 4)
    network.close()


@needs_shared
@pytest.mark.gpu
@pytest.mark.usefixtures("cupy")
def test_the_published_model_scores_as_its_golden_logits_do() -> None:
    published = Model.load(SHARED / "model-v0.5" / "model")
    with np.load(SHARED / "golden" / "inputs8.npz") as golden, Engine(published, "cuda", batch_size=8) as gpu:
        ids, values = gpu.top_k(golden["x"], 5)
        scale = published.network.scale.out_scale
        assert_equal_bits((gpu.top1(golden["x"]), ids, values), golden["logits"], scale, 5)
