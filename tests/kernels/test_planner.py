"""The plan of a network: what lives when, where it lies, and which kernels run; no GPU needed."""

from __future__ import annotations

from functools import cache

import pytest

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.memory import ALIGNMENT, Lifetime, Placement, lifetimes, plan_arena
from int4core.backends.cuda.plan.ops import (
    CLASSES,
    INPUT,
    TOP1,
    ConvOp,
    Op,
    PairOp,
    PooledOp,
    StemOp,
    Tensor,
    outputs,
    parts,
)
from int4core.backends.cuda.plan.planner import KEPT, NetworkPlan, make_plan
from int4core.errors import EngineError
from int4core.layers import ResNet
from int4core.model import Model
from int4core.network import trace_shapes
from int4core.random_model import random_model
from tests.int4core.networks import random_network
from tests.paths import ROOT

H200 = CHIPS["h200"]


@cache
def default_network() -> ResNet:
    return Model.load(ROOT / "model").network


def lives_of(plan: NetworkPlan, kept: tuple[str, ...] = KEPT) -> tuple[Lifetime, ...]:
    return lifetimes([step.op for step in plan.steps], plan.input_bytes, kept)


def assert_apart(lives: tuple[Lifetime, ...], arena: Placement) -> None:
    """Tensors that are alive at once do not overlap, everything is aligned and inside."""
    for life in lives:
        offset = arena.offsets[life.tensor.name]
        assert offset % ALIGNMENT == 0
        assert offset + life.tensor.bytes <= arena.bytes
    for i, a in enumerate(lives):
        for b in lives[i + 1 :]:
            if a.first <= b.last and b.first <= a.last:
                begin_a, begin_b = arena.offsets[a.tensor.name], arena.offsets[b.tensor.name]
                assert begin_a + a.tensor.bytes <= begin_b or begin_b + b.tensor.bytes <= begin_a, (a, b)


@pytest.mark.parametrize("n", [1, 7, 1024])
def test_tensors_that_live_together_lie_apart(n: int) -> None:
    plan = make_plan(default_network(), H200, n)
    assert_apart(lives_of(plan), plan.arena)
    # Reuse is what the arena is for: far less than all tensors, and no less than the most that lives at once.
    lives = lives_of(plan)
    total = sum(life.tensor.bytes for life in lives)
    most = max(sum(life.tensor.bytes for life in lives if life.first <= i <= life.last) for i in range(len(plan.steps)))
    assert most <= plan.arena.bytes < 0.4 * total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("basic", [False, True], ids=["bottlenecks", "basic blocks"])
def test_random_networks(seed: int, basic: bool) -> None:
    net = random_network(seed, (1, 2, 1, 3), width=8 + 12 * seed, pool=1 + seed % 2, basic=basic)
    plan = make_plan(net, H200, 3)
    assert_apart(lives_of(plan), plan.arena)


def test_what_the_host_reads_is_never_written_over() -> None:
    plan = make_plan(default_network(), H200, 16)
    for name in (INPUT, CLASSES, TOP1):
        life = next(life for life in lives_of(plan) if life.tensor.name == name)
        assert life.last == len(plan.steps) - 1


def test_all_tensors_can_be_kept() -> None:
    plan = make_plan(default_network(), H200, 2, keep_all=True)
    everything = tuple(step.op.output.name for step in plan.steps) + KEPT
    assert_apart(lives_of(plan, everything), plan.arena)
    assert plan.arena.bytes > make_plan(default_network(), H200, 2).arena.bytes


def test_a_gap_is_used_again() -> None:
    lives = [Lifetime(Tensor("a", 1000), 0, 1), Lifetime(Tensor("b", 1000), 1, 2), Lifetime(Tensor("c", 900), 2, 3)]
    arena = plan_arena(lives)
    assert arena.offsets["c"] == arena.offsets["a"]
    assert arena.bytes == 2048


def reads_before_writes(ops: tuple[Op, ...]) -> bool:
    written = {INPUT}
    for op in ops:
        if not written.issuperset(op.reads):
            return False
        written.add(op.output.name)
    return True


def test_fusion_of_the_default_network() -> None:
    ops = fuse(default_network(), 4)
    assert len(ops) == 52  # 53 convolutions; four downsamples are part of a conv3; average, fully connected, top-1
    assert isinstance(ops[0], StemOp)
    assert reads_before_writes(ops)
    convs = [op for op in ops if isinstance(op, ConvOp)]
    assert sum(op.branch is not None for op in convs) == 4
    assert sum(op.kept is not None for op in convs) == 12
    assert sum(op.multiply_adds for op in ops) / 4 == pytest.approx(4.089e9, rel=1e-3)


