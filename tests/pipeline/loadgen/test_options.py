from __future__ import annotations

import enum
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlperf_loadgen as lg
import pytest

from pipeline.loadgen.binding import fields
from pipeline.loadgen.options import Options, build_parser, parse
from pipeline.samples.images import ImageRules
from tests.paths import ROOT
from tests.pipeline.conftest import PATIENCE_S


def parse_line(line: str) -> Options:
    return parse(line.split())


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_defaults() -> None:
    options = parse([])
    assert options.gpu == "auto"
    assert options.test_mode == "PerformanceOnly"
    assert options.resize
    assert options.dashboard
    assert not options.skip_bad_images
    assert options.test_settings == ()
    assert options.log_settings == ()
    assert options.output_dir is None
    assert not options.overwrite


def test_the_submission_s_options_keep_their_names() -> None:
    options = parse_line(
        "-b 96 -p tensors -m val_map.txt -a autoconfig_t4 --mlperf_conf_path mlperf.conf "
        "--user_conf_path user.conf --test-mode AccuracyOnly"
    )
    assert options.batch_size == 96
    assert options.tensors == Path("tensors")
    assert options.map_path == Path("val_map.txt")
    assert options.autoconfig == Path("autoconfig_t4")
    assert options.mlperf_conf == Path("mlperf.conf")
    assert options.user_conf == Path("user.conf")
    assert options.test_mode == "AccuracyOnly"
    long = parse_line("--batch_size 96 --tensorPath tensors --mapPath val_map.txt")
    assert (long.batch_size, long.tensors, long.map_path) == (96, options.tensors, options.map_path)


def test_what_depends_on_the_scenario() -> None:
    assert parse([]).ordered
    assert not parse_line("--scenario Server").ordered
    assert parse_line("--scenario Server --ordered").ordered
    assert not parse_line("--no-ordered").ordered
    assert parse([]).settings_spec(Path("out")).defaults == {}
    assert parse_line("--scenario Server").settings_spec(Path("out")).defaults == {
        "server_target_latency_ns": 15_000_000,
        "server_coalesce_queries": True,
    }


def test_ours() -> None:
    options = parse_line(
        "--gpu cpu --model m --images i --count 7 --no-resize --loaders 3 --output-dir out --no-dashboard "
        "--stage-timeout 2.5 --image-timeout 3.5 --skip-bad-images "
        "--recursive --sixteen-bit scale --max-image-bytes 9 --max-pixels 7"
    )
    assert options.recursive
    assert options.rules == ImageRules(max_bytes=9, max_pixels=7, sixteen_bit="scale")
    assert not parse([]).recursive
    assert parse([]).rules == ImageRules()
    assert (options.gpu, options.model, options.images) == ("cpu", Path("m"), Path("i"))
    assert (options.count, options.resize, options.loaders) == (7, False, 3)
    assert (options.output_dir, options.dashboard) == (Path("out"), False)
    assert (options.stage_timeout_s, options.image_timeout_s, options.skip_bad_images) == (2.5, 3.5, True)
    assert parse([]).image_timeout_s == 30.0
    assert options.settings_spec(Path("other")).output_dir == Path("other")
    assert parse_line("--output-dir out --overwrite").overwrite
    assert parse(["--json"]).json
    assert not parse(["--json"]).dashboard


def test_every_field_of_the_binding_is_an_option() -> None:
    for prefix, made in (
        ("lgts", lg.TestSettings()),
        ("lgls", lg.LogSettings()),
        ("lgls", lg.LogOutputSettings()),
    ):
        names = fields(made)
        assert len(names) > 2
        for name, default in names.items():
            text = default.name if hasattr(default, "name") else str(default)
            if name in ("mode", "scenario"):
                continue  # one is --test-mode, the other has one value only
            options = parse([f"--{prefix}_{name}", text])
            given = dict(options.test_settings if prefix == "lgts" else options.log_settings)
            assert list(given) == [name]
            assert type(given[name]) is (str if hasattr(default, "name") else type(default))


def test_types_of_fields() -> None:
    options = parse_line(
        "--lgts_min_duration_ms 500 --lgts_offline_expected_qps 3 --lgts_print_timestamps "
        "--lgts_performance_issue_same 0 --lgts_qsl_rng_seed 18446744073709551615 "
        "--lgls_log_mode Synchronous --lgls_prefix x_ --lgls_enable_trace true"
    )
    assert dict(options.test_settings) == {
        "min_duration_ms": 500,
        "offline_expected_qps": 3.0,
        "print_timestamps": True,
        "performance_issue_same": False,
        "qsl_rng_seed": 2**64 - 1,
    }
    assert dict(options.log_settings) == {"log_mode": "Synchronous", "prefix": "x_", "enable_trace": True}


