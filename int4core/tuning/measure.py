"""How long kernels take, each alone: CUDA graphs of launches over rotating buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from int4core.backends.cuda.device import memory_errors
from int4core.backends.cuda.families.kernel import Kernel
from int4core.backends.cuda.network import DeviceNetwork
from int4core.backends.cuda.plan.ops import INPUT, Op, outputs, parts
from int4core.backends.cuda.plan.planner import NetworkPlan

ROTATE_OVER_L2 = 3
"""Buffers take turns over this many times the L2, so that a launch finds nothing of the one before there."""

MAX_SETS = 6
RUNS = 5
GRAPH_US = 2000.0
"""A graph has enough launches to take about this long."""


def tensor_bytes(plan: NetworkPlan) -> dict[str, int]:
    """Bytes of every tensor of a plan, by name."""
    return {INPUT: plan.input_bytes} | {
        part.output.name: part.output.bytes for step in plan.steps for part in parts(step.op)
    }


@dataclass(frozen=True, eq=False)
class Site:
    """Where an operation's tensors lie while it is timed: sets of buffers with random bytes."""

    op: Op
    sets: tuple[Mapping[str, Any], ...]

    @classmethod
    def make(cls, network: DeviceNetwork, op: Op, sizes: Mapping[str, int], rotate: bool = True) -> Site:
        """`rotate`: as many sets as `ROTATE_OVER_L2` asks for; else one. Raises EngineError without memory for two."""
        cupy = network.cupy
        names = (*op.reads, *(part.output.name for part in parts(op)))
        count = 1
        if rotate:
            l2 = network.device.attributes["L2CacheSize"]
            count = max(2, min(MAX_SETS, ROTATE_OVER_L2 * l2 // sum(sizes[name] for name in names) + 1))
        with memory_errors(f"{op.name}'s buffers", network.tuning.batch):
            sets = tuple(
                {name: cupy.random.randint(0, 256, sizes[name], cupy.uint8) for name in names} for _ in range(count)
            )
        network.device.synchronize()  # or the first kernel would be timed beside the generator
        return cls(op, sets)

    def addresses(self, i: int) -> dict[str, int]:
        return {name: array.data.ptr for name, array in self.sets[i % len(self.sets)].items()}


def results(network: DeviceNetwork, kernels: Sequence[Kernel], site: Site) -> tuple[Any, ...]:
    """What kernels that together compute the site's operation write for the first set, over poison: cupy uint8 each."""
    written = [site.sets[0][tensor.name] for tensor in outputs(site.op)]
    for output in written:
        output.fill(0xA5)
    for launch in network.launches(tuple(kernels), site.addresses(0)):
        launch()
    copies = tuple(output.copy() for output in written)
    network.device.synchronize()  # or what is timed next, on another stream, would write what is being copied
    return copies


def microseconds(network: DeviceNetwork, kernel: Kernel, site: Site) -> float:
    """Median time of a launch."""
    cupy = network.cupy
    launches = [network.launches((kernel,), site.addresses(i))[0] for i in range(len(site.sets))]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        launches[0]()
    once = _time(cupy, stream, _graph(stream, launches, len(launches)))
    count = max(len(launches), min(200, int(GRAPH_US / (once / len(launches) + 0.1))))
    graph = _graph(stream, launches, count)
    times = sorted(_time(cupy, stream, graph) for _ in range(RUNS))
    return times[RUNS // 2] / count


def _graph(stream: Any, launches: list[Any], count: int) -> Any:
    with stream:
        stream.begin_capture()
        for i in range(count):
            launches[i % len(launches)]()
        return stream.end_capture()


def _time(cupy: Any, stream: Any, graph: Any) -> float:
    """Microseconds of one replay, after another one."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    graph.launch(stream)
    start.record(stream)
    graph.launch(stream)
    end.record(stream)
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end)) * 1e3
