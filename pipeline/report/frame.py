"""The dashboard's picture: a pure function from the state of a run to styled lines of text.

It makes rich's segments itself. Laying out tables and panels anew four times a second costs several
times what may be spent (1 % of a core); here one frame is about a hundred string operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from pipeline.machine.hardware import GpuLoad, Load
from pipeline.telemetry.metrics import Snapshot, StageSnapshot

MIN_WIDTH, MAX_WIDTH = 76, 100
ROOMY = 84
CHART_ROWS = 4

_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEVELS = " ▁▂▃▄▅▆▇"

PLAIN = Style.null()
DIM = Style.parse("bright_black")
BORDER = Style.parse("bright_black")
TITLE = Style.parse("bold")
STRONG = Style.parse("bold")
HEAD = Style.parse("bright_black")
ACCENT = Style.parse("cyan")
NOW = Style.parse("bold cyan")
GOOD = Style.parse("green")
SLOW = Style.parse("bold yellow")
BAD = Style.parse("bold red")
PHASES = {
    "starting": Style.parse("yellow"),
    "loading": Style.parse("yellow"),
    "running": Style.parse("bold green"),
    "finishing": Style.parse("yellow"),
    "done": Style.parse("bold cyan"),
}

Line: TypeAlias = list[Segment]


@dataclass(frozen=True)
class View:
    """All that one frame shows.

    Attributes:
        expected: samples the run will answer (0: not known yet).
        eta_s: seconds to the end, None while nothing is known.
        columns: samples/s of each second so far, newest last.
        load: the machine, None before its first reading.
    """

    title: str
    snapshot: Snapshot
    expected: int
    eta_s: float | None
    columns: Sequence[float]
    peak: float
    load: Load | None


class Frame:
    """A View as a rich renderable."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        for line in draw(self.view, max(MIN_WIDTH, min(MAX_WIDTH, options.max_width))):
            yield from line
            yield Segment.line()


def draw(view: View, width: int) -> list[Line]:
    """The frame as lines of exactly `width` cells."""
    inner = width - 6
    body: list[Line] = [
        [],
        _progress(view, inner),
        [],
        *_throughput(view, inner),
        [],
        *_stages(view.snapshot, inner),
        [],
        *_machine(view.load, inner),
        [],
    ]
    return [_top(view, width), *(_boxed(line, inner) for line in body), _bottom(width)]


