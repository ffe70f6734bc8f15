"""The dashboard's picture: a pure function from the state of a run to styled lines of text.

It makes rich's segments itself. Laying out tables and panels anew four times per second costs several
times what may be spent (1 % of a core); here one frame is about a hundred string operations.
"""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import ControlType, Segment

from pipeline.machine.hardware import GpuLoad, Load
from pipeline.report.compact import draw_compact
from pipeline.report.decoded import decoded_line
from pipeline.report.drawing import (
    ACCENT,
    BAD,
    BORDER,
    DIM,
    GOOD,
    HEAD,
    NOW,
    PHASES,
    PLAIN,
    SLOW,
    STRONG,
    TITLE,
    Line,
    bar,
    chart,
    clock,
    duration,
    fit,
    gib,
    heading,
    length,
    percent,
    rate,
    wrap,
)
from pipeline.report.view import View
from pipeline.telemetry.metrics import Decoded, Snapshot, StageSnapshot
from pipeline.words import counted

MIN_WIDTH, MAX_WIDTH = 76, 100
ROOMY = 84
CHART_ROWS = 4


class Frame:
    """A View as a rich renderable."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        # A row is left for what a terminal echoes. The cursor waits where the last line begins: at its end, ^C would
        # begin another row, and the next frame be drawn one too low.
        *above, last = draw(self.view, options.max_width, options.size.height - 1)
        for line in above:
            yield from line
            yield Segment.line()
        yield from last
        yield Segment("\r", None, [(ControlType.CARRIAGE_RETURN,)])
        yield Segment.line()


def draw(view: View, width: int, height: int) -> list[Line]:
    """The frame for a terminal of `width` x `height` cells: at most `height` lines, all equally long.

    A small terminal gets the compact frame.
    """
    width = min(MAX_WIDTH, width)
    if width >= MIN_WIDTH:
        inner = width - 6
        body = _body(view, inner)
        if len(body) + 2 > height:
            body = [line for line in body if line]
        if len(body) + 2 <= height:
            return [_top(view, width), *(_boxed(line, inner) for line in body), _bottom(width)]
    return draw_compact(view, width, height)


def _body(view: View, inner: int) -> list[Line]:
    return [
        [],
        *_progress(view, inner),
        [],
        *_throughput(view, inner),
        [],
        *_stages(view.snapshot, inner),
        [],
        *_decoded(view.snapshot.decoded, inner),
        *_machine(view.load, inner),
        [],
    ]


def _progress(view: View, inner: int) -> list[Line]:
    progress = view.progress
    if progress is None:
        return [[Segment(text, DIM)] for text in wrap(view.waiting, inner)]
    if not progress.expected:
        return [[Segment(progress.counts, STRONG), Segment("   not counted yet", DIM)]]
    counts = f"   {progress.counts}"
    eta = "" if progress.ended else f"   ETA {'--:--' if progress.eta_s is None else clock(progress.eta_s)}"
    share = f"  {percent(progress.done, progress.expected):>7}"
    tail = [Segment(share, STRONG), Segment(counts), Segment(eta, STRONG)]
    style = GOOD if progress.ended else ACCENT
    return [[*bar(progress.done / progress.expected, max(8, inner - length(tail)), style), *tail]]


def _throughput(view: View, inner: int) -> list[Line]:
    snapshot = view.snapshot
    headline: list[Line] = [
        [Segment(rate(snapshot.rate_now), NOW), Segment(" img/s now")],
        [Segment(rate(snapshot.rate_mean), STRONG), Segment(" mean")],
        [Segment(rate(view.peak), STRONG), Segment(" peak")],
    ]
    latencies: list[Line] = [
        [Segment(f"{name} "), Segment(duration(ms), STRONG)] for name, ms in snapshot.latency_ms.items()
    ]
    shown = view.columns[-(inner - 9) :] if view.columns else ()
    label = max(shown, default=0.0)
    left = [rate(label).rjust(7), *[" " * 7] * (CHART_ROWS - 2), "0".rjust(7)]
    lines = [fit(headline, inner, 5), fit([[Segment("latency", DIM)], *latencies], inner) if latencies else []]
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


def _decoded(decoded: Decoded | None, inner: int) -> list[Line]:
    return [[Segment(decoded_line(decoded, inner))], []] if decoded else []


def _machine(load: Load | None, inner: int) -> list[Line]:
    if load is None:
        return [[Segment("reading the machine's load", DIM)]]
    width = 10 if inner >= ROOMY else 8
    memory = load.memory_bytes / max(1, load.memory_total_bytes)
    cores = counted(load.cores, "core")
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
    title = heading(view.title, room)
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
    if length(line) > inner:
        line = Segment.adjust_line_length(line, inner)
    return [Segment("│  ", BORDER), *line, Segment(" " * (inner - length(line)) + "  │", BORDER)]
