"""The kernel table: numbers, defaults, refusals, and constants that kernels of a layer may share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from int4core.backends.cuda.chips import CHIPS, chip, name_of
from int4core.backends.cuda.families.table import (
    FAMILIES,
    KNOWN_NUMBERS,
    candidates,
    default_kernel,
    describe,
    make_kernel,
)
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import ConvOp, Op, StemOp, joined
from int4core.errors import EngineError
from int4core.layers import ResNet
from int4core.model import Model
from int4core.random_model import random_model
from int4core.tuning.choices import groups
from tests.paths import ROOT


@cache
def ops(n: int = 8) -> tuple[Op, ...]:
    """One of each shape of the default network, pairs among them."""
    single = fuse(Model.load(ROOT / "model").network, n)
    return tuple(group[0] for group in groups([*single, *joined(single)]))


@cache
def resnet34() -> ResNet:
    return random_model(blocks=(3, 4, 6, 3), width=64, classes=1000, basic=True).network


def test_numbers_are_unique_and_all_described() -> None:
    assert len(KNOWN_NUMBERS) == sum(family.count for family in FAMILIES)
    lines = list(describe())
    assert [int(line.split()[0]) for line in lines] == sorted(KNOWN_NUMBERS)


def test_every_number_computes_something() -> None:
    tried = {kernel.number for chip in CHIPS.values() for op in ops() for kernel in candidates(op, chip)}
    assert tried - {None} == KNOWN_NUMBERS


@pytest.mark.parametrize("name", sorted(CHIPS))
@pytest.mark.parametrize("n", [1, 1024])
def test_every_chip_has_a_default_for_everything(name: str, n: int) -> None:
    for op in (*fuse(Model.load(ROOT / "model").network, n), *fuse(resnet34(), n)):
        kernel = default_kernel(op, CHIPS[name])
        assert kernel.shared_bytes <= CHIPS[name].shared_bytes
        assert 0 < kernel.threads <= 1024
        assert all(size > 0 for size in kernel.grid)


def test_kernels_of_a_layer_with_one_layout_have_the_same_constants() -> None:
    """They are uploaded once a layout: two kernels that differ there would read each other's."""
    for op in (*ops(), *(group[0] for group in groups(fuse(resnet34(), 8)))):
        seen: dict[str, tuple[bytes, ...]] = {}
        for kernel in candidates(op, CHIPS["h200"]):
            constants = tuple(np.ascontiguousarray(array).tobytes() for array in kernel.constants())
            assert seen.setdefault(kernel.layout, constants) == constants, (op.name, kernel.number)


def test_refusals_say_why() -> None:
    conv = next(op for op in ops() if isinstance(op, ConvOp))
    stem = next(op for op in ops() if isinstance(op, StemOp))
    with pytest.raises(EngineError, match="9999 is no kernel for it"):
        make_kernel(conv, CHIPS["h200"], 9999)
    with pytest.raises(EngineError, match="is no kernel for it"):
        make_kernel(stem, CHIPS["h200"], 0)
    with pytest.raises(EngineError, match=r"compute capability 9\.0, not 8\.0"):
        make_kernel(conv, CHIPS["a100"], 102)
    old = replace(CHIPS["t4"], name="p4", capability=(6, 1))
    with pytest.raises(EngineError, match="p4: nothing computes"):
        default_kernel(conv, old)


@pytest.mark.parametrize("name", ["a100", "t4"])
def test_batches_beyond_the_kernels_numbers_are_refused(name: str) -> None:
    wide = max((op for op in ops() if isinstance(op, ConvOp)), key=lambda op: op.shape.h * op.shape.w * op.shape.c)
    pieces = wide.shape.h * wide.shape.w * wide.shape.c // 32
    default_kernel(replace(wide, shape=replace(wide.shape, n=(1 << 30) // pieces - 1)), CHIPS[name])
    with pytest.raises(EngineError, match="choose a smaller batch"):
        default_kernel(replace(wide, shape=replace(wide.shape, n=(1 << 30) // pieces + 1)), CHIPS[name])


def test_names_of_chips() -> None:
    assert name_of("NVIDIA A100-SXM4-80GB") == "a100"
    assert name_of("NVIDIA L40S") == "l40s"
    assert name_of("NVIDIA L4") == "l4"
    assert name_of("Tesla T4") == "t4"
    names = {
        "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA GeForce RTX 4080": "rtx4080", "NVIDIA B200": "b200",
        "NVIDIA RTX 6000 Ada Generation": "rtx6000_ada", "NVIDIA GeForce RTX 5090": "rtx5090", "NVIDIA GB10": "gb10",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx_pro_6000", "Orin (nvgpu)": "orin",
        "NVIDIA Thor": "thor", "NVIDIA B300 SXM6 AC": "b300", "NVIDIA A10G": None, "NVIDIA A30": None,
        "NVIDIA GeForce RTX 4090 Laptop GPU": None, "NVIDIA GeForce RTX 4080 SUPER": None, "Quadro RTX 6000": None,
    }  # fmt: skip
    assert {name: name_of(name) for name in names} == names
    with pytest.raises(EngineError, match="unknown GPU 'k80'"):
        chip("k80")
