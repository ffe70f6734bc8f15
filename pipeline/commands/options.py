"""The options that every command has: what computes, what loads, what is shown. One frozen object for each."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias, get_args

from int4core.errors import printable
from pipeline.commands import values
from pipeline.device.transfer import H2D_CHOICES
from pipeline.machine.cpu import CPU_BACKENDS
from pipeline.machine.gpus import GPU_CHOICES
from pipeline.machine.hardware import default_loaders
from pipeline.samples.files import DEFAULT_MAX_BYTES
from pipeline.samples.images import (
    DEFAULT_MAX_PIXELS,
    MOST_PIXELS,
    SIXTEEN_BIT_CHOICES,
    ImageRules,
)

DecodeChoice: TypeAlias = Literal["auto", "cpu", "gpu"]
DECODE_CHOICES: tuple[DecodeChoice, ...] = get_args(DecodeChoice)

GPU_IN_FLIGHT = 3
DEFAULT_STAGE_TIMEOUT_S = 60.0
DEFAULT_IMAGE_TIMEOUT_S = 30.0


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors keep escape sequences in what the user typed from the terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


@dataclass(frozen=True)
class EngineOptions:
    """What computes. None means: not given, the command chooses.

    Attributes:
        digest: of the model that has to be in the folder (see `pipeline.stages.model`); None: whichever is there.
        gpus: the driver's numbers of the GPUs to compute on, one engine process each.
        cpu_backend: what computes where no GPU does: see `pipeline.machine.cpu`.
        engines: engine processes on the CPU.
        inflight: batches under way on one GPU.
        h2d: how samples come to a GPU.
        strict: whether a kernel number that does not fit its layer is an error.
        timeout_s: silence after which an engine counts as hung.
    """

    model: Path | None = None
    gpu: str = "auto"
    gpus: tuple[int, ...] | None = None
    cpu_backend: str = "auto"
    engines: int = 1
    inflight: int = GPU_IN_FLIGHT
    h2d: str = "auto"
    batch_size: int | None = None
    autoconfig: Path | None = None
    strict: bool = False
    timeout_s: float = DEFAULT_STAGE_TIMEOUT_S
    digest: str | None = None


@dataclass(frozen=True)
class LoaderOptions:
    """What loads.

    Attributes:
        processes: None: by cores.
        resize: whether images are resized before the centre crop.
        rules: which images are taken.
        image_timeout_s: the most that one image may take.
        decode: where JPEG files are decoded; auto is the GPU where there is one.
    """

    processes: int | None = None
    resize: bool = True
    rules: ImageRules = field(default_factory=ImageRules)
    image_timeout_s: float = DEFAULT_IMAGE_TIMEOUT_S
    decode: DecodeChoice = "auto"


@dataclass(frozen=True)
class ShowOptions:
    """What a run shows while it lasts.

    Attributes:
        json: snapshots as JSON lines on standard output.
        dashboard: the live view, where standard error is a terminal.
        trace: the file that the timeline is written to.
    """

    json: bool
    dashboard: bool
    trace: Path | None


def add_engine(group: argparse._ArgumentGroup, *, strict: str = "--strict") -> None:
    """`strict` is the option that makes a kernel number an error, where another meaning has the short name."""
    group.add_argument("--model", type=values.path, metavar="DIR", help="model folder (default: the one provided)")
    group.add_argument("--gpu", choices=GPU_CHOICES, default="auto", help="what to compute on (default: a GPU, or cpu)")
    group.add_argument(
        "--gpus", type=values.whole_numbers, metavar="N,N", help="GPUs by the driver's numbers, one engine process each"
    )
    group.add_argument(
        "--cpu-backend", choices=CPU_BACKENDS, default="auto",
        help="what computes on the CPU (default: torch where the extra `torch` is installed, or numpy)",
    )  # fmt: skip
    group.add_argument("--engines", type=values.whole(1, values.MOST_PROCESSES), default=1, help=argparse.SUPPRESS)
    group.add_argument(
        "-b", "--batch_size", "--batch-size", type=values.images_of_a_batch, metavar="N",
        help="images per batch (default: by the backend)",
    )  # fmt: skip
    group.add_argument(
        "--inflight",
        type=values.whole(1, values.MOST_IN_FLIGHT),
        default=GPU_IN_FLIGHT,
        metavar="N",
        help="batches under way on one GPU (default: %(default)s)",
    )
    group.add_argument(
        "--h2d",
        choices=H2D_CHOICES,
        default="auto",
        help="how samples come to a GPU: by a kernel, by copies, or the faster of both (default: %(default)s)",
    )
    group.add_argument(
        "-a", "--autoconfig", type=values.path, metavar="FILE", help="which kernel each layer uses (CUDA backend)"
    )
    group.add_argument(
        strict, dest="strict_kernels", action="store_true",
        help="a kernel number that does not fit its layer is an error, not a notice",
    )  # fmt: skip
    group.add_argument(
        "--stage-timeout",
        type=values.seconds,
        default=DEFAULT_STAGE_TIMEOUT_S,
        metavar="SECONDS",
        help="an engine that is silent this long ends the run (default: %(default)g)",
    )


def engine_options(args: argparse.Namespace) -> EngineOptions:
    return EngineOptions(
        model=args.model,
        gpu=args.gpu,
        gpus=args.gpus,
        cpu_backend=args.cpu_backend,
        engines=args.engines,
        inflight=args.inflight,
        h2d=args.h2d,
        batch_size=args.batch_size,
        autoconfig=args.autoconfig,
        strict=args.strict_kernels,
        timeout_s=args.stage_timeout,
    )


def add_loaders(group: argparse._ArgumentGroup, *, decode: bool = False) -> None:
    """`decode`: whether files may be decoded elsewhere than by the loaders."""
    if decode:
        group.add_argument(
            "--decode",
            choices=DECODE_CHOICES,
            default="auto",
            help="where JPEG files are decoded, to the same pixels: on the GPU, but for those it cannot take, or all "
            "by the loaders (default: %(default)s, the GPU where there is one)",
        )
    group.add_argument(
        "--loaders",
        type=values.whole(1, values.MOST_PROCESSES),
        metavar="N",
        help=f"processes that decode (default: one per core, {default_loaders()} here)",
    )
    group.add_argument("--no-resize", action="store_true", help="the images are sized: centre crop only")
    group.add_argument(
        "--image-timeout",
        type=values.seconds,
        default=DEFAULT_IMAGE_TIMEOUT_S,
        metavar="SECONDS",
        help="a file that takes longer to become a sample is a bad image (default: %(default)g)",
    )
    group.add_argument(
        "--sixteen-bit",
        choices=SIXTEEN_BIT_CHOICES,
        default="refuse",
        help="what becomes of 16-bit and float grey: a bad image, or scaled to 8 bits (default: %(default)s)",
    )
    group.add_argument(
        "--max-image-bytes",
        type=values.whole(1),
        default=DEFAULT_MAX_BYTES,
        metavar="N",
        help="a larger file is a bad image (default: %(default)s)",
    )
    group.add_argument(
        "--max-pixels",
        type=values.whole(1, MOST_PIXELS),
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help="an image of more pixels, or of more memory than 12 bytes for each, is bad (default: %(default)s)",
    )


def loader_options(args: argparse.Namespace) -> LoaderOptions:
    return LoaderOptions(
        processes=args.loaders,
        resize=not args.no_resize,
        rules=ImageRules(args.max_image_bytes, args.max_pixels, args.sixteen_bit),
        image_timeout_s=args.image_timeout,
        decode=getattr(args, "decode", "cpu"),
    )


def add_showing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--trace",
        type=values.path,
        metavar="FILE",
        help="write a timeline of the run, for ui.perfetto.dev or chrome://tracing",
    )
    group.add_argument(
        "--report",
        type=values.path,
        metavar="FILE",
        help="write the run as a page: charts, classes, bad images, settings (needs the extra `report`)",
    )
    group.add_argument("--json", action="store_true", help="print snapshots of the run as JSON lines")
    group.add_argument("--no-dashboard", action="store_true", help="plain lines instead of the live view")


def show_options(args: argparse.Namespace) -> ShowOptions:
    return ShowOptions(args.json, not (args.no_dashboard or args.json), args.trace)


def contradiction(args: argparse.Namespace) -> str | None:
    """What of these options contradicts itself, in one sentence; None if nothing does."""
    if args.gpus is not None and args.gpu == "cpu":
        return "--gpu cpu and --gpus contradict each other; give one of them"
    if args.json and args.no_dashboard:
        return "--json and --no-dashboard: --json already replaces the dashboard; give one of them"
    return None
