"""The PyTorch executor against the plain int64 reference, layer by layer, and its proofs one by one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from int4core.backends import create_backend
from int4core.dtypes import S8, U4, U7, IntType
from int4core.engine import Engine
from int4core.errors import EngineError
from int4core.layers import Quantize, ResNet, Sequential
from int4core.model import Model
from int4core.network import default_input_size
from int4core.options import TorchOptions
from int4core.quantize import requantize, rounding_half
from int4core.random_model import random_model
from tests.int4core import golden
from tests.int4core.networks import as_model, random_input, random_network, reference_trace
from tests.int4core.test_numpy_backend import NETWORKS
from tests.paths import ROOT, SHARED, needs_shared

NEEDED = "needs PyTorch and Numba: make test WITH_TORCH=1, or pip install '.[torch]'"
torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("numba", reason=NEEDED)

from int4core.backends.torch import convolution  # noqa: E402
from int4core.backends.torch.backend import TorchBackend  # noqa: E402
from int4core.backends.torch.convolution import (  # noqa: E402
    Convolution,
    Direct,
    Fused,
    Halves,
    Weights,
    channels_first,
    channels_last,
)

BRANCHES = ("downsample", "downsample_1", "downsample_2")
"""Quantizes of residual branches, which are a part of their block's end."""


def expect_all_layers(net: ResNet, backend: TorchBackend, x: np.ndarray) -> None:
    expected, found = reference_trace(net, x), backend.trace(x)
    assert list(found) == [name for name in expected if not name.endswith(BRANCHES)]
    for name, values in found.items():
        assert values.dtype == np.int32
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    np.testing.assert_array_equal(backend.accumulators(x), expected["fc"])


@pytest.mark.parametrize("case", NETWORKS, ids=lambda name: name.replace(" ", "-"))
def test_every_layer_equals_the_reference(case: str) -> None:
    options: dict[str, Any] = dict(NETWORKS[case])
    size = options.pop("size", None)
    net = random_network(seed=len(case), **options)
    backend = TorchBackend(as_model(net), options=TorchOptions(input_size=size, threads=2))
    expect_all_layers(net, backend, random_input(net, 5, size=size))
    backend.close()


@pytest.mark.parametrize("basic", [False, True], ids=["bottlenecks", "basic blocks"])
def test_models_in_the_published_format(basic: bool) -> None:
    model = random_model(blocks=(2, 1, 2, 1), width=16, classes=16, seed=5, basic=basic, pool=3)
    backend = TorchBackend(model)
    expect_all_layers(model.network, backend, random_input(model.network, 3, size=default_input_size(model.network)))
    backend.close()


def test_rectangular_input() -> None:
    net = random_network(seed=4)
    backend = TorchBackend(as_model(net), options=TorchOptions(input_size=(50, 61)))
    expect_all_layers(net, backend, random_input(net, 2, size=(50, 61)))
    backend.close()


def test_both_ways_to_rescale_are_taken() -> None:
    """Bytes come from oneDNN where float32 holds all of it, and else of a pass, in float64 where that is needed."""

    def ways(net: ResNet) -> set[tuple[bool, np.dtype]]:
        backend = TorchBackend(as_model(net))
        blocks = backend._program.blocks
        backend.close()
        return {(head.fused is not None, b.tail.last.scale.dtype) for b in blocks for head in b.heads}

    assert ways(random_network()) == {(True, np.dtype(np.float32))}
    assert ways(random_network(bias=32767)) == {(False, np.dtype(np.float32))}
    assert (False, np.dtype(np.float64)) in ways(random_network(shift=26, bias=3000))


@pytest.mark.parametrize("images", [1, 2, 5, 19])
def test_batch_split_and_threads_do_not_matter(images: int) -> None:
    net = random_network(seed=3)
    x = random_input(net, images)
    with (
        Engine(as_model(net), "torch", options=TorchOptions(threads=1)) as alone,
        Engine(as_model(net), "torch", batch_size=32, options=TorchOptions(threads=3)) as shared,
    ):
        expected = np.concatenate([alone.accumulators(x[i : i + 1]) for i in range(images)])
        np.testing.assert_array_equal(shared.accumulators(x), expected)
        np.testing.assert_array_equal(shared.accumulators(x), expected, err_msg="again")


