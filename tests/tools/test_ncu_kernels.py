from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from tools import ncu_kernels
from tools.ncu_kernels import main, ncu_command, report
from tools.ncu_read import METRICS, parse
from tools.passes import Launch

IDENTITY = (
    *("ID", "Process ID", "Process Name", "Host Name", "Kernel Name"),
    *("Context", "Stream", "Block Size", "Grid Size", "Device", "CC"),
)
STALLED = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
ONE_PASS = (Launch("conv1", "stem"), Launch("layer1_0_conv1", "conv_u4s8"))

METRIC_UNITS = {
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "%",
    "gpu__time_duration.sum": "ns",
    "launch__registers_per_thread": "register/thread",
    "launch__shared_mem_per_block_dynamic": "byte/block",
    "launch__shared_mem_per_block_static": "byte/block",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "%",
    "sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_active": "%",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "%",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "%",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "%",
    STALLED.format("gmma"): "inst",
    STALLED.format("long_scoreboard"): "inst",
    STALLED.format("selected"): "inst",
}
STEM = ("61.25", "103,500", "168", "65,536", "1,024", "70.5", "0.00", "55.1", "12.3", "18.7", "0.5", "4.2", "9")
CONV = ("22.00", "71,250", "168", "200,000", "0", "40.0", "31.0", "41.9", "77.6", "24.9", "2.75", "1.1", "1")


def quoted(cells: tuple[str, ...]) -> str:
    return ",".join(f'"{cell}"' for cell in cells)


def table(
    rows: list[tuple[str, tuple[str, ...]]], units: dict[str, str] = METRIC_UNITS, *, drop: frozenset[str] = frozenset()
) -> str:
    """What ncu writes: lines of its own, the header, the units, a row a kernel."""
    kept = [i for i, name in enumerate(units) if name not in drop]
    names, words = tuple(units), tuple(units.values())
    lines = [
        "==PROF== Connected to process 4242 (/usr/bin/python3.11)",
        '==PROF== Profiling "stem": 0%....50%....100% - 9 passes',
        quoted((*IDENTITY, *(names[i] for i in kept))),
        quoted((*[""] * len(IDENTITY), *(words[i] for i in kept))),
    ]
    for number, (name, cells) in enumerate(rows):
        process = (str(number), "4242", "python3.11", "127.0.0.1")
        who = (*process, name, "1", "13", "(384, 1, 1)", "(132, 1, 1)", "0", "9.0")
        lines.append(quoted((*who, *(cells[i] for i in kept))))
    return "\n".join([*lines, "==PROF== Disconnected from process 4242"]) + "\n"


BOTH = table([("stem", STEM), ("conv_u4s8", CONV)])


def test_a_row_of_the_raw_page() -> None:
    stem, conv = parse(BOTH, ONE_PASS)
    assert (stem.layer, conv.layer) == ("conv1", "layer1_0_conv1")
    assert (conv.name, conv.us, conv.tensor, conv.issue) == ("conv_u4s8", 71.25, 77.6, 41.9)
    assert (conv.dram, conv.l2, conv.occupancy, conv.registers) == (22.0, 40.0, 24.9, 168)
    assert (stem.shared_bytes, conv.shared_bytes) == (66_560, 200_000)
    # The most stalled reason; `selected` is a warp that did issue.
    assert (stem.stall, conv.stall) == ("long_scoreboard 4.2", "gmma 2.8")


def test_times_come_in_any_unit() -> None:
    for unit, us in (("us", 71_250), ("usecond", 71_250), ("ms", 71_250e3), ("nsecond", 71.25), ("second", 71_250e6)):
        (conv,) = parse(table([("conv_u4s8", CONV)], {**METRIC_UNITS, "gpu__time_duration.sum": unit}))
        assert conv.us == pytest.approx(us)
    with pytest.raises(PipelineError, match="conv_u4s8: no duration in `71,250` cycle"):
        parse(table([("conv_u4s8", CONV)], {**METRIC_UNITS, "gpu__time_duration.sum": "cycle"}))


def test_what_was_not_collected_is_none_and_printed_as_a_dash() -> None:
    drop = frozenset(METRIC_UNITS) - {"gpu__time_duration.sum"}
    (conv,) = parse(table([("conv_u4s8", CONV)], drop=drop))
    assert (conv.tensor, conv.issue, conv.dram, conv.l2) == (None, None, None, None)
    assert (conv.registers, conv.shared_bytes, conv.occupancy, conv.stall) == (None, None, None, "")
    header, line, last = report([conv])
    assert line.split() == ["conv_u4s8", "71.2", *["-"] * 7]
    assert last == "1 kernels, 71.2 us"
    assert len(header) > len(line)


def test_the_parts_of_the_tensor_pipe_stand_in_for_the_whole() -> None:
    drop = frozenset({"sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"})
    (conv,) = parse(table([("conv_u4s8", CONV)], drop=drop))
    assert conv.tensor == 31.0