def test_fusion_of_a_resnet_18() -> None:
    net = random_model(blocks=(2, 2, 2, 2), width=64, classes=1000, basic=True).network
    ops = fuse(net, 4)
    assert len(ops) == 20  # 20 convolutions; three downsamples are part of a conv2; average, fully connected, top-1
    assert reads_before_writes(ops)
    convs = [op for op in ops if isinstance(op, ConvOp)]
    assert {op.shape.taps for op in convs} == {3}
    assert sum(op.branch is not None for op in convs) == 3
    assert sum(op.kept is not None for op in convs) == 5
    assert sum(op.multiply_adds for op in ops) == 4 * sum(shape.multiply_adds for shape in trace_shapes(net))


def test_channels_are_padded_to_whole_k_steps() -> None:
    for op in fuse(random_network(0, width=20), 1):
        if isinstance(op, ConvOp):
            assert op.shape.c % 32 == op.shape.k % 32 == 0
            assert op.weight.shape[:2] == (op.shape.k, op.shape.c)
            assert len(op.bias) == len(op.rescale.factor) == op.shape.k


@pytest.mark.parametrize(("options", "said"), [({"groups": 2}, "groups=2"), ({"dilation": 2}, r"dilation=\(2, 2\)")])
def test_layers_without_a_kernel_are_named(options: dict[str, int], said: str) -> None:
    with pytest.raises(EngineError, match=rf"layer1_0_conv2: .*{said}"):
        make_plan(random_network(0, **options), H200, 1)


def test_a_number_that_does_not_fit_leaves_the_default_and_is_told() -> None:
    plain = make_plan(default_network(), H200, 8)
    plan = make_plan(default_network(), H200, 8, numbers={"layer2_0_conv1": 6, "layer3_1_conv2": 150, "conv1": 3})
    kernels = {step.op.name: step.kernel.number for step in plan.steps}
    assert kernels["layer2_0_conv1"] == 6
    assert kernels["layer3_1_conv2"] == next(s.kernel.number for s in plain.steps if s.op.name == "layer3_1_conv2")
    default = kernels["layer3_1_conv2"]
    assert [misfit.layer for misfit in plan.misfits] == ["conv1", "layer3_1_conv2"]
    assert str(plan.misfits[1]).startswith("layer3_1_conv2: kernel 150 does not fit here (")
    assert str(plan.misfits[1]).endswith(f"); kernel {default} computes it")


def test_numbers_of_layers_without_a_choice_are_told() -> None:
    """Convolutions have numbers that fc has not; a downsampling convolution is computed with its block's conv3."""
    plain = make_plan(default_network(), H200, 8)
    number = next(step.kernel.number for step in plain.steps if step.op.name == "layer1_0_conv3")
    assert number is not None
    assert make_plan(default_network(), H200, 8, numbers={"layer1_0_downsample_0": number}).misfits == ()
    plan = make_plan(default_network(), H200, 8, numbers={"layer1_0_downsample_0": number + 1, "fc": 3})
    assert list(map(str, plan.misfits)) == [
        f"layer1_0_downsample_0: kernel {number + 1} does not fit here (it is a part of layer1_0_conv3); "
        f"kernel {number} computes it",
        "fc: kernel 3 does not fit here (fc: 3 is no kernel for it); the one without a number computes it",
    ]


def test_two_layers_that_name_a_pair_are_one_step() -> None:
    numbers = {"layer1_1_conv3": 160, "layer1_2_conv1": 160}
    plain, plan = make_plan(default_network(), H200, 8), make_plan(default_network(), H200, 8, numbers=numbers)
    assert plan.misfits == ()
    assert len(plan.steps) == len(plain.steps) - 1
    (step,) = [step for step in plan.steps if isinstance(step.op, PairOp)]
    assert step.op.name == "layer1_1_conv3 + layer1_2_conv1"
    assert [tensor.name for tensor in outputs(step.op)] == ["layer1_1_quantize3", "layer1_2_quantize1"]
    lives = lives_of(plan)
    assert_apart(lives, plan.arena)
    assert {life.tensor.name for life in lives} == {life.tensor.name for life in lives_of(plain)}
    assert [part.name for step in plan.steps for part in parts(step.op)] == [step.op.name for step in plain.steps]
    both = [step.op for step in plain.steps if step.op.name in numbers]
    assert step.op.multiply_adds == sum(op.multiply_adds for op in both)
    assert step.op.activation_bytes == sum(op.activation_bytes for op in both) - outputs(both[0])[0].bytes


