"""The frame for a terminal that is small: no box, no blank lines, fields left out where they do not fit."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment

from pipeline.machine.hardware import GpuLoad, Load
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

_NAME = 11


def draw_compact(view: View, width: int, height: int) -> list[Line]:
    """At most `height` lines of exactly `width` cells; what matters least is left out first."""
    # In the order of the screen, each with its rank: the lowest ranks stay.
    ranked: list[tuple[int, Line]] = [
        (0, _head(view, width)),
        *((1, line) for line in _progress(view, width)),
        (2, _rates(view, width)),
        (5, _latency(view.snapshot, width)),
        *((9, line) for line in _chart(view, width)),
        (7, _heading(width)),
        *_stages(view.snapshot, width),
        (8, _decoded(view.snapshot.decoded, width)),
        *((6, line) for line in _machine(view.load, width)),
    ]
    kept = [(rank, line) for rank, line in ranked if line]
    while len(kept) > max(1, height):
        last = max(rank for rank, _ in kept)
        del kept[max(i for i, (rank, _) in enumerate(kept) if rank == last)]
    return [_filled(line, width) for _, line in kept]


def _head(view: View, width: int) -> Line:
    phase = f" {view.snapshot.phase} {clock(view.snapshot.elapsed_s)} "
    room = max(0, width - cell_len(phase) - 2)
    title = heading(view.title, room)
    return [
        Segment("─", BORDER),
        Segment(title, TITLE),
        Segment("─" * (room - cell_len(title)), BORDER),
        Segment(phase, PHASES.get(view.snapshot.phase, PLAIN)),
        Segment("─", BORDER),
    ]


def _progress(view: View, width: int) -> list[Line]:
    progress = view.progress
    if progress is None:
        return [[Segment(text, DIM)] for text in wrap(view.waiting, width)]
    if not progress.expected:
        return [fit([[Segment(progress.counts, STRONG)], [Segment("not counted yet", DIM)]], width)]
    eta = "" if progress.ended else f"ETA {'--:--' if progress.eta_s is None else clock(progress.eta_s)}"
    tail = fit(
        [
            [Segment(percent(progress.done, progress.expected), STRONG)],
            [Segment(eta, STRONG)],
            [Segment(progress.counts)],
        ],
        max(8, width - 10),
        gap=2,
    )
    style = GOOD if progress.ended else ACCENT
    room = max(0, width - length(tail) - 2)
    return [[*bar(progress.done / progress.expected, room, style), Segment("  "), *tail]]


def _rates(view: View, width: int) -> Line:
    snapshot = view.snapshot
    if not (view.expected or snapshot.completed):
        return []
    return fit(
        [
            [Segment(rate(snapshot.rate_now), NOW), Segment(" img/s now")],
            [Segment(rate(snapshot.rate_mean), STRONG), Segment(" mean")],
            [Segment(rate(view.peak), STRONG), Segment(" peak")],
        ],
        width,
    )


def _latency(snapshot: Snapshot, width: int) -> Line:
    shown = [[Segment(f"{name} "), Segment(duration(ms), STRONG)] for name, ms in snapshot.latency_ms.items()]
    return fit([[Segment("latency", DIM)], *shown], width) if shown else []


def _chart(view: View, width: int) -> list[Line]:
    if not view.columns:
        return []
    return [[Segment(row, ACCENT)] for row in chart(view.columns, width, 2)]


def _heading(width: int) -> Line:
    fields = [f"{'  stage':<{_NAME}}", f"{'img/s':>9}", f"{'busy':>6}", f"{'done':>11}", f"{'queued':>13}"]
    return fit([[Segment(field, HEAD)] for field in fields], width, gap=0)


def _stages(snapshot: Snapshot, width: int) -> list[tuple[int, Line]]:
    lines = []
    for stage in snapshot.stages:
        slowest = stage.name == snapshot.slowest
        lines.append((2 if slowest else 4, _stage(stage, slowest, width)))
        if stage.failed:
            lines.append((3, fit([[Segment(f"  {stage.failed:,} of {stage.name} could not be done", BAD)]], width)))
    return lines


def _stage(stage: StageSnapshot, slowest: bool, width: int) -> Line:
    queued = f"{stage.queued:,}/{stage.capacity:,}" if stage.capacity else f"{stage.queued:,}"
    fields = [
        set_cell_size(f"{'▶' if slowest else ' '} {stage.name}", _NAME),
        f"{rate(stage.rate):>9}",
        f"{stage.busy * 100:>4.0f} %",
        f"{stage.done:>11,}",
        f"{queued:>13}",
    ]
    return fit([[Segment(field, SLOW if slowest else PLAIN)] for field in fields], width, gap=0)


def _decoded(decoded: Decoded | None, width: int) -> Line:
    return [Segment(decoded_line(decoded, width))] if decoded else []


def _machine(load: Load | None, width: int) -> list[Line]:
    if load is None:
        return []
    cores = counted(load.cores, "core")
    memory = f"{gib(load.memory_bytes)} / {gib(load.memory_total_bytes)} GiB"
    host: list[Line] = [
        [Segment("CPU  ", HEAD), Segment(f"{load.cpu * 100:3.0f} %")],
        [Segment(cores)],
        [Segment("memory ", HEAD), Segment(memory)],
    ]
    return [fit(host, width), *_gpus(load.gpus, width)]


def _gpus(gpus: tuple[GpuLoad, ...], width: int) -> list[Line]:
    if len(gpus) <= 1:
        return [_gpu(f"GPU{gpu.index}", gpu.name, [gpu], width) for gpu in gpus]
    return [_gpu(f"{len(gpus)} GPUs", "", list(gpus), width)]


def _gpu(label: str, name: str, gpus: list[GpuLoad], width: int) -> Line:
    """One GPU, or several as one: the mean of how busy they are, and the sums of memory and power."""
    busy = [g.busy for g in gpus if g.busy is not None]
    memory = [g.memory_bytes for g in gpus if g.memory_bytes is not None]
    power = [g.power_w for g in gpus if g.power_w is not None]
    fields = [f"{sum(busy) / len(busy) * 100:3.0f} %" if busy else "n/a"]
    fields += [f"{gib(sum(memory))} GiB"] if memory else []
    fields += [f"{sum(power):,.0f} W"] if power else []
    fields += [name.removeprefix("NVIDIA ")] if name else []
    return fit([[Segment(f"{label} ", HEAD), Segment(fields[0])], *([Segment(field)] for field in fields[1:])], width)


def _filled(line: Line, width: int) -> Line:
    if length(line) > width:
        line = Segment.adjust_line_length(line, width)
    return [*line, Segment(" " * (width - length(line)))]