def test_large_blocks_end_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from int4core.backends.torch import program

    net = random_network(seed=6)
    monkeypatch.setattr(program, "TAIL_VALUES", 2 * 32 * 16 * 16)
    backend = TorchBackend(as_model(net), batch_size=8, options=TorchOptions(threads=1))
    assert backend._program.blocks[0].tail.images < 7, "more calls than one"
    expect_all_layers(net, backend, random_input(net, 7))
    backend.close()


def with_factors(net: ResNet, factors: tuple[int, ...]) -> ResNet:
    """`net` with these factors, in turns, wherever a block has u4 come out."""

    def changed(quantize: Quantize) -> Quantize:
        if quantize.output_bits != 4:
            return quantize
        return replace(quantize, requant_factor=np.resize(np.array(factors, np.uint16), quantize.channels))

    def stage(layer: Sequential) -> Sequential:
        names = ("quantize1", "quantize2", "quantize3")
        blocks = (replace(block, **{name: changed(getattr(block, name)) for name in names}) for block in layer.children)
        return replace(layer, children=tuple(blocks))

    return replace(net, **{name: stage(getattr(net, name)) for name in ("layer1", "layer2", "layer3", "layer4")})


FACTORS = (1 << 13, 1 << 12, 1 << 11)


def test_ties_go_up_in_every_layer() -> None:
    """Factors that are powers of two put a large part of the sums half way between two results."""
    net = with_factors(random_network(seed=8), FACTORS)
    x = random_input(net, 2)
    expected = reference_trace(net, x)
    for conv, quantize in (("layer1_0_conv1", "layer1_0_quantize1"), ("layer2_0_conv1", "layer2_0_quantize1")):
        factor = np.resize(FACTORS, expected[conv].shape[1])[:, None, None]
        even = (expected[conv] * factor & 0x1FFFF) == 0x8000  # the lower neighbour is even: it is what others take
        inside = even & (expected[quantize] > 0) & (expected[quantize] < 15)
        assert inside.sum() > 20, f"{conv}: hardly any ties"
    backend = TorchBackend(as_model(net))
    expect_all_layers(net, backend, x)
    backend.close()


