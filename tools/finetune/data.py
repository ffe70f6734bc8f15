"""Batches of normalised images: from the procedural set, or from image files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from int4core.preprocess import MEAN, STD, short_side, square
from pipeline.errors import ImageError, PipelineError
from pipeline.samples.files import open_sample
from pipeline.samples.images import ImageRules, open_image, to_rgb
from pipeline.samples.library import read_map
from tools.finetune.errors import FinetuneError
from tools.shapes.arrays import torch_backend
from tools.shapes.files import HELD_OUT, MAP_NAME
from tools.shapes.names import CLASSES
from tools.shapes.render import CROP_EXTENT, render

Batch = tuple[torch.Tensor, torch.Tensor]
"""images: float32 (N, 3, H, W), normalised; labels: int64 (N,); both on the source's device."""


class Source(Protocol):
    """Endless batches for training, by step, so that a resumed run goes on where it stopped."""

    def batch(self, step: int) -> Batch: ...


def normalise(images: torch.Tensor) -> torch.Tensor:
    """RGB in [0, 1], rounded to 8 bits as a file holds it, to what the network takes."""
    mean = torch.tensor(MEAN, device=images.device).reshape(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).reshape(1, 3, 1, 1)
    return (torch.round(images * 255.0) / 255.0 - mean) / std


def place(images: torch.Tensor) -> torch.Tensor:
    """channels_last on a GPU, where its convolutions are faster."""
    return images.contiguous(memory_format=torch.channels_last) if images.is_cuda else images


@dataclass
class Procedural:
    """The procedural set, rendered on `device` batch by batch.

    Attributes:
        classes: labels are drawn from 0..classes-1.
        held_out: draw from the seeds that training never sees.
        rank, world: this process and how many there are; each gets images of its own.
        fused: compile the renderer's leaves (for a GPU; costs some seconds at each new size).
    """

    device: torch.device
    batch_size: int
    size: int
    seed: int
    classes: int = CLASSES
    held_out: bool = False
    rank: int = 0
    world: int = 1
    fused: bool = False

    def __post_init__(self) -> None:
        self._backend = torch_backend(self.device, fused=self.fused)

    def batch(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, int(self.held_out), step * self.world + self.rank])
        labels = torch.from_numpy(rng.integers(0, self.classes, self.batch_size)).to(self.device)
        seeds = rng.integers(0, HELD_OUT, self.batch_size) + (HELD_OUT if self.held_out else 0)
        with torch.no_grad():
            side, keys = self.size, torch.from_numpy(seeds)
            images = render(labels, keys, side, side, extent=CROP_EXTENT, backend=self._backend)
            return place(normalise(images)), labels


def _mapped(path: Path) -> list[tuple[Path, int]]:
    """The files and labels of a map; names are relative to its folder."""
    try:
        entries = read_map(path)
    except PipelineError as error:
        raise FinetuneError(str(error)) from error
    found = [(path.parent / e.name, e.label) for e in entries if e.label is not None]
    if not found:
        raise FinetuneError(f"{path}: no labels in it; a line is NAME, a tab or spaces, LABEL")
    return found


def list_images(root: Path, classes: int) -> list[tuple[Path, int]]:
    """(file, label) of an ImageFolder tree (a folder a class, in name order) or a folder with map.txt.

    Raises FinetuneError, for a label that is none of `classes` too.
    """
    mapping = root / MAP_NAME
    if mapping.is_file():
        found = _mapped(mapping)
    else:
        if not root.is_dir():
            raise FinetuneError(f"{root}: no such folder: give one, or `shapes` for the procedural set")
        folders = sorted(p for p in root.iterdir() if p.is_dir())
        found = [(p, i) for i, folder in enumerate(folders) for p in sorted(folder.iterdir()) if p.is_file()]
        if not found:
            raise FinetuneError(f"{root}: neither {MAP_NAME} nor folders of images, one a class, are in it")
    wrong = next(((path, label) for path, label in found if label >= classes), None)
    if wrong is not None:
        raise FinetuneError(f"{wrong[0]}: label {wrong[1]} is no class of the model, which are 0 to {classes - 1}")
    return found


def load_image(path: Path, size: int, rng: np.random.Generator | None) -> torch.Tensor:
    """float32 (3, size, size) in [0, 1]: resized and centre-cropped, or with `rng` a random crop and flip.

    Files are taken by the pipeline's rules. Raises FinetuneError naming one that is not.
    """
    try:
        with open_sample(path) as file:
            image: Any = to_rgb(open_image(file, path, ImageRules()), path)
    except ImageError as error:
        raise FinetuneError(str(error)) from error
    except Exception as error:  # on damaged data Pillow's readers raise nearly anything
        raise FinetuneError(f"{path}: cannot be read as an image ({error or type(error).__name__})") from error
    width, height = image.size
    if rng is None:
        image = square(image, size, short_side(size))
    else:
        # A crop of 25 to 100 % of the area and aspect 3:4 to 4:3, as usual for ImageNet training.
        area, aspect = width * height * rng.uniform(0.25, 1.0), np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
        w, h = min(width, round(np.sqrt(area * aspect))), min(height, round(np.sqrt(area / aspect)))
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        image = image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + w, top + h))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()).float() / 255.0


class _Files(torch.utils.data.Dataset[Batch]):
    """Item i is the i-th image in order (evaluation), or in the shuffled order of its epoch (training)."""

    def __init__(self, files: list[tuple[Path, int]], size: int, seed: int | None) -> None:
        self.files, self.size, self.seed = files, size, seed
        self._epoch = -1
        self._order: Any = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        if self.seed is None:
            path, label = self.files[index]
            return load_image(path, self.size, None), torch.tensor(label)
        epoch, place_in_epoch = divmod(index, len(self.files))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.files))
            self._epoch = epoch
        path, label = self.files[self._order[place_in_epoch]]
        return load_image(path, self.size, np.random.default_rng([self.seed, index, 1])), torch.tensor(label)


class Folder:
    """Training batches from image files, decoded by `workers` processes."""

    def __init__(
        self,
        root: Path,
        device: torch.device,
        batch_size: int,
        size: int,
        seed: int,
        *,
        classes: int = CLASSES,
        rank: int = 0,
        world: int = 1,
        workers: int = 8,
    ) -> None:
        self.files = list_images(root, classes)
        self.device, self.batch_size = device, batch_size
        self.rank, self.world, self.workers = rank, world, workers
        self._data = _Files(self.files, size, seed)
        self._next = -1
        self._loader: Iterator[Any] | None = None

    def _indices(self, step: int) -> Iterator[list[int]]:
        while True:
            start = (step * self.world + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))
            step += 1

    def batch(self, step: int) -> Batch:
        if self._loader is None or step != self._next:
            loader: Any = torch.utils.data.DataLoader(
                self._data, batch_sampler=self._indices(step), num_workers=self.workers
            )
            self._loader = iter(loader)
        self._next = step + 1
        images, labels = next(self._loader)
        return place(normalise(images.to(self.device, non_blocking=True))), labels.to(self.device)


def evaluation_files(
    root: Path, device: torch.device, batch_size: int, size: int, workers: int, classes: int = CLASSES
) -> Iterator[Batch]:
    """Every image file of `root` once, centre-cropped."""
    data = _Files(list_images(root, classes), size, None)
    for images, labels in torch.utils.data.DataLoader(data, batch_size=batch_size, num_workers=workers):
        yield place(normalise(images.to(device))), labels.to(device)
