"""The loop that people write: a PyTorch DataLoader with Pillow and torchvision's transforms, ResNet-50, a CSV.

What `python -m benchmarks.classify` compares with. Float32 on the CPU; on a GPU float16, channels last, compiled. The
weights are random: their values do not change the time.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet50

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Files(Dataset[tuple[torch.Tensor, str]]):
    """Images by path, as ImageNet's evaluation prepares them."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._prepare = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        with Image.open(self._paths[index]) as image:
            return self._prepare(image.convert("RGB")), self._paths[index]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_loop", description=__doc__)
    parser.add_argument("list", type=Path, help="a file with the path of an image on each line")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, required=True, help="processes that load images")
    options = parser.parse_args(argv)

    gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if gpu else "cpu"), torch.float16 if gpu else torch.float32
    network = resnet50().eval().to(device, dtype, memory_format=torch.channels_last)
    if gpu:
        network = torch.compile(network, mode="max-autotune-no-cudagraphs")
    paths = options.list.read_text().splitlines()
    loader = DataLoader(Files(paths), batch_size=options.batch, num_workers=options.workers, pin_memory=gpu)
    with torch.inference_mode(), options.out.open("w", newline="") as file:
        warm = torch.zeros(options.batch, 3, 224, 224, device=device, dtype=dtype)
        network(warm.to(memory_format=torch.channels_last))
        rows = csv.writer(file)
        began, done = time.perf_counter(), 0
        for images, names in loader:
            if gpu and len(images) < options.batch:  # another shape would be compiled anew, within the time
                images = torch.cat([images, images.new_zeros(options.batch - len(images), *images.shape[1:])])
            batch = images.to(device, dtype, memory_format=torch.channels_last, non_blocking=True)
            best = network(batch).float().softmax(1).topk(5)
            scores, classes = (part[: len(names)] for part in best)
            for name, shares, ids in zip(names, scores.tolist(), classes.tolist(), strict=True):
                rows.writerow([name, ids[0], shares[0], ids, shares])
            done += len(names)
    print(json.dumps({"images": done, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
