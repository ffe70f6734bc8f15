"""The benchmark of many GPUs: on engines of the CPU, and its commands and its arithmetic for GPUs that are not here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.host_load import HostLoad
from benchmarks.scaling import Measured, Moved, Sizes, bound_of, line_of, moved_by_file
from pipeline.errors import PipelineError
from pipeline.jpeg.parse import HEADER
from pipeline.machine.gpus import Gpu, Target
from tests.pipeline.application import CPU
from tests.pipeline.conftest import SIZE, images, model_dir

__all__ = ["images", "model_dir"]

SAMPLE = 3 * SIZE * SIZE
GPUS = tuple(Gpu(index, "NVIDIA H100", "h100", f"0000:0{index}:00.0") for index in (0, 1))
QUICK = ["--seconds", "0.3", "--server-steps", "1", "--server-seconds", "0.3", "--files", "30", "--copies", "20"]


def test_engines_of_the_cpu(model_dir: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole runs of the commands: one engine for LoadGen, one and two for files."""
    given = [*CPU, "--model", str(model_dir), "--images", str(images), "--loaders", "1", *QUICK]
    assert scaling.main([*given, "--gpus", "1", "--sections", "offline,server"]) == 0
    assert scaling.main([*given, "--gpus", "1,2", "--sections", "files"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"(offline|server|files)\b", line)]
    parts = [line.split()[:4] for line in lines]
    assert [part[:2] for part in parts] == [["offline", "1"], ["server", "1"], ["files", "1"], ["files", "2"]]
    for part in (parts[0], parts[2]):
        assert float(part[2].replace(",", "")) > 0
        assert part[3] == "100.0%"
    one, two = (float(part[2].replace(",", "")) for part in parts[2:])
    # Rates are shown rounded.
    assert float(parts[3][3].rstrip("%")) == pytest.approx(50 * two / one, rel=2 / min(one, two), abs=0.06)


