"""The command line: the original submission's options, LoadGen's own by reflection, and ours."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from pipeline.commands import values
from pipeline.commands.options import EngineOptions, Parser, add_engine, add_loaders, add_showing, contradiction
from pipeline.errors import PipelineError
from pipeline.loadgen.binding import (
    LOG_DEFAULTS,
    Scalar,
    SettingsSpec,
    assign,
    fields,
    is_enum,
    load_module,
    plain,
)
from pipeline.loadgen.limits import check_field
from pipeline.loadgen.rounds import ROUNDS
from pipeline.loadgen.scenarios import SCENARIOS, Scenario, settings_defaults
from pipeline.samples.images import ImageRules

PROG = "python -m pipeline.offline"
DEFAULT_MODE = "PerformanceOnly"
TEST_MODES = ("SubmissionRun", "PerformanceOnly", "AccuracyOnly", "FindPeakPerformance")
DEFAULT_SCENARIO: Scenario = "Offline"


@dataclass(frozen=True)
class Options:
    """A parsed command line. None means: not given, the run chooses.

    Attributes:
        round: of MLPerf, whose settings and seeds hold.
        trial: whether the round's durations and counts may be smaller.
        images, tensors: a folder of images, or of .npy tensors; at most one of them.
        map_path: lines of `file label` naming the samples and their order.
        gpus: the driver's numbers of the GPUs to compute on, one engine process each.
        cpu_backend: what computes where no GPU does.
        engines: engine processes on the CPU.
        inflight: batches under way on one GPU.
        h2d: how samples come to a GPU.
        max_batch, batch_step, batch_timeout_us, busy_at: of the Server scenario.
        resize: whether images are resized before the centre crop.
        overwrite: whether the output folder may hold a run, which is replaced.
        test_settings, log_settings: the --lgts_ and --lgls_ options as (field, value).
        stage_timeout_s: silence after which a worker counts as hung.
        image_timeout_s: the most that one file may take to become a sample.
        trace: the file that the run's timeline is written to.
        report: the file that the run's page is written to.
        recursive: whether samples of the folder's folders are taken, too.
        rules: which files are taken as samples.
    """

    scenario: Scenario
    round: str | None
    trial: bool
    gpu: str
    gpus: tuple[int, ...] | None
    cpu_backend: str
    engines: int
    inflight: int
    h2d: str
    ordered: bool
    max_batch: int | None
    batch_step: int | None
    batch_timeout_us: int | None
    busy_at: int | None
    model: Path | None
    images: Path | None
    tensors: Path | None
    map_path: Path | None
    count: int | None
    resize: bool
    batch_size: int | None
    loaders: int | None
    autoconfig: Path | None
    strict: bool
    mlperf_conf: Path | None
    user_conf: Path | None
    test_mode: str
    output_dir: Path | None
    overwrite: bool
    json: bool
    dashboard: bool
    stage_timeout_s: float
    image_timeout_s: float
    trace: Path | None
    report: Path | None
    skip_bad_images: bool
    recursive: bool
    rules: ImageRules
    loadgen_path: Path | None
    test_settings: tuple[tuple[str, Scalar], ...]
    log_settings: tuple[tuple[str, Scalar], ...]

    @property
    def official(self) -> str | None:
        """The rules that the run is under, in words; None: LoadGen's defaults and the user's settings."""
        if self.round is None:
            return None
        return f"rules of {self.round}" + (", on trial, which gives no official result" if self.trial else "")

    @property
    def engine(self) -> EngineOptions:
        """What computes."""
        return EngineOptions(
            model=self.model,
            gpu=self.gpu,
            gpus=self.gpus,
            cpu_backend=self.cpu_backend,
            engines=self.engines,
            inflight=self.inflight,
            h2d=self.h2d,
            batch_size=self.batch_size,
            autoconfig=self.autoconfig,
            strict=self.strict,
            timeout_s=self.stage_timeout_s,
        )

    def settings_spec(self, output_dir: Path) -> SettingsSpec:
        """What of it is LoadGen's (see `pipeline.loadgen.binding.make_settings`), its logs in `output_dir`."""
        return SettingsSpec(
            mlperf_conf=self.mlperf_conf,
            user_conf=self.user_conf,
            test_settings=dict(self.test_settings),
            log_settings=dict(self.log_settings),
            test_mode=self.test_mode,
            output_dir=output_dir,
            scenario=self.scenario,
            defaults=settings_defaults(self.scenario),
            rules=self.round is not None,
        )

    def as_dict(self) -> dict[str, Any]:
        """For summary.json: paths as text, the LoadGen fields as objects."""
        plainly = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return plainly | {
            "test_settings": dict(self.test_settings),
            "log_settings": dict(self.log_settings),
        }


