"""What a command says where it cannot be imported."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("entry", "needed"),
    [("pipeline.offline", "pipeline.loadgen.command"), ("pipeline.classify.__main__", "pipeline.classify.command")],
)
def test_an_installation_that_lacks_something_is_one_sentence(
    entry: str, needed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(entry).main
    monkeypatch.setitem(sys.modules, needed, None)  # as one that is not there
    assert main(["--help"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: this installation cannot be loaded: ")
    assert err.count("\n") == 1