class Commands:
    """In place of the commands: what they were given, and summaries as they write them."""

    def __init__(self, holds_up_to: float = 1e9) -> None:
        self.given: list[list[str]] = []
        self.gpus: list[Sequence[int]] = []
        self.environments: list[Mapping[str, str] | None] = []
        self.holds_up_to = holds_up_to
        self.rate_of_one = 1000.0

    def __call__(
        self,
        command: Sequence[object],
        folder: Path,
        gpus: Sequence[int],
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> HostLoad:
        given = list(map(str, command))
        self.given.append(given)
        self.gpus.append(gpus)
        self.environments.append(environment)
        value = dict(pairwise(given))
        rate = self.rate_of_one * len(gpus)
        ceilings = {"engine": {"samples_per_s": 2 * rate}, "loadgen": {"samples_per_s": 9 * rate}}
        verdict = {"bound": "overheads", "share_of_ceiling": 0.5, "ceilings": ceilings, "sentences": ["It is so."]}
        summary: dict[str, Any]
        if "--ray" in given:
            folders = takewhile(lambda argument: argument != "--ray", given[1:])
            summary = {"rows": sum(1 for name in folders for _ in Path(name).iterdir()), "errors": 0, "verdict": None}
            path = Path(value["--summary"])
        elif given[0] == "pipeline.classify":
            Path(value["--out"]).touch()
            files = sum(1 for link in Path(given[1]).iterdir() for _ in link.iterdir())
            summary = {
                "rows": files, "errors": 0, "throughput": {"samples_per_second_mean": rate}, "verdict": verdict,
                "decoded": {"gpu": 3, "loaders": {"progressive": 1}},
            }  # fmt: skip
            path = Path(value["--summary"])
        else:
            asked = float(value.get("--lgts_server_target_qps", 0))
            p99_ms = 14 if asked <= self.holds_up_to else 16
            loadgen = {"samples_per_second": asked or rate, "valid": True, "latency_ns": {"99.00": p99_ms * 1e6}}
            path = Path(value["--output-dir"]) / "summary.json"
            path.parent.mkdir()
            summary = {"loadgen": loadgen, "verdict": None if asked else verdict}
        path.write_text(json.dumps(summary))
        return HostLoad(10, 12.0, 1.5, 1.0, None, 3e9, rate / 2)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """A machine with two GPUs."""
    made = Commands()
    monkeypatch.setattr(scaling, "watch", made)
    monkeypatch.setattr(scaling, "list_gpus", lambda: GPUS)
    monkeypatch.setattr(scaling, "choose_target", lambda _gpu: Target("cuda", GPUS[:1], "GPU 0: NVIDIA H100"))
    return made


def measured(arguments: Sequence[str], model_dir: Path, images: Path) -> int:
    return scaling.main(["--model", str(model_dir), "--images", str(images), *QUICK, *arguments])


def test_what_is_run_on_gpus(
    commands: Commands, model_dir: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(["--loadgen-path", "built", "--verbose"], model_dir, images) == 0
    out = capsys.readouterr().out
    assert "on 2 x NVIDIA H100" in out
    assert "left out: 4, 8 GPUs, of which 2 are here" in out
    assert commands.gpus == [(0,), (0,), (0,), (0, 1), (0, 1), (0, 1)]
    offline, server, classify = commands.given[3:]
    for given in commands.given[3:]:
        assert given[given.index("--gpus") + 1] == "0,1"
    assert offline[offline.index("--lgts_min_duration_ms") + 1] == "300"
    assert server[server.index("--lgts_server_target_qps") + 1] == "1700.0"
    assert server[server.index("--loadgen-path") + 1] == "built"
    assert classify[classify.index("--decode") + 1] == "gpu"
    rows = [line.split() for line in out.splitlines() if re.match(r"(offline|server|files)\b", line)]
    assert [row[:6] for row in rows[3:]] == [
        ["offline", "2", "2,000", "100.0%", "12.0", "1.5"],
        ["server", "2", "1,700", "100.0%", "12.0", "1.5"],
        ["files", "2", "2,000", "100.0%", "12.0", "1.5"],
    ]
    assert "nothing: 50% of engine's ceiling" in out
    assert out.count("    It is so.") == 4


def test_what_is_run_on_ray(
    commands: Commands, model_dir: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the GPUs and a part of the loaders; the rate is of the time at work."""
    assert measured(["--sections", "ray", "--gpus", "1,2", "--loaders", "9"], model_dir, images) == 0
    assert commands.environments == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "0,1"}]
    assert [given[given.index("--loaders") + 1] for given in commands.given] == ["9", "4"]
    assert all("--gpus" not in given for given in commands.given)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("ray")]
    assert [row[:7] for row in rows] == [
        ["ray", "1", "500", "100.0%", "12.0", "1.5", "-"],
        ["ray", "2", "1,000", "100.0%", "12.0", "1.5", "-"],
    ]


def test_gpus_that_were_asked_for_and_are_not_here(
    commands: Commands, model_dir: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(["--gpus", "2,4", "--sections", "offline"], model_dir, images) == 1
    assert len(commands.given) == 1
    assert "left out: 4 GPUs, of which 2 are here" in capsys.readouterr().out


def test_the_rate_of_a_server_is_found_by_halving(
    commands: Commands, model_dir: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.holds_up_to = 900
    arguments = ["--gpus", "1", "--sections", "offline,server", "--server-steps", "4"]
    assert measured(arguments, model_dir, images) == 0
    asked = [given[given.index("--lgts_server_target_qps") + 1] for given in commands.given[1:]]
    assert list(map(float, asked)) == [850, 925, 887.5, 906.25]
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split()[2] == "888"
    assert line.endswith("asked 906/s: p99 16.0 ms, answered 906/s")
    commands.holds_up_to = 0
    assert measured(arguments, model_dir, images) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["server", "1", "-", "-"]


def test_a_part_that_fails_is_named_and_the_others_are_measured(
    commands: Commands,
    model_dir: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def watch(command: Sequence[object], *others: Any) -> HostLoad:
        if command[0] == "pipeline.classify":
            raise PipelineError("no luck")
        return commands(command, *others)

    monkeypatch.setattr(scaling, "watch", watch)
    assert measured(["--gpus", "1", "--sections", "files,offline"], model_dir, images) == 1
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.split() == ["files", "1", "FAILED:", "no", "luck"]
    assert second.startswith("offline")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scaling, "choose_target", lambda _gpu: Target("numpy", (), "CPU: no NVIDIA GPU was found"))
    assert scaling.main([]) == 1
    assert "`--gpu cpu` tries it on the CPU" in capsys.readouterr().err


def test_what_a_file_moves() -> None:
    sizes = Sizes(SAMPLE, 1000.0)
    sent = 1000 + HEADER.itemsize
    assert moved_by_file(sizes, {"gpu": 10, "loaders": {}}, on_gpus=True) == Moved(3 * sent, sent)
    by_loaders = Moved(1000 + 2 * SAMPLE, SAMPLE)
    assert moved_by_file(sizes, {"gpu": 0, "loaders": {"CMYK": 2}}, on_gpus=True) == by_loaders
    half = moved_by_file(sizes, {"gpu": 3, "loaders": {"CMYK": 2, "progressive": 1}}, on_gpus=True)
    assert half == Moved((3 * sent + by_loaders.memory) / 2, (sent + SAMPLE) / 2)
    assert moved_by_file(sizes, None, on_gpus=False) == Moved(1000 + 4 * SAMPLE, None)


def test_what_bounds_a_run() -> None:
    ceilings = {"engine": {"samples_per_s": 100.0}, "h2d": {"samples_per_s": 300.0}}
    verdict = {"bound": "engine", "share_of_ceiling": 0.98, "ceilings": ceilings}
    assert bound_of(verdict) == "engine, 98% of its ceiling"
    assert bound_of({**verdict, "bound": "overheads", "share_of_ceiling": 0.5}) == "nothing: 50% of engine's ceiling"
    assert bound_of({**verdict, "bound": "unknown", "share_of_ceiling": 1.2}) == "unknown: above engine's"
    assert bound_of({**verdict, "share_of_ceiling": None}) == "unknown"


def test_a_line_says_what_was_measured_and_what_was_not() -> None:
    base = Measured("offline", 2, 1e5, HostLoad(), Moved(2e5, None), "x")
    assert line_of(base, base).split() == [
        "offline",
        "2",
        "100,000",
        "100.0%",
        "-",
        "-",
        "20.0",
        "moved",
        "-",
        "-",
        "x",
    ]
    four = Measured("offline", 4, 1.5e5, HostLoad(9, 8, 1, 1, 5e10, 2e9), Moved(2e5, 1e5), "x")
    assert line_of(four, base).split()[2:] == ["150,000", "75.0%", "8.0", "1.0", "50.0", "seen", "15.0", "2.0", "x"]