def parse(argv: Sequence[str]) -> Options:
    """Parse a command line without its program name. Exits as argparse does: 0 for help, 2 for a mistake."""
    first = Parser(PROG, add_help=False, allow_abbrev=False)
    _add_loadgen_path(first)
    path = first.parse_known_args(list(argv))[0].loadgen_path
    try:
        lg = load_module(path)
    except PipelineError as error:
        first.error(str(error))
    parser = build_parser(lg)
    return _check(parser, parser.parse_args(list(argv)))


def build_parser(loadgen_module: Any) -> argparse.ArgumentParser:
    """The parser, with one option for every field that this build of LoadGen has."""
    parser = Parser(
        PROG,
        usage=f"{PROG} [options] [--lgts_FIELD VALUE ...] [--lgls_FIELD VALUE ...]",
        allow_abbrev=False,
        description="Classifies images with an INT4 network, driven and timed by MLPerf LoadGen.",
    )
    _add_inputs(parser.add_argument_group("what to run"))
    _add_running(parser.add_argument_group("how to run it"))
    add_engine(parser.add_argument_group("what computes"))
    add_loaders(parser.add_argument_group("what loads"))
    shown = parser.add_argument_group("what to show and keep")
    _add_output(shown)
    add_showing(shown)
    loadgen = parser.add_argument_group("LoadGen")
    loadgen.add_argument(
        "--round", choices=list(ROUNDS), help="the official settings and seeds of this round of MLPerf, or an error"
    )
    loadgen.add_argument(
        "--trial", action="store_true", help="with --round: smaller counts and durations, for no official result"
    )
    loadgen.add_argument("--test-mode", choices=TEST_MODES, help=f"what LoadGen measures (default: {DEFAULT_MODE})")
    loadgen.add_argument(
        "--mlperf_conf_path", type=values.text_path, metavar="FILE", help="an mlperf.conf instead of the built-in rules"
    )
    loadgen.add_argument(
        "--user_conf_path",
        type=values.text_path,
        metavar="FILE",
        help="a user.conf; without --mlperf_conf_path it goes on top of the MLPerf rules built into LoadGen",
    )
    _add_loadgen_path(loadgen)
    tests = parser.add_argument_group("LoadGen TestSettings", "applied after the two files")
    _add_fields(tests, "lgts", loadgen_module.TestSettings)
    logs = parser.add_argument_group("LoadGen LogSettings and LogOutputSettings")
    taken = _add_fields(logs, "lgls", loadgen_module.LogSettings)
    _add_fields(logs, "lgls", loadgen_module.LogOutputSettings, skip=taken)
    return parser


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group()
    source.add_argument("--images", type=values.path, metavar="DIR", help="folder of images (default: those provided)")
    source.add_argument(
        "-p", "--tensorPath", dest="tensors", type=values.path, metavar="DIR", help="folder of .npy tensors instead"
    )
    group.add_argument(
        "-m", "--mapPath", dest="map_path", type=values.path, metavar="FILE", help="lines of `file label`, in order"
    )
    group.add_argument("--count", type=values.whole(1), metavar="N", help="only the first N samples")
    group.add_argument("--recursive", action="store_true", help="samples of the folders in it, too, without a map")
    group.add_argument("--skip-bad-images", action="store_true", help="leave unreadable images out instead of stopping")


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--scenario",
        choices=SCENARIOS,
        help=f"how LoadGen asks: all at once, one after another, or at random times (default: {DEFAULT_SCENARIO})",
    )
    group.add_argument(
        "--max-batch",
        type=values.images_of_a_batch,
        metavar="N",
        help="most samples of a batch in the Server scenario",
    )
    group.add_argument(
        "--batch-step",
        type=values.whole(1),
        metavar="N",
        help="in the Server scenario, a graph every N samples up to 8 N, and every 2 N from there to --max-batch "
        "(default: each four times the one before)",
    )
    group.add_argument(
        "--batch-timeout-us",
        type=values.whole(0, values.MOST_HOLD_US),
        metavar="US",
        help="how long a sample may be held back for a batch to fill, in the Server scenario",
    )
    group.add_argument(
        "--busy-at",
        type=values.whole(1),
        metavar="N",
        help="in the Server scenario, hold samples back while so many batches are under way (default: 1)",
    )
    group.add_argument(
        "--ordered",
        action=argparse.BooleanOptionalAction,
        help="whether batches in flight take turns on the GPU instead of sharing it (default: in the Offline scenario)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output-dir",
        type=values.text_path,
        metavar="DIR",
        help="logs and summary.json (default: a new ./results/UTC-TIME)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run that --output-dir holds")