def sums_as_images(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (1, 1, N, 65) and a row of weights int8 (65,): int (N,) of -16,000 to 1,000,000 as what they come to.

    No pair of products leaves 16 bits, so that every CPU adds them exactly.
    """
    weights = np.array([127] * 63 + [-127, 1], np.int8)
    below = np.minimum(np.maximum(-sums, 0) // 127 + (sums < 0), 127)
    whole, rest = np.divmod(sums + 127 * below, 127)
    each = np.clip(whole[:, None] - 127 * np.arange(63), 0, 127)
    images = np.concatenate([each, below[:, None], rest[:, None]], axis=1)
    assert np.array_equal(images @ weights.astype(np.int64), sums)
    return images.astype(np.uint8)[None, None], weights


@pytest.mark.parametrize(("out", "shift"), [(U4, s) for s in (0, 1, 8, 15, 16, 17)] + [(U7, s) for s in (0, 1, 15, 16)])
def test_bytes_at_every_threshold(out: IntType, shift: int) -> None:
    """The sums on both sides of every step of the result, and all of them for factors of all sizes."""
    rng = np.random.default_rng(shift)
    factors = np.concatenate([1 << np.arange(16), rng.integers(0, 65536, 48)])
    bias = rng.integers(-60, 61, factors.size) if out.hi << shift < 1 << 21 else np.zeros(factors.size, np.int64)
    steps = (np.arange(1, out.hi + 2) << shift) - rounding_half(shift)
    above = (-(-steps[:, None] // np.maximum(factors, 1)) - bias).ravel()
    sums = np.unique(np.concatenate([above - 1, above, [-16000, -101, -1, 0, 1, 999_999]]).clip(-16000, 999_999))
    images, row = sums_as_images(sums)
    quantize = Quantize("q", f"u31u16{out.name}", out.bits, shift, int(factors.max()), factors.astype(np.uint16))
    fused = Fused.of(quantize, out, bias)
    assert fused is not None
    weights = Weights("", np.tile(row[None, :, None, None], (factors.size, 1, 1, 1)), bias)
    kernel = Direct(weights, 0, (1, row.size, 1, sums.size)).kernel
    found = channels_last(kernel.bytes(channels_first(images), fused))[0, 0]
    values = np.maximum(sums[:, None] + bias, 0)
    np.testing.assert_array_equal(found, requantize(values, factors, shift, out))
    if shift:
        ties = (values * factors & (1 << shift + 1) - 1) == 1 << shift - 1
        assert (ties & (found > 0) & (found < out.hi)).sum() > 5, "from where rounding to even would go down"


@pytest.mark.parametrize("sign", [1, -1])
def test_fused_only_where_float32_holds_it(sign: int) -> None:
    """The largest bias for which 2 * hi * 2^shift + |2 * bias * factor + 1| is at most 2^24, and the next."""
    quantize = Quantize("q", "u31u16u4", 4, 16, 1, np.ones(1, np.uint16))
    most = ((1 << 24) - (15 << 17) - sign) // 2
    assert Fused.of(quantize, U4, np.array([sign * most])) is not None
    assert Fused.of(quantize, U4, np.array([sign * (most + 1)])) is None


def test_sums_that_float32_cannot_hold(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(1)
    weight = np.where(np.arange(1100)[None, :, None, None] < 1090, 127, rng.integers(-127, 128, (3, 1100, 1, 1)))
    bias = np.array([1, 0, -1])
    x = rng.integers(250, 256, (2, 2, 3, 1100)).astype(np.uint8)
    with caplog.at_level(logging.WARNING, "int4core"):
        conv = Convolution(Weights("wide", weight.astype(np.int8), bias), S8, (2, 1100, 2, 3))
    assert "wide: sums could reach 17" in caplog.text
    expected = (x.astype(np.int64) - 128) @ weight[:, :, 0, 0].T + bias
    assert expected.max() > 1 << 24
    assert (expected & 1).any()
    np.testing.assert_array_equal(conv.sums(channels_first(x)).astype(np.int64), expected)
    assert conv.fuse(Quantize("q", "u31u16u4", 4, 16, 1, np.ones(3, np.uint16)), U4) is None


@pytest.mark.parametrize("source", [S8, IntType(False, 8)], ids=["s8", "u8"])
def test_input_in_halves(source: IntType) -> None:
    """On any CPU, with padding: the sums are those of the input as it is."""
    rng = np.random.default_rng(2)
    zero = 128 if source.signed else 0
    weight = rng.integers(-128, 128, (5, 3, 3, 3)).astype(np.int8)
    weights = Weights("", weight, rng.integers(-99, 99, 5), stride=(2, 2), padding=(1, 1))
    x = rng.integers(0, 256, (2, 9, 8, 3)).astype(np.uint8)
    padded = np.full((2, 11, 10, 3), zero, np.int64)
    padded[:, 1:-1, 1:-1] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded - zero, (3, 3), (1, 2))[:, ::2, ::2]
    expected = np.einsum("nhwcrs,kcrs->nhwk", windows, weight.astype(np.int64)) + weights.bias
    found = channels_last(Halves(weights, zero, (2, 3, 9, 8))(channels_first(x)))
    np.testing.assert_array_equal(found, expected)


SATURATING = """
import logging
import numpy as np
from int4core.backends.torch.backend import TorchBackend
from tests.int4core.networks import as_model, random_input, random_network, reference_trace
logging.basicConfig(format="%(message)s")
net = random_network(seed=2)
net.conv1.weight[0] = 127
x = random_input(net, 2)
x[0] = 127
found = TorchBackend(as_model(net)).trace(x)
expected = reference_trace(net, x)
for name, values in found.items():
    np.testing.assert_array_equal(values, expected[name], err_msg=name)
print("equal")
"""


def test_a_cpu_without_vnni() -> None:
    """oneDNN, made to take AVX2 for all there is, adds products in 16 bits: the stem is computed in halves."""
    done = subprocess.run(
        [sys.executable, "-c", SATURATING], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr
    assert "conv1: products saturate on this CPU, which lacks VNNI: computed in two halves" in done.stderr


def test_sums_beyond_32_bits_are_refused() -> None:
    net = random_network()
    fc = replace(net.fc, bias=np.full_like(net.fc.bias, 2**31 - 1))
    with pytest.raises(EngineError, match=r"fc: sums could reach \d+, which does not fit 32 bits"):
        TorchBackend(as_model(replace(net, fc=fc)))


def test_large_linear_sums_are_exact() -> None:
    net = random_network(seed=9)
    fc = replace(net.fc, bias=np.array([2**30, -(2**30), 2**24 + 1, -(2**24) - 1, 0], np.int32))
    net = replace(net, fc=fc)
    x = random_input(net, 2)
    backend = TorchBackend(as_model(net))
    np.testing.assert_array_equal(backend.accumulators(x), reference_trace(net, x)["fc"])
    backend.close()


def test_padding_that_avgpool_cannot_have() -> None:
    net = random_network(pool=4)
    net = replace(net, avgpool=replace(net.avgpool, padding=1, stride=4))
    with pytest.raises(EngineError, match="avgpool: padding=1 is not supported"):
        TorchBackend(as_model(net))


def test_answers_are_the_numpy_engines() -> None:
    """All that the engine gives, streamed and at once, of NumPy's arrays and of PyTorch's."""
    net = random_network(seed=1)
    x = random_input(net, 5)
    with Engine(as_model(net), batch_size=4) as numpy, Engine(as_model(net), "torch", batch_size=4) as engine:
        assert (engine.backend.name, engine.input_shape, engine.classes) == ("torch", numpy.input_shape, numpy.classes)
        for name in ("accumulators", "logits", "top1"):
            expected, found = getattr(numpy, name)(x), getattr(engine, name)(torch.from_numpy(x))
            assert isinstance(found, torch.Tensor)
            np.testing.assert_array_equal(found.numpy(), expected)
        for expected, found in zip(numpy.top_k(x, 3), engine.top_k(x, 3), strict=True):
            np.testing.assert_array_equal(found, expected)
        flipped = x[::-1, :, :, ::-1]
        np.testing.assert_array_equal(engine.accumulators(flipped), numpy.accumulators(flipped))
        parts = [x[:2], x[:0], x[2:]]
        for expected, found in zip(numpy.stream(parts), engine.stream(parts), strict=True):
            np.testing.assert_array_equal(found, expected)
        readonly = x.copy()
        readonly.flags.writeable = False
        np.testing.assert_array_equal(engine.accumulators(readonly), numpy.accumulators(x))


def test_pytorchs_own_threads_stay_as_they_are() -> None:
    before = torch.get_num_threads()
    net = random_network()
    backend = TorchBackend(as_model(net), options=TorchOptions(threads=2))
    backend.accumulators(random_input(net, 4))
    assert [backend._pool.submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
    assert torch.get_num_threads() == before
    backend.close()


def test_a_pytorch_that_rounds_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = convolution.Kernel.bytes

    def to_even(self: Any, x: Any, fused: Fused) -> Any:
        return right(self, x, replace(fused, bias=fused.bias - 2.0**-17))

    monkeypatch.setattr(convolution.Kernel, "bytes", to_even)
    with pytest.raises(EngineError, match="does not round as the network needs it"):
        TorchBackend(as_model(random_network()))


def test_a_pytorch_without_the_convolution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_given: object) -> None:
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qconv_prepack'")

    monkeypatch.setattr(convolution.Kernel, "__init__", absent)
    with pytest.raises(
        EngineError, match=r"no oneDNN convolution of integers here \(.*qconv_prepack.*: use backend 'numpy'"
    ):
        TorchBackend(as_model(random_network()))


def test_sums_of_eight_images() -> None:
    with Engine(Model.load(golden.MODEL), "torch") as engine:
        np.testing.assert_array_equal(engine.accumulators(golden.images()), np.load(golden.SUMS))


@needs_shared
def test_published_sums_of_eight_images() -> None:
    with (
        np.load(SHARED / "golden" / "inputs8.npz") as stored,
        Engine(Model.load(SHARED / "model-v0.5" / "model"), "torch") as engine,
    ):
        np.testing.assert_array_equal(engine.accumulators(stored["x"]), stored["logits"])
        layers, x = engine.trace(stored["x"][:1]), stored["x"]
    assert x.shape == (8, 3, 224, 224)
    with np.load(SHARED / "golden" / "layers_image0.npz") as stored:
        names = [name for name in stored.files if name in layers]
        assert len(names) > 40
        for name in names:
            np.testing.assert_array_equal(layers[name][0], stored[name], err_msg=name)


def test_without_threads_nothing_is_computed() -> None:
    with pytest.raises(EngineError, match="threads=0: at least one worker thread is needed"):
        create_backend("torch", as_model(random_network()), 4, TorchOptions(threads=0))
