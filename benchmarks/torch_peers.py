"""torchvision's ResNet-50 in fp16, as the peer at hand: eager under a CUDA graph, and torch.compile(max-autotune)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

REPLAYS = 20


@dataclass(frozen=True)
class Rate:
    """Images/s of a network at a batch size."""

    name: str
    batch: int
    images_per_s: float


def int8_peak_tops(torch: Any, size: int = 8192) -> float:
    """TOPS of cuBLASLt's int8 GEMM of size^3 (torch._int_mm), the best of ten."""
    a = torch.randint(-128, 128, (size, size), dtype=torch.int8, device="cuda")
    b = torch.randint(-128, 128, (size, size), dtype=torch.int8, device="cuda").t()
    return float(2 * size**3 / min(_times_ms(torch, lambda: torch._int_mm(a, b), 10)) / 1e9)


def copy_gbs(torch: Any, size: int = 1 << 30) -> float:
    """GB/s of a device copy, bytes read plus bytes written."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return float(2 * size / statistics.median(_times_ms(torch, lambda: target.copy_(source), 10)) / 1e6)


def resnet50_rates(torch: Any, batches: list[int], compiled_batches: list[int]) -> Iterator[Rate]:
    """fp16, channels_last, random weights: eager in a CUDA graph at every batch, compiled at some."""
    from torchvision.models import resnet50

    torch.backends.cudnn.benchmark = True
    net = resnet50().eval().cuda().half().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for batch in batches:
            x = _images(torch, batch)
            yield Rate("torch fp16, eager in a CUDA graph", batch, _rate(torch, _captured(torch, net, x), x))
        for batch in compiled_batches:
            x = _images(torch, batch)
            compiled = torch.compile(net, mode="max-autotune")
            for _ in range(3):
                compiled(x)
            yield Rate("torch fp16, torch.compile(max-autotune)", batch, _rate(torch, lambda: compiled(x), x))  # noqa: B023


def _images(torch: Any, batch: int) -> Any:
    return torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.half).to(memory_format=torch.channels_last)


def _captured(torch: Any, net: Any, x: Any) -> Callable[[], Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            net(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(x)
    replay: Callable[[], Any] = graph.replay
    return replay


def _rate(torch: Any, run: Callable[[], Any], x: Any) -> float:
    for _ in range(3):
        run()
    return float(len(x) / statistics.median(_times_ms(torch, run, REPLAYS, x)) * 1e3)


def _times_ms(torch: Any, run: Callable[[], Any], count: int, x: Any = None) -> list[float]:
    times = []
    for _ in range(count):
        if x is not None:
            x.normal_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)))
    return times
