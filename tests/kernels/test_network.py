"""Whole networks with the kernels of chips that have 4-bit tensor cores, with 8-bit ones and with Hopper's, emulated.

On a CPU, every layer equal to the NumPy engine; on a Hopper, for which the compiler spells the instructions out, the
published model equal to the golden logits.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda.chips import CHIPS, Chip
from int4core.backends.cuda.families import conv_mma, conv_mma4, conv_wgmma, stem_mma
from int4core.backends.cuda.families.head import Linear, Mean, Top1
from int4core.backends.cuda.families.kernel import Kernel
from int4core.backends.cuda.families.table import default_kernel
from int4core.backends.cuda.jit import tensor_map
from int4core.backends.cuda.network import DeviceNetwork
from int4core.backends.cuda.plan.convolution import Output
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.memory import ALIGNMENT
from int4core.backends.cuda.plan.ops import CLASSES, INPUT, TOP1, ConvOp, LinearOp, Op, PoolOp, StemOp, parts
from int4core.backends.cuda.plan.planner import NetworkPlan, make_plan
from int4core.engine import Engine
from int4core.model import Model
from int4core.options import NumpyOptions
from int4core.random_model import random_model
from int4core.tuning.files import load_tuning
from tests.kernels.emulator.driver import Emulated, emulated_driver, needs_compiler
from tests.kernels.problems import unpack
from tests.paths import SHARED, needs_shared


def kernel_of(op: Op, chip: Chip, bits: int) -> Kernel:
    """Of `bits`-bit operands: 4 or 8 by mma.sync, or Hopper's own where the chip is one."""
    if chip.capability == conv_wgmma.CAPABILITY:
        return default_kernel(op, chip)
    if isinstance(op, StemOp):
        return stem_mma.default(op, chip)
    if isinstance(op, ConvOp):
        return conv_mma4.default(op, chip) if bits == 4 else conv_mma.default(op, chip)
    if isinstance(op, PoolOp):
        return Mean(op)
    return Linear(op) if isinstance(op, LinearOp) else Top1(op)