def _add_loadgen_path(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--loadgen-path", type=values.path, metavar="DIR", help="use the LoadGen built or unpacked in this folder"
    )


def _add_fields(
    group: argparse._ArgumentGroup, prefix: str, make: Callable[[], Any], skip: frozenset[str] = frozenset()
) -> frozenset[str]:
    """One option a field; returns the fields' names."""
    found = {name: value for name, value in fields(make()).items() if name not in skip}
    for name, default in found.items():
        bare: dict[str, Any] = {"nargs": "?", "const": True} if isinstance(default, bool) else {}
        group.add_argument(
            f"--{prefix}_{name}",
            type=_field_type(make, name, default),
            metavar=_metavar(default),
            help=f"default: {_shown(name, default)}".replace("%", "%%"),
            **bare,
        )
    return frozenset(found)


def _shown(name: str, default: Any) -> str:
    """The default in effect, which is ours where we have one."""
    ours: dict[str, Scalar] = {**LOG_DEFAULTS, "outdir": "the output folder", "scenario": DEFAULT_SCENARIO}
    value = ours.get(name, plain(default))
    return (str(value).lower() if isinstance(value, bool) else str(value)) or "empty"


def _metavar(default: Any) -> str:
    if is_enum(default):
        return "{" + ",".join(type(default).__members__) + "}"
    return {bool: "BOOL", int: "INT", float: "FLOAT"}.get(type(default), "TEXT")


