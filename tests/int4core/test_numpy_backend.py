"""The NumPy executor against a plain int64 reference, layer by layer, and its float rounding on its own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from int4core.backends.numpy import blas_threads
from int4core.backends.numpy.backend import NumpyBackend, limited
from int4core.backends.numpy.blas_threads import BlasThreads, find_blas
from int4core.backends.numpy.ops import Classifier
from int4core.backends.numpy.products import FLOAT32, FLOAT64, Rectify
from int4core.backends.numpy.tiles import FeatureMap, Window, Workspace, even_cuts, tiles
from int4core.dtypes import U4, U7, IntType
from int4core.errors import EngineError
from int4core.layers import Linear, Quantize, ResNet
from int4core.network import Shape, default_input_size, trace_shapes
from int4core.options import NumpyOptions
from int4core.quantize import requantize
from int4core.random_model import random_model
from tests.int4core.networks import as_model, random_input, random_network, reference_trace

NETWORKS = {
    "one block a stage": {},
    "more blocks": {"blocks": (2, 3, 2, 1), "width": 4},
    "wide": {"width": 24, "classes": 33},
    "pool of 3": {"pool": 3},
    "large biases, added first": {"bias": 32767},
    "shift 20": {"shift": 20},
    "shift 26, in float64": {"shift": 26, "bias": 3000},
    "shift 3": {"shift": 3},
    "shift 0": {"shift": 0},
    "dilation and groups": {"dilation": 2, "groups": 2},
    "ceil_mode": {"ceil_mode": True, "size": (56, 50)},
}


@pytest.mark.parametrize("case", NETWORKS, ids=lambda name: name.replace(" ", "-"))
def test_every_layer_equals_the_reference(case: str) -> None:
    options = dict(NETWORKS[case])
    size = options.pop("size", None)
    net = random_network(seed=len(case), **options)
    x = random_input(net, 3, size=size)
    backend = NumpyBackend(as_model(net), options=NumpyOptions(input_size=size, threads=2))
    expected = reference_trace(net, x)
    found = backend.trace(x)
    assert set(found) == set(expected)
    for name in expected:
        assert found[name].dtype == np.int32
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    np.testing.assert_array_equal(backend.accumulators(x), expected["fc"])
    backend.close()


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (3, 1, 2, 2)])
def test_models_in_the_published_format(blocks: tuple[int, int, int, int]) -> None:
    model = random_model(blocks=blocks, width=16, classes=16, seed=5)
    size = default_input_size(model.network)
    x = random_input(model.network, 1, size=size)
    found = NumpyBackend(model).trace(x)
    for name, values in reference_trace(model.network, x).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_the_test_networks_are_not_degenerate() -> None:
    """Results cover their range, zeros do not rule, and s8 residuals take both signs."""
    net = random_network()
    seen = reference_trace(net, random_input(net, 3))
    for name, values in seen.items():
        if "quantize" in name and name.endswith(("1", "2")):
            assert values.min() == 0, name
            assert values.max() == 15, name
            assert 0.05 < (values > 0).mean() < 0.9, name
    assert seen["layer1_0_downsample_1"].min() < 0 < seen["layer1_0_downsample_1"].max()
    assert len(np.unique(seen["fc"])) > 5


def test_both_float_types_are_taken() -> None:
    """The shift decides: the case above that is meant to run in float64 does, and the usual one does not."""

    def types(net: ResNet) -> set[np.dtype]:
        blocks = NumpyBackend(as_model(net))._program.blocks
        return {part.products.weight.dtype for b in blocks for part in (*b.heads, b.tail)}

    assert types(random_network()) == {FLOAT32}
    assert FLOAT64 in types(random_network(shift=26, bias=3000))


@pytest.mark.parametrize("images", [1, 2, 5, 16])
def test_batch_split_and_threads_do_not_matter(images: int) -> None:
    net = random_network(seed=3)
    x = random_input(net, images)
    alone = NumpyBackend(as_model(net), options=NumpyOptions(threads=1))
    shared = NumpyBackend(as_model(net), options=NumpyOptions(threads=3))
    expected = np.concatenate([alone.accumulators(x[i : i + 1]) for i in range(images)])
    np.testing.assert_array_equal(shared.accumulators(x), expected)
    np.testing.assert_array_equal(shared.accumulators(x), expected, err_msg="scratch is reused")


def rectified(factors: np.ndarray, shift: int, out: IntType, bias: np.ndarray, x: np.ndarray, bound: int):
    """Rectify on x (pixels, channels), as bytes; and the definition on the same."""
    stored = factors.astype(np.uint16)
    quantize = Quantize("q", f"u31u16{out.name}", out.bits, shift, int(stored.max()), stored)
    sums = x.astype(np.float32)
    step = Rectify(quantize, out, bias.astype(np.int64), bound, FLOAT32)
    step.run(sums)
    expected = requantize(np.maximum(x + bias, 0), factors, shift, out)
    return sums.astype(np.uint8), expected, step


@pytest.mark.parametrize(("out", "every"), [(U4, 1), (U7, 16)], ids=["u4", "u7"])
def test_float32_rescale_at_every_threshold(out: IntType, every: int) -> None:
    """For each factor, the sums on both sides of every step of the result.

    Both rules never fall as x grows, so equality next to each step is equality everywhere.
    """
    factors = np.arange(every, 65536, every, dtype=np.int64)
    for first in range(0, len(factors), 4096):
        some = factors[first : first + 4096]
        steps = np.arange(1, out.hi + 2)[:, None]
        above = -(-((steps << 16) - (1 << 15)) // some)
        x = np.concatenate([above - 1, above, np.full((1, some.size), (1 << 24) - 1)])
        x = np.minimum(x, (1 << 24) - 1)
        found, expected, _ = rectified(some, 16, out, np.zeros(some.size, np.int64), x, (1 << 24) - 1)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("reach", [500, 32767])
@pytest.mark.parametrize("shift", [0, 1, 8, 16, 17])
def test_bias_in_the_rescale(reach: int, shift: int) -> None:
    """Thresholds again with a bias a channel, whether it was folded into the constant or added first."""
    rng = np.random.default_rng(shift)
    factors = rng.integers(1, 65536, 4096)
    bias = rng.integers(-reach, reach + 1, factors.size)
    steps = np.arange(0, 17)[:, None]
    above = -(-((steps << shift) - ((1 << shift) >> 1)) // factors) - bias
    bound = (1 << 24) - 1
    x = np.clip(np.concatenate([above - 1, above, above * 0 - 10_000, above * 0 + 10_000_000]), -bound, bound)
    x = np.clip(x + bias, -bound, bound) - bias
    found, expected, step = rectified(factors, shift, U4, bias, x, bound)
    np.testing.assert_array_equal(found, expected)
    assert (step.bias is None) == (2 * int(np.abs(bias * factors).max()) + (16 << shift) < 1 << 24)


def test_sums_beyond_32_bits_are_refused() -> None:
    net = random_network()
    fc = replace(net.fc, bias=np.full_like(net.fc.bias, 2**31 - 1))
    with pytest.raises(EngineError, match=r"fc: sums could reach \d+, which does not fit 32 bits"):
        NumpyBackend(as_model(replace(net, fc=fc)))


def test_the_largest_sum_of_32_bits_is_the_last_that_passes() -> None:
    """The last layer alone, of one class: its bias leaves room for its products to the bit, or is one too large."""
    weight, largest = np.array([[127, -128]], np.int8), 2**31 - 1 - 127 * 255
    for bias in (largest, -largest):
        layer = Linear("fc", "u7s8s32", 2, 1, np.array([bias], np.int32), weight)
        features = np.array([[127, 0], [0, 127], [127, 127]])
        expected = features @ weight.T.astype(np.int64) + bias
        np.testing.assert_array_equal(Classifier(layer, U7).run(features), expected)
        wider = replace(layer, bias=np.array([bias + np.sign(bias)], np.int32))
        with pytest.raises(EngineError, match=f"fc: sums could reach {2**31}, which does not fit 32 bits"):
            Classifier(wider, U7)


def test_large_linear_sums_take_float64() -> None:
    net = random_network(seed=9)
    fc = replace(net.fc, bias=np.array([2**30, -(2**30), 2**24 + 1, -(2**24) - 1, 0], np.int32))
    net = replace(net, fc=fc)
    x = random_input(net, 2)
    np.testing.assert_array_equal(NumpyBackend(as_model(net)).accumulators(x), reference_trace(net, x)["fc"])


def test_shapes_of_a_network() -> None:
    net = random_network(blocks=(1, 2, 1, 1), pool=7)
    assert default_input_size(net) == (224, 224)
    shapes = {s.name: s for s in trace_shapes(net)}
    assert shapes["conv1"].output == Shape(8, 112, 112)
    assert shapes["layer2_0_conv2"].input == Shape(16, 56, 56)
    assert shapes["layer2_0_conv2"].output == Shape(16, 28, 28)
    assert shapes["layer2_0_conv2"].multiply_adds == 16 * 16 * 9 * 28 * 28
    assert shapes["layer2_0_conv2"].input_bytes == 16 * 56 * 56 // 2
    assert shapes["layer2_0_conv2"].weight_bits == 16 * 16 * 9 * 4
    assert shapes["layer2_1_downsample"].block == "layer2_1"
    assert shapes["avgpool"].output == Shape(256, 1, 1)
    assert shapes["scale"].output_type is None


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ((0, 64), "not positive"),
        ((1, 1), "avgpool needs 2 pixels"),
        ((96, 96), "avgpool leaves 2x2 pixels"),
        ((64, 128), "avgpool leaves 1x3 pixels"),
    ],
)
def test_an_input_size_that_does_not_fit(size: tuple[int, int], why: str) -> None:
    with pytest.raises(EngineError, match=why):
        trace_shapes(random_network(), size)


def test_a_residual_of_another_shape_is_refused() -> None:
    net = random_network()
    block = net.layer2.children[0]
    conv, *rest = block.downsample.children
    branch = replace(block.downsample, children=(replace(conv, stride=(1, 1)), *rest))
    broken = replace(net, layer2=replace(net.layer2, children=(replace(block, downsample=branch),)))
    with pytest.raises(EngineError, match="layer2_0_downsample gives a 64x16x16 residual"):
        trace_shapes(broken)


def test_rectangular_input() -> None:
    """Sizes that the strides round to the same last map are all possible."""
    net = random_network(seed=4)
    x = random_input(net, 2, size=(50, 61))
    backend = NumpyBackend(as_model(net), options=NumpyOptions(input_size=(50, 61)))
    np.testing.assert_array_equal(backend.accumulators(x), reference_trace(net, x)["fc"])


def test_padding_that_avgpool_cannot_have() -> None:
    net = random_network(pool=4)
    net = replace(net, avgpool=replace(net.avgpool, padding=1, stride=4))
    with pytest.raises(EngineError, match="avgpool: padding=1 is not supported"):
        NumpyBackend(as_model(net))


def test_tiles_cover_everything_once() -> None:
    for n, height, width, pixels in ((3, 7, 7, 100), (2, 56, 56, 384), (5, 1, 1, 2), (1, 9, 5, 1)):
        seen = np.zeros((n, height, width), int)
        for tile in tiles(n, Shape(1, height, width), pixels):
            seen[tile.index] += 1
            assert tile.pixels == seen[tile.index].size
        assert (seen == 1).all()


def test_even_cuts() -> None:
    assert [s.stop - s.start for s in even_cuts(7, 3)] == [2, 2, 3]


def test_windows_never_leave_the_map() -> None:
    fmap = FeatureMap.take(Workspace(), "x", 1, Shape(2, 4, 4), (0, 0))
    with pytest.raises(ValueError, match="narrower than the padding"):
        fmap.windows(Window((3, 3), (1, 1), (1, 1), (1, 1)), Shape(2, 4, 4))
    with pytest.raises(ValueError, match="leave the padded map"):
        fmap.windows(Window((3, 3), (1, 1), (0, 0), (1, 1)), Shape(2, 3, 2))


def test_workspace_clears_borders_it_reuses() -> None:
    space = Workspace()
    space.take("x", (1, 6, 6, 2), np.uint8)[:] = 9
    fmap = FeatureMap.take(space, "x", 1, Shape(2, 2, 2), (1, 1))
    fmap.inside[:] = 5
    assert fmap.padded.sum() == 5 * 8
    assert fmap.padded.ctypes.data % 64 == 0


def test_blas_threads_come_back_after_the_last_user() -> None:
    now = [6]
    blas = BlasThreads(get=lambda: now[0], put=lambda n: now.__setitem__(0, n))
    with limited(blas):
        assert now == [1]
        with limited(blas):
            assert now == [1]
        assert now == [1]
    assert now == [6]
    with limited(None):
        assert now == [6]


def test_the_blas_is_numpy_s_whoever_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(api: str, path: str, threads: int) -> SimpleNamespace:
        return SimpleNamespace(user_api=api, filepath=path, get_num_threads=lambda: threads, set_num_threads=print)

    openmp, scipy = library("openmp", "/lib/libgomp.so", 3), library("blas", "/site/scipy.libs/libopenblas.so", 4)
    numpy, mkl = library("blas", "/site/numpy.libs/libopenblas.so", 5), library("blas", "/opt/libmkl_rt.so", 6)
    for here, threads in (([openmp, scipy, numpy], 5), ([mkl], 6), ([openmp], None), ([], None)):
        controller = SimpleNamespace(lib_controllers=here)
        monkeypatch.setattr(blas_threads, "ThreadpoolController", lambda controller=controller: controller)
        blas = find_blas()
        assert (blas.get() if blas else None) == threads


def test_numpys_own_blas_is_limited() -> None:
    blas = find_blas()
    if blas is None:
        pytest.skip("the threads of NumPy's BLAS cannot be set here")
    before = blas.get()
    with blas.limited():
        assert blas.get() == 1
    assert blas.get() == before


def test_no_threads_is_an_error() -> None:
    with pytest.raises(EngineError, match="threads=0"):
        NumpyBackend(as_model(random_network()), options=NumpyOptions(threads=0))
