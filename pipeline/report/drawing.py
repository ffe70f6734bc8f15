"""What frames are drawn with: styles, figures as text, bars and charts as lines of segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style

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
    "writing logs": Style.parse("bold cyan"),
    "done": Style.parse("bold cyan"),
}

Line: TypeAlias = list[Segment]


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


def duration(ms: float) -> str:
    """Milliseconds with three digits; from a second on, seconds: `12.3 ms`, `7.33 s`, `1,234 s`."""
    value, unit = (ms, "ms") if ms < 999.5 else (ms / 1000, "s")
    return f"{value:,.0f} {unit}" if value >= 999.5 else f"{value:.3g} {unit}"


def percent(done: int, expected: int) -> str:
    """Rounded down: it says 100 % when the last sample is done and not before."""
    return f"{1000 * min(done, expected) // expected / 10:.1f} %"


def length(line: Iterable[Segment]) -> int:
    return sum(cell_len(segment.text) for segment in line)


def fit(fields: Sequence[Line], width: int, gap: int = 3) -> Line:
    """As many of `fields`, the most important first, as stand side by side in `width` cells, whole."""
    line: Line = []
    for field in fields:
        between = gap if line else 0
        if length(line) + between + length(field) > width:
            break
        line += [Segment(" " * between), *field] if between else field
    return line


def heading(title: str, width: int) -> str:
    """`title` between blanks, or as much of it as there is room for in `width` cells, with an ellipsis."""
    if cell_len(title) + 2 <= width:
        return f" {title} "
    return set_cell_size(f" {title}", max(0, width - 1)) + "…"[:width]


def wrap(text: str, width: int) -> list[str]:
    """The words of `text` in lines of at most `width` cells; a longer word is cut."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word[:width])
    return lines


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