def test_cells_that_are_no_numbers_are_not_collected() -> None:
    for cell in ("n/a", "", "nan", "(!) nan"):
        (conv,) = parse(table([("conv_u4s8", (cell, *CONV[1:]))]))
        assert conv.dram is None


def test_names_come_without_parameters() -> None:
    rows = [("void conv<int, 3>(const char *, int)", CONV), ("stem(signed char const*)", STEM)]
    assert [kernel.name for kernel in parse(table(rows))] == ["conv", "stem"]


def test_kernels_of_another_plan_have_no_layer() -> None:
    assert {kernel.layer for kernel in parse(BOTH, (*ONE_PASS, Launch("fc", "linear")))} == {""}


def test_the_table_sums_up() -> None:
    lines = list(report(parse(BOTH, ONE_PASS)))
    shown = "layer1_0_conv1 conv_u4s8 71.2 77.6 41.9 22.0 40.0 168 200000 24.9 gmma 2.8"
    assert " ".join(lines[2].split()) == shown
    mean = (103.5 * 12.3 + 71.25 * 77.6) / 174.75
    assert lines[-1] == f"2 kernels, 174.8 us, tensor pipe {mean:.1f} % of it on average"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "--cap-add=SYS_ADMIN"),
        ("==WARNING== No kernels were profiled.", "ncu saw no kernel"),
        ("==ERROR== Failed to find metric foo\n", "Failed to find metric foo"),
        ("", "its output is empty"),
        ('"ID","Kernel Name","Metric Name"\n"0","a","b"\n"0","a","c"\n', "--csv --page raw"),
    ],
)
def test_no_table_is_an_error_that_says_why(text: str, why: str) -> None:
    with pytest.raises(PipelineError, match=why):
        parse(text)


def test_the_command_line_of_ncu() -> None:
    line = ncu_command(Path("ncu"), Path("o.csv"), ["program"], kernels="a|b", skip=52, count=52, metrics=["x__y.sum"])
    assert line[0] == "ncu"
    assert line[-1] == "program"
    assert {"--csv", "--page=raw", "--log-file=o.csv", "--target-processes=all"} <= set(line)
    assert {"--launch-skip=52", "--launch-count=52"} <= set(line)
    assert "--kernel-name=regex:^(a|b)$" in line
    assert "--clock-control=none" in line
    for section in ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "WarpStateStats"):
        assert f"--section={section}" in line
    assert f"--metrics={','.join(METRICS)},x__y.sum" in line
    assert not any("launch-count" in word for word in ncu_command(Path("ncu"), Path("o"), [], kernels="a"))


def fake_ncu(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, status: int = 0) -> Path:
    """An `ncu` that writes `text` to its log file and its arguments beside it."""
    ncu = folder / "ncu"
    ncu.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "(out,) = [word.split('=')[1] for word in sys.argv if word.startswith('--log-file=')]\n"
        f"pathlib.Path(out).write_text({text!r})\n"
        "pathlib.Path(out + '.args').write_text('\\n'.join(sys.argv[1:]))\n"
        f"sys.exit({status})\n"
    )
    ncu.chmod(ncu.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(ncu_kernels, "planned_pass", lambda model, gpu, batch: ONE_PASS)
    return folder / "out.csv"


def test_by_default_the_second_pass_of_the_engine_is_profiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = fake_ncu(tmp_path, monkeypatch, BOTH)
    assert main(["--out", str(out), "--batch", "256"]) == 0
    given = Path(f"{out}.args").read_text().splitlines()
    assert given[-4:] == ["benchmarks.engine", "--profile", "--batch", "256"]
    assert {"--kernel-name=regex:^(conv_u4s8|stem)$", "--launch-skip=2", "--launch-count=2"} <= set(given)
    assert "layer1_0_conv1" in capsys.readouterr().out


def test_chosen_kernels_of_a_chosen_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = fake_ncu(tmp_path, monkeypatch, BOTH)
    assert main(["--out", str(out), "--kernels", "conv.*", "--count", "3", "--", "program", "--skip"]) == 0
    given = Path(f"{out}.args").read_text().splitlines()
    assert given[-2:] == ["program", "--skip"]
    assert {"--kernel-name=regex:^(conv.*)$", "--launch-skip=0", "--launch-count=3"} <= set(given)


def test_a_failing_ncu_is_an_error_and_an_old_table_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = fake_ncu(tmp_path, monkeypatch, "==ERROR== ERR_NVGPUCTRPERM", status=1)
    out.write_text(BOTH)
    assert main(["--out", str(out)]) == 1
    assert "ERR_NVGPUCTRPERM" in capsys.readouterr().err
    fake_ncu(tmp_path, monkeypatch, BOTH, status=9)
    assert main(["--out", str(out)]) == 1
    assert "ncu ended with 9" in capsys.readouterr().err


def test_a_file_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "k.csv").write_text(BOTH)
    assert main(["--read", str(tmp_path / "k.csv")]) == 0
    assert "2 kernels" in capsys.readouterr().out
    assert main(["--read", str(tmp_path / "none.csv")]) == 1
    assert "none.csv: cannot be read" in capsys.readouterr().err