def test_fields_of_another_build_become_options(capsys: pytest.CaptureFixture[str]) -> None:
    class Colour(enum.Enum):
        RED = 0
        BLUE = 1

    def settings(**values: Any) -> Any:
        return lambda: SimpleNamespace(**values)

    build = SimpleNamespace(
        TestSettings=settings(
            brand_new=3, share=0.5, on=False, word="", colour=Colour.RED, nested=object(), method=print
        ),
        LogSettings=settings(deep=1),
        LogOutputSettings=settings(deep=2, place="here"),
    )
    parser = build_parser(build)
    args = parser.parse_args(
        ["--lgts_brand_new", "9", "--lgts_colour", "BLUE", "--lgls_deep", "5", "--lgls_place", "there"]
    )
    assert (args.lgts_brand_new, args.lgts_colour, args.lgls_deep, args.lgls_place) == (9, "BLUE", 5, "there")
    assert not hasattr(args, "lgts_nested")
    assert not hasattr(args, "lgts_method")
    for bad in (["--lgts_colour", "GREEN"], ["--lgts_share", "nan"], ["--lgts_on", "perhaps"]):
        with pytest.raises(SystemExit):
            parser.parse_args(bad)
        assert bad[1] in capsys.readouterr().err


def test_help_shows_the_fields_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["-h"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"--lgts_min_duration_ms INT default: {lg.TestSettings().min_duration_ms}" in text
    assert "--lgts_print_timestamps [BOOL] default: false" in text
    assert "--lgts_scenario {SingleStream,MultiStream,Server,Offline} default: Offline" in text
    assert "--lgls_outdir TEXT default: the output folder" in text
    assert "--lgls_suffix TEXT default: empty" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--images a -p b", "not allowed with"),
        ("--max-pixels 178956971", "from 1 to 178,956,970"),
        ("--images i -m map.txt --recursive", "give one of them"),
        ("-m map.txt", "give that folder with --images or -p"),
        ("-p tensors --no-resize", "never resized"),
        ("--json --no-dashboard", "already replaces"),
        ("--count 0", "'0' is not a whole number from 1 to 2,147,483,647"),
        ("-b -4", "'-4' is not a whole number from 1 to 16,777,216"),
        ("-b 16777217", "not a whole number from 1 to 16,777,216"),
        ("--scenario Server --max-batch 16777217", "not a whole number from 1 to 16,777,216"),
        (f"-b {'9' * 400}", f"'{'9' * 40}...{'9' * 10}' is not a whole number"),
        (f"--batch-timeout-us {'9' * 5000} --scenario Server", "not a whole number from 0 to 3,600,000,000"),
        ("--stage-timeout 1e300", "seconds above 0 and up to 86400"),
        ("--loaders 5000", "from 1 to 4,096"),
        ("--inflight 5000", "from 1 to 1,024"),
        (f"--gpus {'9' * 5000}", "whole number"),
        ("--lgts_server_target_qps=0", "lgts_server_target_qps: 0.0 is not above 0"),
        ("--lgts_server_target_qps=-5", "-5.0 is not above 0"),
        ("--lgts_offline_expected_qps=-0.0", "is not above 0"),
        ("--lgts_server_find_peak_qps_boundary_step_size=0", "is not above 0"),
        ("--lgts_single_stream_expected_latency_ns=0", "is not above 0"),
        ("--lgts_multi_stream_expected_latency_ns=-1", "is not above 0"),
        ("--lgts_multi_stream_samples_per_query 0", "0 is not a whole number from 1 to 16,777,216"),
        ("--lgts_multi_stream_samples_per_query 16777217", "16777217 is not a whole number from 1 to 16,777,216"),
        ("--lgts_server_target_latency_percentile 99", "99.0 is not a share from 0 to 1"),
        ("--lgts_accuracy_log_probability 1.5", "is not a share from 0 to 1"),
        ("--lgts_server_num_issue_query_threads 4", "leave it at 0"),
        (f"--lgts_min_duration_ms {'9' * 5000}", "...9999999999' is not an integer"),
        ("--lgls_prefix a/b", "'a/b' is a part of a file's name"),
        ("--lgls_suffix \udcff", "is not UTF-8"),
        ("--user_conf_path \udcff", "is not UTF-8"),
        (f"--output-dir {'x' * 256}", "too long a name for a file (256 bytes)"),
        (f"--images {'é' * 200}", "too long a name for a file (400 bytes)"),
        (f"-a {'x/' * 2048}", "too long a name for a file (4,096 bytes)"),
        ("--model=", "an empty name"),
        ("--count=--", "argument count: '--' is no value"),
        ("--mapPath=-- --images i", "'--' is no value"),
        ("--loaders two", "'two'"),
        ("--stage-timeout 0", "seconds above 0"),
        ("--stage-timeout inf", "seconds above 0"),
        ("--gpu t5", "invalid choice"),
        ("--test-mode Quick", "invalid choice"),
        ("--lgts_min_duration_ms 1.5", "'1.5' is not an integer"),
        ("--lgts_min_duration_ms -1", "-1 does not fit this field"),
        ("--lgts_qsl_rng_seed 18446744073709551616", "does not fit"),
        ("--lgts_offline_expected_qps fast", "'fast' is not a number"),
        ("--lgts_mode Quick", "none of SubmissionRun, AccuracyOnly"),
        ("--scenario Offline --lgts_scenario Server", "contradict"),
        ("--scenario Best", "invalid choice"),
        ("--max-batch 8", "about the Server scenario"),
        ("--scenario SingleStream --batch-timeout-us 8", "about the Server scenario"),
        ("--scenario Offline --batch-step 8", "about the Server scenario"),
        ("--scenario MultiStream --busy-at 2", "about the Server scenario"),
        ("--gpu cpu --gpus 0,1", "contradict"),
        ("--trace a.html --report ./a.html", "are one file; give one of them another name"),
        ("--gpus 0,", "whole number"),
        ("--test-mode AccuracyOnly --lgts_mode PerformanceOnly", "contradict"),
        ("--lgts_no_such_field 1", "unrecognized arguments"),
        ("--cou 3", "unrecognized arguments"),
        ("--loadgen-path /no/such/folder", "/no/such/folder: no such folder"),
    ],
)
def test_mistakes_end_with_2_and_plain_words(arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(arguments.split(), capsys)


def test_lgts_mode_is_test_mode() -> None:
    assert parse(["--lgts_mode", "AccuracyOnly"]).test_mode == "AccuracyOnly"
    assert parse_line("--lgts_mode AccuracyOnly --test-mode AccuracyOnly").test_settings == ()


def test_as_dict_is_json() -> None:
    options = parse_line("--images i --lgts_min_duration_ms 5 --lgls_prefix p")
    again = json.loads(json.dumps(options.as_dict()))
    assert again["images"] == "i"
    assert again["test_settings"] == {"min_duration_ms": 5}
    assert again["model"] is None


CHILD = "import sys; from pipeline.loadgen.options import parse; print(parse(sys.argv[1:]).loadgen_path)"


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def test_a_build_of_the_user_s_own_is_loaded(tmp_path: Path) -> None:
    installed = Path(str(lg.__file__))
    built = tmp_path / "build" / "lib"
    built.mkdir(parents=True)
    (built / installed.name).write_bytes(installed.read_bytes())
    code = CHILD + "; import mlperf_loadgen; print(mlperf_loadgen.__file__)"
    done = child(code, "--loadgen-path", tmp_path, "--lgts_min_duration_ms", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path), str(built / installed.name)]


def test_a_folder_without_a_build_is_refused(tmp_path: Path) -> None:
    done = child(CHILD, "--loadgen-path", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}: no mlperf_loadgen*.so in it" in done.stderr
    (tmp_path / "mlperf_loadgen.cpython-27-x86_64-linux-gnu.so").write_bytes(b"")
    done = child(CHILD, "--loadgen-path", tmp_path)
    assert done.returncode == 2
    assert "built for another Python" in done.stderr


def test_a_missing_loadgen_names_the_command_that_installs_it() -> None:
    done = child("import sys; sys.modules['mlperf_loadgen'] = None; " + CHILD, "-h")
    assert done.returncode == 2
    assert "-m pip install mlcommons-loadgen" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_engines_may_share_a_gpu() -> None:
    assert parse(["--gpus", "1,0,1"]).gpus == (1, 0, 1)
