"""The static model: reading machine code, what it makes of counts, and what it writes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from int4core.backends.cuda.chips import ADA, CHIPS, TURING
from int4core.backends.cuda.families.conv_mma4 import FIRST_NUMBER, Mma4Conv, is_native
from int4core.backends.cuda.families.table import digest
from int4core.backends.cuda.jit.nvrtc import find_nvrtc
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.model import Model
from int4core.tuning import autoconfig
from int4core.tuning.files import FOLDER
from int4core.tuning.static import model as static_model
from int4core.tuning.static.kernels import Estimate, compiled, estimate
from int4core.tuning.static.rates import clock
from int4core.tuning.static.sass import Listing, Loop, find_nvdisasm
from int4core.tuning.static.work import RESOURCES, Counts, Phase, Work, cut, resident_blocks

needs_compiler = pytest.mark.skipif(
    find_nvrtc() is None or find_nvdisasm() is None, reason="needs the nvidia-cuda-nvrtc and -nvdisasm wheels"
)

CODE = """
.L_x_1:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_2:
        /*0010*/                   LDS.U.128 R4, [R2] ;
        /*0020*/              @!P0 LDG.E.128.CONSTANT.SYS R8, [R2.64+UR4] ;
        /*0030*/                   IMMA.8832.U4.S4 R98, R186.reuse.ROW, R20.COL, R98 ;
        /*0040*/                   LDSM.16.M88.4 R4, [R3] ;
        /*0050*/               @P0 BRA `(.L_x_2) ;
        /*0060*/                   STG.E.64.SYS [R2], R4 ;
        /*0070*/                   EXIT ;
.L_x_4:
        /*0080*/                   SYNCS R2 ;
        /*0090*/                   BRA `(.L_x_2) ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
