"""The benchmark of kernels that nobody has tuned: which of them it puts into the network; what runs needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import kernels
from benchmarks.kernels import LATER, Measured, replacements
from int4core.backends.cuda.chips import CHIPS
from int4core.backends.cuda.families.table import PAIR_NUMBERS
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import joined
from int4core.backends.cuda.plan.planner import make_plan
from int4core.model import Model
from int4core.tune import parse_numbers
from int4core.tuning.files import load_tuning
from tests.paths import ROOT


def measured() -> list[Measured]:
    """conv1 faster, layer1's conv2 slower; a pair faster than two kernels, and one of its layers alone, less so."""
    net = Model.load(ROOT / "model").network
    ops = fuse(net, 8)
    by_name = {op.name: op for op in (*ops, *joined(ops))}
    return [
        Measured((by_name["conv1"],), 500.0, {240: 380.0, 241: 390.0}),
        Measured((by_name["layer1_0_conv2"], by_name["layer1_1_conv2"]), 200.0, {170: 210.0}),
        Measured((by_name["layer1_1_conv3 + layer1_2_conv1"],), 520.0, {160: 360.0, 161: 350.0}),
        Measured((by_name["layer1_2_conv1"],), 180.0, {100: 170.0}),
    ]


def test_what_is_faster_alone_goes_into_the_network() -> None:
    assert replacements(measured(), parse_numbers("240-249")) == {"conv1": 240}
    assert replacements(measured(), parse_numbers("170-179")) == {}
    chosen = replacements(measured(), parse_numbers("0-300"))
    assert chosen == {"conv1": 240, "layer1_1_conv3": 161, "layer1_2_conv1": 161}


def test_every_replacement_has_a_plan() -> None:
    net, chip = Model.load(ROOT / "model").network, CHIPS["h100"]
    today = load_tuning("h100", net).numbers_for(1024)
    plain = {name: number for name, number in today.items() if number not in PAIR_NUMBERS}
    plan = make_plan(net, chip, 1024, numbers={**plain, **replacements(measured(), parse_numbers(LATER))})
    assert plan.misfits == ()
    assert len(plan.steps) == 50


@pytest.mark.gpu
def test_it_runs(cupy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    number = "240,160" if cupy.cuda.Device().compute_capability == "90" else "0,1"
    assert kernels.main(["--batch", "8", "--seconds", "0.1", "--numbers", number]) == 0
    said = capsys.readouterr().out
    assert "today, once more" in said
    assert "DIFFER" not in said
