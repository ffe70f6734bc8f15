"""Which part of the pipeline bounds a run, and what it would take to move on.

The parts overlap, so a run can go as fast as its slowest part alone: that part's rate is the run's ceiling. What a GPU
does alone is measured while the run starts, with nothing else at work; what the host does is measured in the run, over
the seconds that each part was busy:

- decode: images over the seconds that loaders were busy with them, a loader; times the loaders.
- h2d: samples copied from the arena to device memory with no network running.
- engine: networks on inputs that are in device memory, as many side by side as the run has in flight. On the CPU,
  samples over the seconds that engines were busy.
- loadgen: samples over the seconds that handing answers to LoadGen took.
- main: samples over the CPU seconds that the main process's Python took, a thread at a time, in classification.

In a performance run LoadGen has samples loaded before its clock starts, so that decoding bounds none; the verdict then
says what decoding at the run's rate would take. An accuracy run decodes one set of samples while the engine is at the
one before: what was decoded in that time counts, and the ceiling is for so many images per sample.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.telemetry.ceilings import Ceilings
from pipeline.words import counted

REACHED = 0.90
"""A run at this share of its lowest ceiling is bounded by it; below, by what lies between the parts."""

EXCEEDED = 1.05
"""A run above this share of a ceiling shows that the ceiling was measured too low."""

MEASURED_BY = {
    "decode": "images over the loaders' busy seconds, times the loaders",
    "h2d": "copies from the arena alone, no network running",
    "engine": "networks alone on inputs in place",
    "loadgen": "samples over the seconds that handing answers to LoadGen took",
    "main": "samples over the CPU seconds of the main process's Python",
}


@dataclass(frozen=True)
class Verdict:
    """What bounds the run.

    Attributes:
        bound: `decode`, `h2d`, `engine`, `loadgen` or `main`; `overheads` where the run stays well below every ceiling;
            `unknown` where no ceiling was measured or the run is faster than one.
        share: the run's rate over its lowest ceiling; None without one.
        sentences: the verdict, what it would take, and each ceiling with how it was measured.
    """

    bound: str
    share: float | None
    sentences: tuple[str, ...]
    ceilings: Ceilings

    def as_dict(self) -> dict[str, Any]:
        """For summary.json."""
        measured = {
            part: {"samples_per_s": rate, "measured_by": MEASURED_BY[part]}
            for part, rate in self.ceilings.by_part().items()
        }
        return {
            "bound": self.bound,
            "share_of_ceiling": self.share,
            "sentences": list(self.sentences),
            "ceilings": measured,
            "measured": asdict(self.ceilings),
        }

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def judge(ceilings: Ceilings) -> Verdict:
    """The verdict over a run that is over."""
    parts = ceilings.by_part()
    listed = tuple(f"  {part}: {_rate(rate)} ({MEASURED_BY[part]})" for part, rate in parts.items())
    listed += _decoded_before(ceilings) + _decoded_in_part(ceilings)
    run = _rate(ceilings.rate)
    if not parts:
        return Verdict("unknown", None, (f"The run gave {run}; no ceiling was measured.", *listed), ceilings)
    lowest = next(iter(parts))
    ceiling = parts[lowest]
    share = ceilings.rate / ceiling if ceiling > 0 else math.inf
    if share > EXCEEDED:
        said = (
            f"The run gave {run}, more than {lowest} alone ({_rate(ceiling)}): that ceiling was measured too low, and "
            "no verdict can rest on it."
        )
        return Verdict("unknown", share if math.isfinite(share) else None, (said, *listed), ceilings)
    if share < REACHED:
        lost = "The rest is lost between the parts: more batches in flight, larger batches or a longer run show where."
        if lowest == "main":
            lost = f"Its threads wait for one another, too: {_ANOTHER_MAIN}."
        said = (
            f"No part bounds this run: {run} is {share:.0%} of the lowest ceiling, {lowest}'s {_rate(ceiling)}. {lost}"
        )
        return Verdict("overheads", share, (said, *listed), ceilings)
    said = f"{_TITLES[lowest]} bounds this run: {run} is {share:.0%} of its ceiling, {_rate(ceiling)}."
    return Verdict(lowest, share, (said, _mend(lowest, parts, ceilings), *listed), ceilings)


_TITLES = {
    "decode": "Decoding",
    "h2d": "Copying to the device",
    "engine": "The engine",
    "loadgen": "LoadGen",
    "main": "The main process",
}
_ANOTHER_MAIN = "with --ray each GPU has a main process of its own"


def _mend(bound: str, parts: dict[str, float], ceilings: Ceilings) -> str:
    """What it would take for the next part to bound the run instead."""
    others = [(part, rate) for part, rate in parts.items() if part != bound]
    if not others:
        return "No other ceiling was measured, so that there is nothing to say of what would come next."
    following, target = others[0]
    if bound == "decode":
        return _more_loaders(following, target, ceilings)
    if bound == "h2d":
        needed, given = (rate * ceilings.sample_bytes / 1e9 for rate in (target, parts["h2d"]))
        return f"For {following}'s {target:,.0f}, copies need {needed:.1f} GB/s and have {given:.1f}."
    if bound == "engine":
        times = target / parts["engine"] if parts["engine"] else math.inf
        shown = f"{times:,.1f}" if times < 10 else f"{times:,.0f}"
        return f"That is how it should be. {_TITLES[following]} would allow {shown} times the rate."
    if bound == "main":
        return f"For {following}'s {target:,.0f}, processes have to share the sources: {_ANOTHER_MAIN}."
    return f"For {following}'s {target:,.0f}, LoadGen needs more samples per query, or a second process that issues."


def _decoded_before(ceilings: Ceilings) -> tuple[str, ...]:
    """What decoding at the run's rate would take, where it was over before the clock started."""
    each, together = ceilings.decode_per_loader, ceilings.decode
    if ceilings.decode_timed or not each or not together:
        return ()
    said = f"Decoding was over before the clock started: {_rate(together)} with {counted(ceilings.loaders, 'loader')}"
    more = math.ceil(ceilings.rate / each - 1e-9) - ceilings.loaders
    if more <= 0:
        return (f"{said}, which keeps up with this run.",)
    idle = max(0, min(more, ceilings.cores - ceilings.loaders))
    lack = [f"{counted(idle, 'core')} that no loader uses"] if idle else []
    lack += [counted(more - idle, "more core")] if more > idle else []
    return (f"{said}; to keep up with this run, decode needs {' and '.join(lack)}.",)


