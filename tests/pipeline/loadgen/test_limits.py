from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlperf_loadgen as lg
import psutil
import pytest

from pipeline.errors import PipelineError
from pipeline.loadgen.binding import SettingsSpec, make_settings, plain_fields
from pipeline.loadgen.limits import check_settings, planned, planned_bytes
from pipeline.loadgen.scenarios import SCENARIOS, Scenario


def settings(scenario: Scenario, **values: Any) -> dict[str, Any]:
    return plain_fields(lg.TestSettings()) | {"scenario": scenario, **values}


@pytest.mark.parametrize("value", ["0", "-5", "-0.0", "nan"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_rate_of_a_configuration_file_is_above_zero(scenario: Scenario, value: str, tmp_path: Path) -> None:
    conf = tmp_path / "user.conf"
    key = "target_qps" if scenario in ("Offline", "Server") else "target_latency"
    conf.write_text(f"*.{scenario}.{key} = {value}\n")
    spec = SettingsSpec(None, conf, {}, {}, "PerformanceOnly", tmp_path, scenario)
    with pytest.raises(PipelineError, match=r"is not above 0|cannot read this"):
        make_settings(lg, spec)


def test_the_message_names_the_option_and_the_key() -> None:
    with pytest.raises(PipelineError) as caught:
        check_settings(settings("Server", server_target_qps=0.0))
    assert str(caught.value) == "--lgts_server_target_qps (target_qps in a configuration file): 0.0 is not above 0"


def test_loadgen_s_own_defaults_pass() -> None:
    for scenario in SCENARIOS:
        check_settings(settings(scenario))


def test_what_loadgen_lists_before_its_clock_starts() -> None:
    minute = {"min_duration_ms": 60_000, "min_query_count": 500}
    assert planned(settings("Offline", offline_expected_qps=1000.0, **minute)) == (1.0, pytest.approx(66_000))
    assert planned(settings("Offline", offline_expected_qps=1.0, **minute)) == (1.0, 500.0)
    assert planned(settings("Server", server_target_qps=100.0, **minute)) == (pytest.approx(6600), 1.0)
    single = settings("SingleStream", single_stream_expected_latency_ns=1e6, **minute)
    assert planned(single) == (pytest.approx(66_000), 1.0)
    several = settings("MultiStream", multi_stream_expected_latency_ns=1e7, multi_stream_samples_per_query=8, **minute)
    assert planned(several) == (pytest.approx(6600), 8.0)


@pytest.mark.parametrize(
    ("scenario", "values"),
    [
        ("Offline", {"offline_expected_qps": 1e300}),
        ("Server", {"server_target_qps": 1e300}),
        ("SingleStream", {"single_stream_expected_latency_ns": 1e-300}),
        ("MultiStream", {"multi_stream_expected_latency_ns": 1e-300}),
        ("Server", {"min_query_count": 2**64 - 1}),
        ("Offline", {"min_duration_ms": 2**64 - 1}),
    ],
)
def test_a_list_of_queries_that_no_memory_holds_is_refused(scenario: Scenario, values: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match=r"LoadGen would plan .* GiB are free: lower the expected rate"):
        check_settings(settings(scenario, **values))


def test_the_limit_is_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    server = settings("Server", server_target_qps=1e6)
    needed = planned_bytes(server)
    assert needed == pytest.approx(11e6 * (272 + 46), rel=1e-6)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": int(needed) + 1}))
    check_settings(server)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": int(needed) - 1}))
    with pytest.raises(PipelineError, match=r"1\.1e\+07 queries of 1 samples"):
        check_settings(server)


def test_a_query_in_loadgens_own_memory_costs_no_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    offline = settings("Offline", offline_expected_qps=1e6, min_duration_ms=10_000)
    samples = planned(offline)[1]
    assert planned_bytes(offline) - planned_bytes(offline, arrays=True) == pytest.approx(80 * samples)
    free = planned_bytes(offline, arrays=True) + 1
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    check_settings(offline, arrays=True)
    with pytest.raises(PipelineError, match="lower the expected rate"):
        check_settings(offline)
