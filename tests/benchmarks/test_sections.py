"""The option that names parts of a benchmark."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.sections import add_sections


def parsed(*arguments: str) -> tuple[str, ...]:
    parser = argparse.ArgumentParser()
    add_sections(parser, ("rates", "latency"), "--parts")
    found: tuple[str, ...] = parser.parse_args(arguments).parts
    return found


def test_all_of_them_unasked_or_those_that_are_named() -> None:
    assert parsed() == ("rates", "latency")
    assert parsed("--parts", "latency") == ("latency",)


@pytest.mark.parametrize("name", ["rate", "", "rates,late"])
def test_a_name_of_none_is_an_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--parts", name)
    assert "is none of rates, latency" in capsys.readouterr().err
