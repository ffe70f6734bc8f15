"""No value of any option, and no map or configuration file, is a traceback: a run is prepared, or says why not."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.loadgen import command as module
from pipeline.loadgen.command import command
from pipeline.loadgen.options import build_parser
from pipeline.session.supervisor import Supervisor

# LoadGen's folder is searched as deep as it goes, and a help text is printed: both are tested elsewhere.
ACTIONS = [a for a in build_parser(lg)._actions if a.dest not in ("help", "loadgen_path")]

NASTY = [
    "", " ", "-", "--", "-1", "0", "1", "2", "-0.0", "1e400", "1e308", "1e-320", "nan", "inf", "-inf", "0x10", "1_000",
    "\u0661", "9" * 18, "9" * 19, "9" * 400, "9" * 5000, "1" + "0" * 30, "0" * 5000, "x" * 256, "x/" * 3000, "\udcff",
    "\ud800", "a\0b", "\x1b[31m", "new\nline", ".", "..", "/", "/dev/null", "/dev/full", "/proc/self/mem",
    "/none/at/all", "file", "file/below", "folder", "link", "loop", "map", "true", "Offline", "0,1", "1," * 3000 + "1",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=20).filter(lambda text: not text.lstrip().startswith("/")),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
)
FEW = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Prepared(PipelineError):
    """As far as these runs go: everything has been read and checked, and no process has been started."""


@pytest.fixture
def prepare(
    images: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], int]:
    """Prepares a run in a folder of odd things; its exit status, which comes with one clear message."""

    def stop(*_: Any, **__: Any) -> Any:
        raise Prepared("prepared")

    monkeypatch.setattr(module, "LoadGenRun", stop)
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"\xff\x00 text")
    Path("folder").mkdir()
    Path("map").write_text("0.jpg 1\n")
    Path("link").symlink_to("none")
    Path("loop").symlink_to("loop")

    def run(arguments: list[str]) -> int:
        capsys.readouterr()
        given = ["--gpu", "cpu", "--images", str(images), "--model", str(model_dir), *arguments]
        status = 2
        with contextlib.suppress(SystemExit):
            status = command(given, Supervisor())
        said = capsys.readouterr().err
        assert status in (1, 2)
        assert "error: " in said
        assert "Traceback" not in said
        return status

    return run


def written(action: argparse.Action, value: str) -> str | None:
    """The option as one word, or None where it takes no value."""
    if action.nargs == 0:
        return action.option_strings[-1]
    long = next((name for name in action.option_strings if name.startswith("--")), None)
    return None if long is None else f"{long}={value}"


@FEW
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), VALUES), min_size=1, max_size=3))
def test_no_value_of_an_option_is_a_traceback(
    prepare: Callable[[list[str]], int], options: list[tuple[argparse.Action, str]]
) -> None:
    prepare([word for action, value in options if (word := written(action, value)) is not None])


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.dest)
def test_no_nasty_value_is_a_traceback(prepare: Callable[[list[str]], int], action: argparse.Action) -> None:
    for word in dict.fromkeys(written(action, value) for value in NASTY):
        prepare([] if word is None else [word])


@FEW
@given(st.one_of(st.binary(max_size=80), st.text("0123456789 .jpg\t\n/\\#=*-\0\u00e9", max_size=60).map(str.encode)))
def test_no_map_is_a_traceback(prepare: Callable[[list[str]], int], content: bytes) -> None:
    Path("given").write_bytes(content)
    assert prepare(["-m", "given"]) == 1


@FEW
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["*", "resnet50", "x"]),
            st.sampled_from(["Offline", "Server", "*", "?"]),
            st.sampled_from(["target_qps", "target_latency", "min_duration", "min_query_count", "samples_per_query",
                             "performance_sample_count_override", "qsl_rng_seed", "mode", "nothing"]),
            st.sampled_from([" = ", "=", " "]),
            VALUES,
        ),
        max_size=3,
    )
)  # fmt: skip
def test_no_configuration_file_is_a_traceback(
    prepare: Callable[[list[str]], int], lines: list[tuple[str, str, str, str, str]]
) -> None:
    text = "".join(f"{model}.{scenario}.{key}{equals}{value}\n" for model, scenario, key, equals, value in lines)
    Path("given").write_bytes(text.encode(errors="surrogateescape") if "\ud800" not in text else b"")
    for option in ("--user_conf_path", "--mlperf_conf_path"):
        assert prepare([option, "given"]) == 1


def test_nothing_is_left_behind(prepare: Callable[[list[str]], int]) -> None:
    before = sorted(os.listdir())
    prepare(["--output-dir", "a/b", "--lgls_outdir", "c"])
    assert sorted(os.listdir()) == before