def _decoded_in_part(ceilings: Ceilings) -> tuple[str, ...]:
    share = ceilings.decodes_per_sample
    if ceilings.decode_allows is None or share == 1:
        return ()
    return (
        f"{share:.3g} images were decoded for each sample in that time: {_rate(ceilings.decode or 0)} of decoding.",
    )


def _rate(value: float) -> str:
    """`128,288 samples/s`, `15.9 samples/s`."""
    return f"{value:,.0f} samples/s" if value >= 100 else f"{value:.3g} samples/s"


def _more_loaders(following: str, target: float, ceilings: Ceilings) -> str:
    each = ceilings.decode_per_loader
    if not each:
        return f"For {following}'s {target:,.0f}, loaders have to decode at all."
    wanted = math.ceil(target * ceilings.decodes_per_sample / each - 1e-9)
    more = wanted - ceilings.loaders
    if more <= 0:
        return f"{following} is as slow: {target:,.0f}."
    idle = max(0, min(more, ceilings.cores - ceilings.loaders))
    here = f"{counted(more - idle, 'more core')} than the {ceilings.cores} here" if more > idle else "no more cores"
    if idle:
        here += f"; --loaders {ceilings.loaders + idle} would use the {counted(idle, 'core')} that no loader has yet"
    return (
        f"For {following}'s {target:,.0f} at {each:,.0f} images/s per loader, decode needs "
        f"{counted(wanted, 'loader')} in place of {ceilings.loaders}: {here}."
    )
