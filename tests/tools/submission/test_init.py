from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.submission.__main__ import main
from tools.submission.plan import Plan, read_plan
from tools.submission.system import FILL_IN, MAY_BE_EMPTY, NOT_EMPTY, accelerators, unfinished

ARGUMENTS = ["init", "--round", "v6.1", "--submitter", "ACME", "--system", "box"]


def test_all_fields_are_there_and_what_no_machine_tells_is_to_fill_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert main([*ARGUMENTS, "--set", "status=rdi", str(folder)]) == 0
    system = json.loads((folder / "system.json").read_text())
    assert len(NOT_EMPTY) == 26
    assert set(system) == {*NOT_EMPTY, *MAY_BE_EMPTY}
    assert len(system) == 35
    assert all(system[name] for name in NOT_EMPTY)
    assert (system["submitter"], system["division"], system["system_type"]) == ("ACME", "open", "edge")
    assert int(system["host_processor_core_count"]) > 0
    assert system["status"] == "rdi"
    assert system["cooling"].startswith(FILL_IN)
    assert "cooling" in unfinished(system)
    assert f"{folder}/system.json: cooling: {FILL_IN}: air or liquid" in capsys.readouterr().out
    assert read_plan(folder) == Plan("v6.1", "ACME", "open", "edge", "box", trial=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "datacenter"], "v6.1 has ResNet-50 in edge only"),
        (["--submitter", "A/B"], "it becomes a folder's name"),
        (["--set", "colour=red"], "--set colour: no such field"),
    ],
)
def test_what_no_round_takes(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGUMENTS, *arguments, str(tmp_path / "new")]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, str(tmp_path)]) == 0
    assert main([*ARGUMENTS, str(tmp_path)]) == 1
    assert "is there" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"round": 3}'])
def test_a_damaged_plan_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "submission.json").write_text(text)
    assert main(["check", str(tmp_path)]) == 1
    assert "submission.json" in capsys.readouterr().err


def test_what_the_driver_tells_of_gpus() -> None:
    gpu = {"name": "NVIDIA H200", "memory_bytes": 141 * 2**30, "clock_limit_mhz": 1980}
    assert accelerators([gpu, gpu]) == {
        "accelerators_per_node": "2",
        "accelerator_model_name": "NVIDIA H200",
        "accelerator_memory_capacity": "141 GiB",
        "accelerator_frequency": "1980 MHz",
    }
    unknown = accelerators([{**gpu, "memory_bytes": None, "clock_limit_mhz": None}])
    assert unknown["accelerator_memory_capacity"].startswith(FILL_IN)
    assert unknown["accelerator_frequency"] == ""
    assert set(accelerators([]).values()) == {"0", "N/A"}
