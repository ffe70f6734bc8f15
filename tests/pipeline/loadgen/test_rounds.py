"""The official settings of MLPerf's rounds, against the LoadGen that is installed."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import pytest

from pipeline.errors import PipelineError
from pipeline.loadgen.binding import SettingsSpec, make_settings, plain_fields
from pipeline.loadgen.options import parse
from pipeline.loadgen.rounds import ROUNDS, check_official, round_of
from pipeline.loadgen.scenarios import SCENARIOS
from pipeline.loadgen.user_conf import user_conf_of
from tests.pipeline.application import offline

INSTALLED = next((r for r in ROUNDS.values() if r.wheel == metadata.version("mlcommons-loadgen")), None)
needs_a_round = pytest.mark.skipif(INSTALLED is None, reason="the installed LoadGen is not a round's newest")


def official(scenario: str, **given: Any) -> dict[str, Any]:
    """The settings of the installed LoadGen's own rules, then `given`."""
    spec = SettingsSpec(None, None, given, {}, "PerformanceOnly", Path("."), scenario, rules=True)
    return plain_fields(make_settings(lg, spec)[0])


@needs_a_round
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_rules_built_into_loadgen_are_official(scenario: str) -> None:
    assert INSTALLED is not None
    settings = official(scenario)
    check_official(INSTALLED.name, settings)
    assert round_of(settings) == INSTALLED.name


@needs_a_round
@pytest.mark.parametrize(
    ("scenario", "field", "value"),
    [
        ("Offline", "min_duration_ms", 599_999),
        ("Offline", "performance_sample_count_override", 1023),
        ("Offline", "min_query_count", 24_575),
        ("Offline", "performance_issue_same", True),
        ("SingleStream", "single_stream_target_latency_percentile", 0.5),
        ("MultiStream", "multi_stream_samples_per_query", 4),
        ("Server", "server_target_latency_ns", 15_000_001),
        ("Server", "server_target_latency_percentile", 0.98),
    ],
)
def test_a_setting_that_is_not_official_is_named(scenario: str, field: str, value: Any) -> None:
    assert INSTALLED is not None
    with pytest.raises(PipelineError, match=f"--lgts_{field}"):
        check_official(INSTALLED.name, official(scenario, **{field: value}))


@needs_a_round
def test_a_trial_may_be_short_and_small_and_nothing_else() -> None:
    assert INSTALLED is not None
    check_official(INSTALLED.name, official("Offline", min_duration_ms=10, min_query_count=7), trial=True)
    with pytest.raises(PipelineError, match="the seeds of this LoadGen"):
        check_official(INSTALLED.name, official("Offline", qsl_rng_seed=1), trial=True)
    with pytest.raises(PipelineError, match="performance_sample_count_override"):
        check_official(INSTALLED.name, official("Offline", performance_sample_count_override=9), trial=True)


def test_another_rounds_seeds_name_the_wheel_to_install() -> None:
    settings = official("Offline", **ROUNDS["v6.1"].seeds)
    with pytest.raises(PipelineError, match=r"are v6\.1's; install .*mlcommons-loadgen==6\.0\.15"):
        check_official("v6.0", settings)
    assert round_of({**settings, "qsl_rng_seed": 1}) is None


@pytest.mark.parametrize("option", [["--count", "9"], ["--mlperf_conf_path", "x"], ["--skip-bad-images"]])
def test_a_round_has_its_own_rules_and_all_samples(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--round", "v6.1", *option])
    assert f"{option[0]} contradict each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scenario", "text"),
    [
        ("Offline", "resnet50.Offline.target_qps = 120.5\n"),
        ("SingleStream", "resnet50.SingleStream.target_latency = 1.5\n"),
    ],
)
def test_a_user_conf_tells_loadgen_the_same(scenario: str, text: str, tmp_path: Path) -> None:
    fields = {"offline_expected_qps": 120.5, "single_stream_expected_latency_ns": 1_500_000.0, "scenario": scenario}
    assert user_conf_of(fields) == text.encode()
    path = tmp_path / "user.conf"
    path.write_text(text)
    spec = SettingsSpec(path, None, {}, {}, "PerformanceOnly", tmp_path, scenario)
    settings = plain_fields(make_settings(lg, spec)[0])
    name = "offline_expected_qps" if scenario == "Offline" else "single_stream_expected_latency_ns"
    assert settings[name] == pytest.approx(fields[name])


@needs_a_round
def test_an_accuracy_run_under_the_rules_says_whose_they_are(model_dir: Path, images: Path, tmp_path: Path) -> None:
    assert INSTALLED is not None
    done = offline(
        "--model", model_dir, "--images", images, "--no-dashboard", "--test-mode", "AccuracyOnly", "--round",
        INSTALLED.name, "--lgts_offline_expected_qps", 77, "--output-dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mlperf_log_user.conf").read_text() == "resnet50.Offline.target_qps = 77\n"
    identity = json.loads((tmp_path / "summary.json").read_text())["identity"]
    assert identity["round_of_seeds"] == INSTALLED.name
    assert len(identity["model"]) == 64


def test_a_run_that_is_not_official_ends_before_it_starts(model_dir: Path, images: Path, tmp_path: Path) -> None:
    done = offline(
        "--model", model_dir, "--images", images, "--round", "v6.1", "--lgts_min_duration_ms", 1000, "--output-dir",
        tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 1
    assert "--lgts_min_duration_ms is 1000 and has to be at least 600000" in done.stderr
    assert not (tmp_path / "out").exists()