def test_a_residual_convolution_is_a_part_of_a_pair() -> None:
    numbers = dict.fromkeys(("layer1_0_conv3", "layer1_0_downsample_0", "layer1_1_conv1"), 162)
    plain, plan = make_plan(default_network(), H200, 8), make_plan(default_network(), H200, 8, numbers=numbers)
    assert plan.misfits == ()
    assert len(plan.steps) == len(plain.steps) - 1
    (step,) = [step for step in plan.steps if isinstance(step.op, PairOp)]
    assert step.op.reads == ("layer1_0_quantize2", "maxpool")
    assert_apart(lives_of(plan), plan.arena)


@pytest.mark.parametrize("number", [250, 252])
def test_the_pool_is_a_part_of_the_last_convolution_that_names_it(number: int) -> None:
    numbers = {"layer4_2_conv3": number}
    plain, plan = make_plan(default_network(), H200, 8), make_plan(default_network(), H200, 8, numbers=numbers)
    assert plan.misfits == ()
    (step,) = [step for step in plan.steps if isinstance(step.op, PooledOp)]
    assert step.op.name == "layer4_2_conv3 + avgpool"
    assert [tensor.name for tensor in outputs(step.op)] == ["avgpool"]
    lives = lives_of(plan)
    assert_apart(lives, plan.arena)
    assert {life.tensor.name for life in lives_of(plain)} - {life.tensor.name for life in lives} == {
        "layer4_2_quantize3"
    }
    assert [part.name for step in plan.steps for part in parts(step.op)] == [step.op.name for step in plain.steps]
    conv, pool = [step.op for step in plain.steps if step.op.name in ("layer4_2_conv3", "avgpool")]
    wide = outputs(conv)[0].bytes
    assert step.op.activation_bytes == conv.activation_bytes + pool.activation_bytes - 2 * wide


@pytest.mark.parametrize("number", [250, 252])
def test_a_plan_that_keeps_every_tensor_leaves_no_convolution_to_its_pool(number: int) -> None:
    numbers = {"layer4_2_conv3": number}
    plan = make_plan(default_network(), H200, 8, numbers=numbers, keep_all=True)
    assert plan.misfits == ()
    assert "layer4_2_quantize3" in plan.arena.offsets


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"layer4_1_conv3": 250}, "the network's last convolution"),
        ({"layer4_1_conv3": 252}, "the network's last convolution"),
        ({"layer4_2_conv3": 160}, "both layers must name it"),
    ],
    ids=["not the last", "nor for its means", "a number of pairs"],
)
def test_pools_that_do_not_fit_leave_the_defaults(numbers: dict[str, int], why: str) -> None:
    plain, plan = make_plan(default_network(), H200, 8), make_plan(default_network(), H200, 8, numbers=numbers)
    assert [str(step.kernel) for step in plan.steps] == [str(step.kernel) for step in plain.steps]
    assert [misfit.layer for misfit in plan.misfits] == list(numbers)
    assert all(why in str(misfit) for misfit in plan.misfits)


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"layer1_1_conv3": 160}, "both layers must name it"),
        ({"layer1_1_conv3": 160, "layer1_2_conv1": 161}, "both layers must name it"),
        ({"layer1_0_conv3": 160, "layer1_1_conv1": 160}, "ahead: not with a residual convolution"),
        ({"layer2_0_conv3": 162, "layer2_1_conv1": 162}, "64 or 128 channels with stride 1"),
        ({"layer3_1_conv3": 160, "layer3_2_conv1": 160}, "256 to 1024 to 256 channels"),
        ({"layer1_1_conv2": 160, "layer1_1_conv3": 160}, "both layers must name it"),
    ],
    ids=[
        "one layer",
        "two numbers",
        "a residual convolution ahead",
        "one of stride 2",
        "too many channels",
        "a 3x3 first",
    ],
)
def test_pairs_that_do_not_fit_leave_the_defaults(numbers: dict[str, int], why: str) -> None:
    plain, plan = make_plan(default_network(), H200, 8), make_plan(default_network(), H200, 8, numbers=numbers)
    assert [str(step.kernel) for step in plan.steps] == [str(step.kernel) for step in plain.steps]
    assert [misfit.layer for misfit in plan.misfits] == list(numbers)
    assert all(why in str(misfit) for misfit in plan.misfits)