def clock(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    minutes, second = divmod(int(max(0.0, seconds) + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


def rate(value: float) -> str:
    """Samples/s with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}"


def gib(count: int) -> str:
    return f"{count / 2**30:.1f}"


def bar(share: float, width: int, style: Style) -> Line:
    """A horizontal bar of `width` cells in steps of an eighth of a cell, on a dotted track."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    tip = _EIGHTHS[rest] if rest else ""
    return [Segment("█" * full + tip, style), Segment("·" * (width - full - len(tip)), DIM)]


def chart(columns: Sequence[float], width: int, rows: int) -> list[str]:
    """Column heights from 0 to the largest, newest right, as `rows` lines of `width` cells, top first."""
    shown = list(columns)[-width:]
    top = max(shown, default=0.0) or 1.0
    levels = [max(1, round(value / top * rows * 8)) if value > 0 else 0 for value in shown]
    lines = []
    for row in range(rows - 1, -1, -1):
        cells = (max(0, min(8, level - row * 8)) for level in levels)
        lines.append("".join("█" if c == 8 else _LEVELS[c] for c in cells).ljust(width))
    return lines


def _progress(view: View, inner: int) -> Line:
    done, expected = view.snapshot.completed, view.expected
    if not expected:
        waiting = "no samples issued yet"
        return [*bar(0.0, inner - len(waiting) - 2, ACCENT), Segment(f"  {waiting}", DIM)]
    share = min(1.0, done / expected)
    finished = view.snapshot.phase in ("finishing", "done") or done >= expected
    # Rounded down: it says 100 % when the last sample is answered and not before.
    percent = f"  {int(share * 1000) / 10:5.1f} %"
    eta = "" if finished else f"   ETA {'--:--' if view.eta_s is None else clock(view.eta_s)}"
    counts = f"   {done:,} / {expected:,}"
    length = inner - len(percent) - len(counts) - len(eta)
    return [
        *bar(share, max(8, length), GOOD if finished else ACCENT),
        Segment(percent, STRONG),
        Segment(counts),
        Segment(eta, STRONG),
    ]


def _throughput(view: View, inner: int) -> list[Line]:
    snapshot = view.snapshot
    headline: Line = [
        Segment(rate(snapshot.rate_now), NOW),
        Segment(" img/s now     "),
        Segment(rate(snapshot.rate_mean), STRONG),
        Segment(" mean     "),
        Segment(rate(view.peak), STRONG),
        Segment(" peak"),
    ]
    shown = view.columns[-(inner - 9) :] if view.columns else ()
    if snapshot.latency_ms:
        headline.append(Segment("     latency ms ", DIM))
        latencies = "  ".join(f"{name} {value:,.3g}" for name, value in snapshot.latency_ms.items())
        headline.append(Segment(latencies, STRONG))
    label = max(shown, default=0.0)
    left = [rate(label).rjust(7), *[" " * 7] * (CHART_ROWS - 2), "0".rjust(7)]
    lines = [headline, []]
    for text, row in zip(left, chart(shown, inner - 9, CHART_ROWS), strict=True):
        lines.append([Segment(text, DIM), Segment(" │", DIM), Segment(row, ACCENT)])
    return lines


def _stages(snapshot: Snapshot, inner: int) -> list[Line]:
    # An 80-column terminal gets shorter bars, and the queue in figures only.
    busy, queue = (10, 6) if inner >= ROOMY else (8, 0)
    name = max(10, inner - 53 - busy - (queue + 1 if queue else 0))
    head = (
        f"{'stage':<{name}}{'workers':>8}{'img/s':>10}   {'busy':<{busy + 8}}"
        f"{'queued':<{queue + 15 if queue else 14}}{'done':>10}"
    )
    lines: list[Line] = [[Segment(head, HEAD)]]
    for stage in snapshot.stages:
        lines.append(_stage(stage, stage.name == snapshot.slowest, name, busy, queue))
        if stage.name == "infer" and len(stage.worker_rates) > 1:
            each = "  ".join(f"{number}: {rate(value)}" for number, value in enumerate(stage.worker_rates))
            lines.append([Segment(f"    img/s by engine   {each}", DIM)])
        if stage.failed:
            lines.append([Segment(f"    {stage.failed:,} samples of {stage.name} could not be done", BAD)])
    return lines


def _stage(stage: StageSnapshot, slowest: bool, name: int, busy: int, queue: int) -> Line:
    style = SLOW if slowest else PLAIN
    line = [
        Segment(set_cell_size(f"{'▶' if slowest else ' '} {stage.name}", name), style),
        Segment(f"{stage.workers:>8}{rate(stage.rate):>10}   ", style),
        *bar(stage.busy, busy, SLOW if slowest else GOOD),
        Segment(f"{stage.busy * 100:>4.0f} %  ", style),
    ]
    if queue:
        full = stage.queued / stage.capacity if stage.capacity else 0.0
        line += [*bar(full, queue, ACCENT), Segment(" ")]
    line.append(Segment(f"{_queue(stage):<14}{stage.done:>10,}"))
    return line


def _queue(stage: StageSnapshot) -> str:
    return f"{stage.queued:,}/{stage.capacity:,}" if stage.capacity else f"{stage.queued:,}"


def _machine(load: Load | None, inner: int) -> list[Line]:
    if load is None:
        return [[Segment("reading the machine's load", DIM)]]
    width = 10 if inner >= ROOMY else 8
    memory = load.memory_bytes / max(1, load.memory_total_bytes)
    cores = f"{load.cores} core{'s' if load.cores != 1 else ''}"
    line: Line = [
        Segment("CPU  ", HEAD),
        *bar(load.cpu, width, GOOD),
        Segment(f"{load.cpu * 100:>4.0f} %  {cores:<11}"),
        Segment("memory  ", HEAD),
        *bar(memory, width, GOOD),
        Segment(f"{memory * 100:>4.0f} %  {gib(load.memory_bytes)} / {gib(load.memory_total_bytes)} GiB"),
    ]
    return [line, *(_gpu(gpu, width, inner) for gpu in load.gpus)]


def _gpu(gpu: GpuLoad, width: int, inner: int) -> Line:
    facts = []
    if gpu.memory_bytes is not None and gpu.memory_total_bytes:
        facts.append(f"{gib(gpu.memory_bytes)} / {gib(gpu.memory_total_bytes)} GiB")
    if gpu.power_w is not None:
        limit = f" / {gpu.power_limit_w:.0f}" if gpu.power_limit_w else ""
        facts.append(f"{gpu.power_w:.0f}{limit} W")
    if gpu.clock_mhz is not None:
        facts.append(f"{gpu.clock_mhz:,} MHz")
    if gpu.temperature_c is not None:
        facts.append(f"{gpu.temperature_c} °C")
    busy = "   n/a  " if gpu.busy is None else f"{gpu.busy * 100:>4.0f} %  "
    tail = "   ".join(facts)
    room = max(0, inner - 5 - width - len(busy) - len(tail) - 3)
    return [
        Segment(f"GPU{gpu.index:<2}", HEAD),
        *bar(gpu.busy or 0.0, width, GOOD),
        Segment(f"{busy}{tail}   "),
        Segment(gpu.name.removeprefix("NVIDIA ")[:room], DIM),
    ]


def _top(view: View, width: int) -> Line:
    phase = f" {view.snapshot.phase} {clock(view.snapshot.elapsed_s)} "
    room = width - 6 - len(phase)
    title = f" {view.title} " if cell_len(view.title) + 2 <= room else set_cell_size(f" {view.title}", room)
    return [
        Segment("╭─", BORDER),
        Segment(title, TITLE),
        Segment("─" * (room - cell_len(title) + 2), BORDER),
        Segment(phase, PHASES.get(view.snapshot.phase, PLAIN)),
        Segment("─╮", BORDER),
    ]


def _bottom(width: int) -> Line:
    return [Segment("╰" + "─" * (width - 2) + "╯", BORDER)]


def _boxed(line: Line, inner: int) -> Line:
    length = _length(line)
    if length > inner:
        line = Segment.adjust_line_length(line, inner)
        length = inner
    return [Segment("│  ", BORDER), *line, Segment(" " * (inner - length) + "  │", BORDER)]


def _length(line: Iterable[Segment]) -> int:
    return sum(cell_len(segment.text) for segment in line)