def values(op: Op, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An operation's bytes as NCHW integers, padded channels included; (N, C) as (N, C, 1, 1)."""
    if isinstance(op, ConvOp):
        conv = op.shape
        pixels = raw.reshape(conv.n, conv.p, conv.q, -1)
        return (unpack(pixels) if conv.output == Output.U4 else pixels).transpose(0, 3, 1, 2)
    if isinstance(op, StemOp):
        return unpack(raw.reshape(op.n, *op.pooled, -1)).transpose(0, 3, 1, 2)
    assert isinstance(op, PoolOp)
    return raw.reshape(op.n, -1, 1, 1)


LONG = pytest.mark.skipif(
    os.environ.get("INT4CORE_TEST_ALL") != "1", reason="long, and its kernels are in other networks: make check-all"
)


@needs_compiler
@pytest.mark.parametrize(
    ("name", "bits", "options"),
    [
        # Turing has no other convolutions: channels that are padded to one k-step must work there too.
        ("t4", 4, {"width": 24}),
        pytest.param("l4", 4, {"width": 64}, marks=LONG),
        ("t4", 4, {"width": 20, "basic": True}),
        ("l4", 4, {"width": 64, "basic": True}),
        ("l4", 8, {"width": 64, "basic": True}),
        pytest.param("h200", 8, {"width": 64, "basic": True, "blocks": (1, 1, 1, 1)}, marks=LONG),
    ],
    ids=["t4", "l4", "t4, basic blocks", "l4, basic blocks", "l4 in 8 bits, basic blocks", "h200, basic blocks"],
)
def test_every_layer_equal_to_numpy(
    name: str, bits: int, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path_factory.getbasetemp()
    driver = emulated_driver(folder)
    monkeypatch.setattr(tensor_map, "load_driver", lambda: driver)
    chip = CHIPS[name]
    arch = chip.capability[0] * 100 + chip.capability[1] * 10
    network: Model = random_model(**{"blocks": (1, 2, 1, 1)} | options, classes=37, pool=1, seed=3)
    x = np.random.default_rng(5).integers(-128, 128, (2, 3, 32, 32), dtype=np.int8)
    with Engine(network) as cpu:
        expected, sums, top1 = cpu.trace(x), cpu.accumulators(x), cpu.top1(x)
    tensors: dict[str, np.ndarray[Any, Any]] = {INPUT: x}
    for op in fuse(network.network, len(x), (32, 32)):
        kernel = kernel_of(op, chip, bits)
        tensors[op.output.name] = np.full(op.output.bytes, 0xA5, np.uint8)
        constants = [np.ascontiguousarray(array) for array in kernel.constants()]
        addresses = {tensor: array.ctypes.data for tensor, array in tensors.items()}
        arguments = kernel.arguments(addresses, [array.ctypes.data for array in constants])
        emulated = Emulated(kernel.source, folder, arch)
        emulated(kernel.grid, kernel.threads, arguments, shared_bytes=kernel.shared_bytes)
        if isinstance(op, (StemOp, ConvOp, PoolOp)):
            result, wanted = values(op, tensors[op.output.name]), expected[op.output.name]
            wanted = wanted.reshape(*wanted.shape, *(1,) * (4 - wanted.ndim))
            np.testing.assert_array_equal(result[:, : wanted.shape[1]], wanted, f"{op.name}: {kernel}")
            assert not result[:, wanted.shape[1] :].any(), op.name
    np.testing.assert_array_equal(tensors[CLASSES].view(np.int32).reshape(len(x), -1), sums)
    np.testing.assert_array_equal(tensors[TOP1].view(np.int32), top1)
    assert sums.any()


@needs_compiler
@pytest.mark.parametrize(
    ("blocks", "numbers"),
    [
        (
            (2, 1, 1, 1),
            {"conv1": 243, "layer1_1_conv2": 170, "layer1_1_conv3": 161, "layer2_0_conv1": 161},
        ),
        pytest.param((1, 2, 2, 2), {"layer2_1_conv2": 187, "layer3_1_conv2": 185, "layer4_1_conv2": 180}, marks=LONG),
    ],
    ids=["a pair", "deep layers"],
)
def test_a_hopper_network_in_its_arena(
    blocks: tuple[int, ...], numbers: dict[str, int], tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With what only a tuning file chooses: a pair, whose tensors live on beside it, Winograd's products, the stem."""
    folder = tmp_path_factory.getbasetemp()
    driver = emulated_driver(folder)
    monkeypatch.setattr(tensor_map, "load_driver", lambda: driver)
    model = random_model(blocks=blocks, width=64, classes=37, pool=3, seed=3)
    x = np.random.default_rng(5).integers(-128, 128, (1, 3, 96, 96), dtype=np.int8)
    with Engine(model, options=NumpyOptions(input_size=(96, 96))) as cpu:
        expected, sums, top1 = cpu.trace(x), cpu.accumulators(x), cpu.top1(x)
    plan = make_plan(model.network, CHIPS["h200"], len(x), size=(96, 96), numbers=numbers)
    assert plan.misfits == ()
    memory = np.full(plan.arena.bytes + ALIGNMENT, 0x5A, np.uint8)
    arena = memory[-memory.ctypes.data % ALIGNMENT :]
    addresses = {name: arena.ctypes.data + offset for name, offset in plan.arena.offsets.items()}

    def tensor(name: str, size: int) -> np.ndarray[Any, Any]:
        return arena[plan.arena.offsets[name] :][:size]

    tensor(INPUT, x.nbytes)[:] = x.view(np.uint8).ravel()
    for kernel in (step.kernel for step in plan.steps):
        constants = [np.ascontiguousarray(array) for array in kernel.constants()]
        arguments = kernel.arguments(addresses, [array.ctypes.data for array in constants])
        Emulated(kernel.source, folder, 900)(kernel.grid, kernel.threads, arguments, shared_bytes=kernel.shared_bytes)
        for op in parts(kernel.op):
            if isinstance(op, (StemOp, ConvOp)):
                found = values(op, tensor(op.output.name, op.output.bytes))
                np.testing.assert_array_equal(found, expected[op.output.name], f"{op.name}: {kernel}")
    np.testing.assert_array_equal(tensor(CLASSES, sums.nbytes).view(np.int32).reshape(sums.shape), sums)
    np.testing.assert_array_equal(tensor(TOP1, top1.nbytes).view(np.int32), top1)


@needs_shared
@pytest.mark.gpu
@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("name", ["t4", "titan_rtx", "a100", "l4"])
def test_golden_logits_with_the_kernels_of_another_chip(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels that the chip's tuned file chooses."""
    published = Model.load(SHARED / "model-v0.5" / "model")
    tuning = load_tuning(name, published.network, None)
    golden = np.load(SHARED / "golden" / "inputs8.npz")
    network = DeviceNetwork(published)

    def plan(n: int, keep_all: bool = False, top: int = 0) -> NetworkPlan:
        numbers = tuning.numbers_for(n)
        return make_plan(published.network, CHIPS[name], n, numbers=numbers, keep_all=keep_all, top=top)

    monkeypatch.setattr(network, "plan", plan)
    batch = network.batch(len(golden["x"]))
    convolutions = [step.kernel for step in batch.plan.steps if isinstance(step.op, ConvOp)]
    assert len(convolutions) > 40
    assert all(isinstance(kernel, conv_mma4.Mma4Conv) for kernel in convolutions)
    batch.input.set(golden["x"])
    stream = network.cupy.cuda.Stream(non_blocking=True)
    network.device.synchronize()
    batch.run(stream)
    np.testing.assert_array_equal(batch.sums.get(stream=stream), golden["logits"])
    network.close()