"""


def test_code_is_read() -> None:
    listing = Listing.parse(CODE)
    assert [i.base for i in listing.instructions] == [
        "MOV", "LDS", "LDG", "IMMA", "LDSM", "BRA", "STG", "EXIT", "SYNCS", "BRA", "BRA",
    ]  # fmt: skip
    assert listing.loops == (Loop(1, 5),)
    parts = cut(listing, "IMMA")
    assert parts.products == 1
    assert parts.loop.shared == 2 * 512
    assert parts.loop.through_l2 == 512
    assert parts.after.through_l2 == 256
    assert parts.before.groups == {"integer": 1}


def test_clocks_of_resources() -> None:
    counts = Counts.of(Listing.parse(CODE).instructions)
    turing = counts.clocks(4, 2048 * 10, TURING.int4, TURING)
    assert tuple(turing) == RESOURCES
    assert turing["tensor"] == 10
    assert turing["issue"] == 11
    assert turing["shared"] == 4 * 1024 / 64
    assert counts.clocks(4, 0, 1, ADA)["shared"] == turing["shared"] / 2


def test_blocks_hide_one_another() -> None:
    idle = dict.fromkeys(RESOURCES, 0.0)
    phases = (Phase(idle | {"tensor": 100.0}, 3, pause=10), Phase(idle | {"issue": 50.0, "tensor": 20.0}))
    alone = Work(phases, 4, 1)
    assert (alone.bound, alone.overlapped, alone.clocks) == ("tensor", 320, 380)
    assert replace(alone, resident=2).clocks == 350
    assert replace(alone, warps=2).clocks == 3 * 210 + 100
    assert Phase(idle, 2, wait=30).alone(1) == 60


def test_residents_are_limited() -> None:
    turing = TURING
    assert resident_blocks(128, 250, 1 << 10, turing) == 2
    assert resident_blocks(128, 64, 30 << 10, turing) == 2
    assert resident_blocks(256, 32, 1 << 10, turing) == 4
    assert resident_blocks(64, 16, 0, turing) == 16


def test_clocks_are_the_vendors_boost_clocks() -> None:
    """The rate of int8 and the clock, which NVIDIA gives apart, agree with what a multiprocessor does in a clock."""
    boost_ghz = {
        "t4": 1.59, "titan_rtx": 1.77, "a100": 1.41, "a10": 1.695, "orin": 1.3, "l4": 2.04, "l40s": 2.52,
        "rtx4080": 2.505, "rtx4090": 2.52, "rtx6000_ada": 2.505, "h100": 1.83, "h200": 1.83,
    }  # fmt: skip
    assert set(boost_ghz) == {chip.name for chip in CHIPS.values() if chip.rates}
    for name, expected in boost_ghz.items():
        assert clock(CHIPS[name]) == pytest.approx(expected * 1e9, rel=0.005), name


@pytest.fixture(scope="module")
def convolutions() -> dict[str, ConvOp]:
    return {op.name: op for op in fuse(Model.load(static_model.MODEL).network, 64) if isinstance(op, ConvOp)}


@needs_compiler
def test_an_estimate_respects_every_floor(convolutions: dict[str, ConvOp]) -> None:
    t4 = CHIPS["t4"]
    for name, bound in (("layer4_1_conv2", "tensor"), ("layer1_1_conv3", "device memory")):
        guess = estimate(Mma4Conv(convolutions[name], FIRST_NUMBER, t4), t4)
        floor = 2 * convolutions[name].multiply_adds / (2 * t4.tops * 1e12) * 1e6
        assert guess.compute_us > floor
        assert guess.us > max(guess.memory_us, guess.l2_us)
        assert guess.bound == bound
        assert floor / guess.compute_us <= guess.busy < 1  # less where the last wave of blocks is not full


@needs_compiler
def test_a_pass_of_the_main_loop_holds_the_products_of_a_block(convolutions: dict[str, ConvOp]) -> None:
    t4 = CHIPS["t4"]
    kernel = Mma4Conv(convolutions["layer2_0_conv3"], FIRST_NUMBER, t4)
    parts = cut(compiled(kernel.source, t4.arch)[1], "IMMA")
    assert parts.products == parts.loop.groups["tensor"] == 128
    outputs = 64 * 64 / 32
    assert parts.after.groups["pack"] == outputs / 2
    assert parts.after.groups["float"] == outputs
    assert parts.once.groups["float"] == 4 * outputs  # a difference, a multiply-add, a difference, a multiply-add


def test_the_choice_goes_to_every_layer_and_its_downsample(convolutions: dict[str, ConvOp]) -> None:
    pairs = (("layer1_0_conv3", 301), ("layer1_1_conv3", 303))
    layers = [
        static_model.Layer((op := convolutions[name],), (Estimate(op, number, "", 1, 1, 1, "tensor", 0.5),))
        for name, number in pairs
    ]
    chosen = static_model.choice(layers, CHIPS["t4"], 64, 1000)
    assert chosen.kernels == {
        "layer1_residual1_conv3": 301, "layer1_residual1_ds_conv": 301, "layer1_residual2_conv3": 303,
    }  # fmt: skip
    assert chosen.metadata["origin"] == "static model"
    assert chosen.metadata["table"] == digest([301, 303])


@pytest.mark.parametrize("name", static_model.GPUS)
def test_files_of_the_package_fit_their_chips(name: str, convolutions: dict[str, ConvOp]) -> None:
    config = autoconfig.read(FOLDER / name)
    assert dict(config.metadata) | {"batch": ""} == {
        "engine": "int4core", "gpu": name, "origin": "static model", "batch": "",
        "table": digest(config.kernels.values()),
    }  # fmt: skip
    numbers = config.by_layer()
    batch = int(config.metadata["batch"])
    for op in convolutions.values():
        assert is_native(numbers[op.name], CHIPS[name])
        Mma4Conv(replace(op, shape=replace(op.shape, n=batch)), numbers[op.name], CHIPS[name])
    branches = {op.branch.name: op.name for op in convolutions.values() if op.branch}
    assert len(branches) == 4
    assert all(numbers[branch] == numbers[main] for branch, main in branches.items())
    assert len(numbers) == 1 + 48 + 4


@pytest.mark.parametrize("batch", [0, -3, 10**12])
def test_a_batch_that_no_engine_takes_is_one_sentence(batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert static_model.main(["--gpu", "a10", f"--batch={batch}"]) == 1
    said = capsys.readouterr()
    assert said.err == f"error: batch {batch}: at least 1 and at most 16777216 images can be a batch\n"
    assert said.out == ""
