from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.report.verdict import MEASURED_BY, judge
from pipeline.telemetry.ceilings import Ceilings

FULL = Ceilings(
    rate=9_500,
    decode_per_loader=500,
    decode_timed=True,
    loaders=20,
    cores=20,
    h2d=60_000,
    engine=27_000,
    loadgen=2_000_000,
)


def test_decode_says_how_many_cores_it_lacks() -> None:
    verdict = judge(FULL)
    assert verdict.bound == "decode"
    assert verdict.share == pytest.approx(0.95)
    assert "Decoding bounds this run: 9,500 samples/s is 95% of its ceiling, 10,000 samples/s." in verdict.sentences
    assert "54 loaders in place of 20: 34 more cores than the 20 here." in verdict.sentences[1]


def test_idle_cores_are_used_before_more_are_asked_for() -> None:
    said = judge(replace(FULL, cores=32)).sentences[1]
    assert "22 more cores than the 32 here; --loaders 32 would use the 12 cores that no loader has yet" in said
    said = judge(replace(FULL, cores=64)).sentences[1]
    assert "54 loaders in place of 20: no more cores; --loaders 54 would use the 34 cores" in said


def test_one_core_is_one_core() -> None:
    verdict = judge(Ceilings(rate=98, decode_per_loader=100, decode_timed=True, loaders=1, cores=1, engine=150))
    assert "2 loaders in place of 1: 1 more core than the 1 here." in verdict.sentences[1]


def test_copies_say_the_bandwidth_they_need() -> None:
    verdict = judge(Ceilings(rate=99_000, h2d=100_000, engine=150_000, sample_bytes=150_000))
    assert verdict.bound == "h2d"
    assert verdict.sentences[1] == "For engine's 150,000, copies need 22.5 GB/s and have 15.0."


def test_the_engine_bounds_a_good_run() -> None:
    verdict = judge(Ceilings(rate=194_000, h2d=700_000, engine=200_000, loadgen=650_000, engines=2))
    assert verdict.bound == "engine"
    assert "LoadGen would allow 3.2 times the rate" in verdict.sentences[1]


def test_loadgen_can_bound_a_run() -> None:
    verdict = judge(Ceilings(rate=99_000, engine=150_000, loadgen=100_000))
    assert verdict.bound == "loadgen"
    assert "engine's 150,000" in verdict.sentences[1]


def test_the_main_process_can_bound_a_run() -> None:
    verdict = judge(Ceilings(rate=180_000, engine=600_000, main=195_000))
    assert (verdict.bound, verdict.share) == ("main", pytest.approx(180 / 195))
    assert verdict.sentences[0].startswith("The main process bounds this run: 180,000 samples/s is 92% of its ceiling")
    assert verdict.sentences[1] == (
        "For engine's 600,000, processes have to share the sources: with --ray each GPU has a main process of its own."
    )


def test_a_main_process_that_comes_near_to_its_bound_is_named() -> None:
    verdict = judge(Ceilings(rate=180_000, engine=600_000, main=240_000))
    assert verdict.bound == "overheads"
    assert "is 75% of the lowest ceiling, main's 240,000 samples/s. Its threads wait" in verdict.sentences[0]


def test_a_run_below_every_ceiling_is_bounded_by_none() -> None:
    verdict = judge(Ceilings(rate=70_000, engine=100_000, loadgen=1_000_000))
    assert verdict.bound == "overheads"
    assert "70% of the lowest ceiling, engine's 100,000 samples/s" in verdict.sentences[0]


def test_a_run_above_a_ceiling_has_no_verdict() -> None:
    verdict = judge(Ceilings(rate=120_000, engine=100_000, loadgen=1_000_000))
    assert verdict.bound == "unknown"
    assert "measured too low" in verdict.sentences[0]
    assert judge(Ceilings(rate=1, engine=0)).share is None


def test_without_ceilings_nothing_is_claimed() -> None:
    verdict = judge(Ceilings(rate=10))
    assert (verdict.bound, verdict.share) == ("unknown", None)
    assert "nothing to say" in judge(Ceilings(rate=10, engine=10)).sentences[1]


def test_samples_decoded_before_the_run_do_not_bound_it() -> None:
    before = replace(FULL, rate=26_500, decode_timed=False)
    verdict = judge(before)
    assert verdict.bound == "engine"
    assert verdict.sentences[-1] == (
        "Decoding was over before the clock started: 10,000 samples/s with 20 loaders; to keep up with this run, "
        "decode needs 33 more cores."
    )
    assert "needs 4 cores that no loader uses and 29 more cores." in judge(replace(before, cores=24)).sentences[-1]
    assert judge(replace(before, rate=9_000)).sentences[-1].endswith("with 20 loaders, which keeps up with this run.")
    assert "1 loader, which" in judge(replace(before, rate=400, loaders=1)).sentences[-1]
    assert not any("ecod" in line for line in judge(replace(before, decode_per_loader=None)).sentences)


def test_samples_decoded_in_part_before_the_clock_count_as_what_they_were() -> None:
    """3,000 samples, 1,000 of them decoded before: decoding could have kept up with half as much again."""
    part = replace(FULL, rate=14_500, decodes_per_sample=2 / 3)
    verdict = judge(part)
    assert (verdict.bound, verdict.share) == ("decode", pytest.approx(14_500 / 15_000))
    assert "Decoding bounds this run: 14,500 samples/s is 97% of its ceiling, 15,000 samples/s." in verdict.sentences
    assert "36 loaders in place of 20: 16 more cores than the 20 here." in verdict.sentences[1]
    assert verdict.sentences[-1] == (
        "0.667 images were decoded for each sample in that time: 10,000 samples/s of decoding."
    )
    assert "over before the clock" not in str(verdict)
    assert judge(FULL).sentences[-1].startswith("  loadgen:")


def test_the_dict_is_json_and_names_every_measurement() -> None:
    verdict = judge(replace(FULL, main=3_000_000))
    parts = json.loads(json.dumps(verdict.as_dict()))["ceilings"]
    assert list(parts) == ["decode", "engine", "h2d", "loadgen", "main"]
    assert parts["decode"] == {"samples_per_s": 10_000, "measured_by": MEASURED_BY["decode"]}
    assert all(MEASURED_BY[part] in str(verdict) for part in parts)


@pytest.mark.parametrize("bad", [{"rate": float("nan")}, {"rate": -1}, {"rate": 1, "engine": float("inf")}])
def test_what_is_no_rate_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        Ceilings(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no loaders"):
        Ceilings(rate=1, decode_per_loader=5)