def _field_type(make: Callable[[], Any], name: str, default: Any) -> Callable[[str], Scalar]:
    """Reads text into the field's type, and tries it on a fresh settings object: the binding knows best."""

    def read(text: str) -> Scalar:
        try:
            value = _read_as(name, default, text)
            assign(make(), name, value)
            check_field(name, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return read


def _read_as(name: str, default: Any, text: str) -> Scalar:
    if is_enum(default):
        return text
    if isinstance(default, str):
        return str(values.text_path(text)) if name == "outdir" else values.part_of_name(text)
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{values.shown(text)} is none of true, false, 1, 0")
        return text.lower() in ("true", "1")
    kind = type(default)
    try:
        value: Scalar = kind(text)
    except ValueError:
        wanted = "an integer" if kind is int else "a number"
        raise ValueError(f"{values.shown(text)} is not {wanted}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{values.shown(text)} is not a finite number")
    return value


def _given(args: argparse.Namespace, prefix: str) -> dict[str, Scalar]:
    named = ((key[len(prefix) :], value) for key, value in vars(args).items() if key.startswith(prefix))
    return {name: value for name, value in named if value is not None}


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Options:
    def wrong(why: str) -> NoReturn:
        parser.error(why)

    # argparse takes the value of `--count=--` for an end of options, and leaves none.
    for name in (name for name, value in vars(args).items() if value == []):
        wrong(f"argument {name}: '--' is no value")
    test_settings, log_settings = _given(args, "lgts_"), _given(args, "lgls_")
    scenario = test_settings.pop("scenario", None)
    if scenario is not None and args.scenario not in (None, scenario):
        wrong(f"--scenario {args.scenario} and --lgts_scenario {scenario} contradict each other; give one of them")
    scenario = scenario or args.scenario or DEFAULT_SCENARIO
    server = (args.max_batch, args.batch_step, args.batch_timeout_us, args.busy_at)
    if scenario != "Server" and any(value is not None for value in server):
        names = "--max-batch, --batch-step, --batch-timeout-us and --busy-at"
        wrong(f"{names} are about the Server scenario, and this one is {scenario}")
    if args.trial and args.round is None:
        wrong("--trial is of a round: name it with --round")
    if args.round is not None:
        against = {"--mlperf_conf_path": args.mlperf_conf_path, "--count": args.count}
        for option, given in {**against, "--skip-bad-images": args.skip_bad_images or None}.items():
            if given is not None:
                wrong(
                    f"--round {args.round} and {option} contradict each other: the round's rules hold, for all samples"
                )
    contradictory = contradiction(args)
    if contradictory is not None:
        wrong(contradictory)
    mode = test_settings.pop("mode", None)
    if mode is not None and args.test_mode not in (None, mode):
        wrong(f"--test-mode {args.test_mode} and --lgts_mode {mode} contradict each other; give one of them")
    if args.map_path is not None and args.images is None and args.tensors is None:
        wrong("-m/--mapPath names files of a folder: give that folder with --images or -p")
    if args.map_path is not None and args.recursive:
        wrong("--recursive takes all samples there are, and -m/--mapPath those of the map; give one of them")
    if args.no_resize and args.tensors is not None:
        wrong("--no-resize is about images; the tensors of -p/--tensorPath are never resized")
    if (
        args.report is not None
        and args.trace is not None
        and os.path.realpath(args.report) == os.path.realpath(args.trace)
    ):
        wrong(f"--trace {args.trace} and --report {args.report} are one file; give one of them another name")
    return Options(
        scenario=cast("Scenario", scenario),
        round=args.round,
        trial=args.trial,
        gpu=args.gpu,
        gpus=args.gpus,
        cpu_backend=args.cpu_backend,
        engines=args.engines,
        inflight=args.inflight,
        h2d=args.h2d,
        ordered=scenario == "Offline" if args.ordered is None else args.ordered,
        max_batch=args.max_batch,
        batch_step=args.batch_step,
        batch_timeout_us=args.batch_timeout_us,
        busy_at=args.busy_at,
        model=args.model,
        images=args.images,
        tensors=args.tensors,
        map_path=args.map_path,
        count=args.count,
        resize=not args.no_resize,
        batch_size=args.batch_size,
        loaders=args.loaders,
        autoconfig=args.autoconfig,
        strict=args.strict_kernels,
        mlperf_conf=args.mlperf_conf_path,
        user_conf=args.user_conf_path,
        test_mode=str(mode or args.test_mode or DEFAULT_MODE),
        output_dir=args.output_dir,
        overwrite=args.overwrite,
        json=args.json,
        dashboard=not (args.no_dashboard or args.json),
        stage_timeout_s=args.stage_timeout,
        image_timeout_s=args.image_timeout,
        trace=args.trace,
        report=args.report,
        skip_bad_images=args.skip_bad_images,
        recursive=args.recursive,
        rules=ImageRules(args.max_image_bytes, args.max_pixels, args.sixteen_bit),
        loadgen_path=args.loadgen_path,
        test_settings=tuple(test_settings.items()),
        log_settings=tuple(log_settings.items()),
    )
