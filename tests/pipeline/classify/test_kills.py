"""Whatever is killed, the same command goes on; `tests.pipeline.classify.kills` does it as often as one likes."""

from __future__ import annotations

from pathlib import Path

from tests.pipeline.classify.kills import VICTIMS, Site, kill_and_go_on


def test_killed_at_random_moments(tmp_path: Path) -> None:
    hit = kill_and_go_on(Site(tmp_path, sources=600), "rows.parquet", kills=3, seed=1)
    assert set(hit) == set(VICTIMS)
