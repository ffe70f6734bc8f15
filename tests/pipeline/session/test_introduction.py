from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipeline.session.introduction import introductions


def test_stages_are_introduced_with_their_notices() -> None:
    loaders = SimpleNamespace(name="decode", notes=("images", "images"), pids=(5, 6), notices=())
    engines = SimpleNamespace(name="infer", notes=("one", "two"), pids=(7, 8), notices=("mine:5: kernel 100 ...",))
    session: Any = SimpleNamespace(loading=SimpleNamespace(stage=loaders), batches=SimpleNamespace(infer=engines))
    assert list(introductions(session)) == [
        "stage decode is up: images, pids 5, 6",
        "stage infer is up: one | two, pids 7, 8",
        "stage infer: mine:5: kernel 100 ...",
    ]
