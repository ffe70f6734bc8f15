"""Histograms of every tensor the format quantises, and the steps chosen from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from int4core.install import install_command
from tools.finetune.errors import FinetuneError
from tools.finetune.resnet import ResNet

BINS = 2048


@dataclass(frozen=True)
class Histogram:
    """Magnitudes of one tensor over all calibration images.

    counts: int64 (BINS,), equal bins from 0 to `top`; zeros: how many values were exactly 0 (after a
    ReLU they are half of all, say nothing about the range, and are left out of `counts`).
    """

    counts: npt.NDArray[np.int64]
    top: float
    zeros: int

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        return np.linspace(0.5, BINS - 0.5, BINS, dtype=np.float64) * (self.top / BINS)

    def percentile(self, percent: float) -> float:
        """The magnitude that `percent` of all values, zeros included, do not exceed."""
        total = int(self.counts.sum()) + self.zeros
        wanted = total * percent / 100.0 - self.zeros
        index = int(np.searchsorted(np.cumsum(self.counts), wanted))
        return (min(index, BINS - 1) + 1) * self.top / BINS

    def best_clip(self, hi: int) -> float:
        """The clip that gives integers 0..hi the least mean squared error on this histogram."""
        x = self.centres

        def error(clip: float) -> float:
            step = clip / hi
            rounded = np.minimum(np.floor(x / step + 0.5), hi) * step
            return float((self.counts * (x - rounded) ** 2).sum())

        return min((self.top * k / 100.0 for k in range(5, 101)), key=error)


def collect(
    parent: ResNet, batches: Callable[[], Iterable[torch.Tensor]], seen: Callable[[], None] = lambda: None
) -> dict[str, Histogram]:
    """Histograms of every tensor to be quantised, of an FP32 network in evaluation mode.

    batches: called twice (the first pass finds the largest values), must give the same images both times.
    seen: called after each batch of either pass.
    """
    parent.eval()
    tops: dict[str, torch.Tensor] = {}
    counts: dict[str, torch.Tensor] = {}
    zeros: dict[str, torch.Tensor] = {}

    def find_top(name: str, x: torch.Tensor) -> None:
        top = x.abs().max()
        tops[name] = torch.maximum(tops[name], top) if name in tops else top

    def count(name: str, x: torch.Tensor) -> None:
        x = x.abs().float().flatten()
        bins = torch.histc(x[x > 0], BINS, 0.0, float(tops[name])).to(torch.int64)
        empty = (x == 0).sum()
        counts[name] = counts[name] + bins if name in counts else bins
        zeros[name] = zeros[name] + empty if name in zeros else empty

    with torch.no_grad():
        for tap in (find_top, count):
            for images in batches():
                parent(images, tap)
                seen()
    dead = [name for name, top in tops.items() if not math.isfinite(float(top)) or float(top) <= 0]
    if dead:
        raise FinetuneError(
            f"{dead[0]}: its values are all zero or not finite on the calibration images: "
            "check the weights, and that the images are normalised as the weights expect"
        )
    return {name: Histogram(counts[name].cpu().numpy(), float(tops[name]), int(zeros[name])) for name in tops}


def choose_step(histogram: Histogram, hi: int, method: str, percent: float) -> float:
    """Real units of one integer step: from the percentile, or from the least squared error below it."""
    clip = histogram.percentile(percent)
    if method == "mse":
        clip = min(clip, histogram.best_clip(hi))
    return clip / hi


def save_histograms(histograms: dict[str, Histogram], path: Path) -> None:
    """One .npz: NAME.counts, NAME.top and NAME.zeros of every tensor."""
    arrays: dict[str, Any] = {}
    for name, h in histograms.items():
        arrays[f"{name}.counts"] = h.counts
        arrays[f"{name}.top"] = np.array(h.top)
        arrays[f"{name}.zeros"] = np.array(h.zeros)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def plot_histograms(histograms: dict[str, Histogram], steps: dict[str, float], hi: dict[str, int], path: Path) -> None:
    """A PNG with one small histogram a tensor and its clip as a line. Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FinetuneError(f"the plot needs matplotlib: {install_command('train')}") from error
    columns = 8
    rows = -(-len(histograms) // columns)
    figure = Figure(figsize=(columns * 2.4, rows * 1.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(histograms) :]:
        axis.set_axis_off()
    for axis, (name, h) in zip(axes.flat, histograms.items(), strict=False):
        axis.fill_between(h.centres, np.maximum(h.counts, 0.5), 0.5, step="mid", linewidth=0, color="#4878a8")
        axis.axvline(steps[name] * hi[name], color="#c03028", linewidth=1)
        axis.set_yscale("log")
        axis.set_title(name, fontsize=7)
        axis.tick_params(labelsize=5)
    figure.savefig(path, dpi=110)
