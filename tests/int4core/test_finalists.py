"""Which finalists the network keeps: a network whose time is a table, so that it is known what is best."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families.table import default_kernel, make_kernel
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import Op, PoolOp, joined
from int4core.model import Model
from int4core.tuning.choices import Choice, Timed, fastest
from int4core.tuning.finalists import NEAR, Numbers, best_together, changed, finalists
from tests.paths import ROOT

CHIP = CHIPS["h200"]
PAIR = "layer1_1_conv3 + layer1_2_conv1"
POOLED = "layer4_2_conv3 + avgpool"


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    single = fuse(Model.load(ROOT / "model").network, 8)
    return {op.name: op for op in (*single, *joined(single))}


def choice(ops: Sequence[Op], times: dict[int, float]) -> Choice:
    """Kernels by number, and what each takes alone; -1: the one without a number."""
    kernels = {n: default_kernel(ops[0], CHIP) if n < 0 else make_kernel(ops[0], CHIP, n) for n in times}
    timed = [Timed(kernels[n], us, True) for n, us in times.items()]
    return Choice(tuple(ops), tuple(sorted(timed, key=lambda t: t.us)))


@pytest.fixture
def choices(ops: dict[str, Op]) -> list[Choice]:
    return [
        choice([ops["conv1"]], {232: 100.0, 240: 110.0, 200: 300.0}),
        choice([ops["layer1_0_conv2"], ops["layer1_1_conv2"]], {151: 50.0, 170: 49.0}),
        choice([ops["layer1_1_conv3"]], {111: 80.0, 191: 78.0}),
        choice([ops["layer1_2_conv1"]], {101: 40.0}),
        choice([ops["layer4_2_conv3"]], {111: 20.0}),
        choice([ops["avgpool"]], {-1: 6.0}),
        choice([ops[PAIR]], {160: 121.0, 161: 119.0}),
        choice([ops[POOLED]], {250: 25.0}),
    ]


IN_NETWORK = {
    ("conv1", 232): 100.0, ("conv1", 240): 70.0,
    ("layer1_0_conv2", 151): 50.0, ("layer1_0_conv2", 170): 51.0,
    ("layer1_1_conv2", 151): 50.0, ("layer1_1_conv2", 170): 51.0,
    ("layer1_1_conv3", 111): 80.0, ("layer1_1_conv3", 191): 75.0, ("layer1_1_conv3", 160): 100.0,
    ("layer1_1_conv3", 161): 117.0, ("layer1_2_conv1", 101): 40.0, ("layer1_2_conv1", 160): 0.0,
    ("layer1_2_conv1", 161): 0.0, ("layer4_2_conv3", 111): 20.0, ("layer4_2_conv3", 250): 28.0,
    ("avgpool", None): 6.0, ("avgpool", 250): 0.0,
}  # fmt: skip


def network_us(numbers: Numbers) -> float:
    assert (numbers["layer1_1_conv3"] in (160, 161)) == (numbers["layer1_1_conv3"] == numbers["layer1_2_conv1"])
    assert (numbers["layer4_2_conv3"] == 250) == (numbers["avgpool"] == 250)
    return sum(IN_NETWORK[named] for named in numbers.items())


def start(choices: list[Choice]) -> tuple[Numbers, Numbers]:
    """Numbers of the fastest alone, and of those for one operation each."""
    best = fastest(choices)
    order = [
        "conv1",
        "layer1_0_conv2",
        "layer1_1_conv2",
        "layer1_1_conv3",
        "layer1_2_conv1",
        "layer4_2_conv3",
        "avgpool",
    ]
    alone = {op.name: c.best.kernel.number for c in choices for op in c.ops}
    return {name: best[name].kernel.number for name in order}, {name: alone[name] for name in order}


def test_the_network_decides(choices: list[Choice]) -> None:
    numbers, alone = start(choices)
    assert (numbers["layer1_1_conv3"], numbers["layer1_2_conv1"]) == (191, 101)
    tried = list(best_together(choices, numbers, alone, 3, lambda a, b: (network_us(a), network_us(b))))
    assert tried[-1][1] == {
        "conv1": 240, "layer1_0_conv2": 151, "layer1_1_conv2": 151, "layer1_1_conv3": 160, "layer1_2_conv1": 160,
        "layer4_2_conv3": 111, "avgpool": None,
    }  # fmt: skip
    assert {change.number for change, _ in tried if change.kept} == {240, 151, 160, 111}


def test_what_does_not_fit_or_saves_nothing_is_not_kept(choices: list[Choice]) -> None:
    numbers, alone = start(choices)
    assert list(best_together(choices, numbers, alone, 3, lambda a, b: None)) == []
    for change, best in best_together(choices, numbers, alone, 3, lambda a, b: (100.0, 99.99)):
        assert not change.kept
        assert best == numbers


def test_a_kernel_for_two_is_given_up_for_both(ops: dict[str, Op], choices: list[Choice]) -> None:
    numbers, alone = start(choices)
    paired = {**numbers, "layer1_1_conv3": 160, "layer1_2_conv1": 160}
    found = changed(paired, choices[2], 191, alone)
    assert (found["layer1_1_conv3"], found["layer1_2_conv1"]) == (191, 101)
    found = changed(paired, choices[3], 101, alone)
    assert (found["layer1_1_conv3"], found["layer1_2_conv1"]) == (191, 101)
    assert isinstance(ops["avgpool"], PoolOp)


def test_finalists_are_near_the_fastest(choices: list[Choice]) -> None:
    assert finalists(choices[0], 3) == [232, 240]
    assert choices[0].timed[2].us > NEAR * choices[0].best.us
    assert finalists(choices[0], 1) == [232]
