"""A network on a GPU: compiled kernels, weights in device memory, and a CUDA graph a batch size."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from int4core.backends.cuda.device import chip_at, load_cupy, memory_errors
from int4core.backends.cuda.families.kernel import WORKSPACE, HasWorkspace, Kernel
from int4core.backends.cuda.jit import nvrtc
from int4core.backends.cuda.jit.compiler import Compiled, compile_all
from int4core.backends.cuda.jit.launch import OVERLAP_CAPABILITY, Launch
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.ops import CLASSES, INPUT, TOP1, outputs
from int4core.backends.cuda.plan.planner import NetworkPlan, check_batch, make_plan
from int4core.errors import EngineError
from int4core.network import default_input_size
from int4core.options import CudaOptions
from int4core.ranges import Ranges
from int4core.tuning.files import Tuning, load_tuning

if TYPE_CHECKING:
    from int4core.model import Model

LOGGER = logging.getLogger("int4core")


class DeviceNetwork:
    """A model's weights and kernels on one GPU; `batch` gives something to run.

    Args:
        model: a loaded model.
        options: which GPU, and which kernels. A number that does not fit its layer is an error if they are strict, else
            a warning of the logger `int4core`.

    Raises:
        EngineError: no GPU, another GPU than the one asked for, a kernel that does not compile, no memory, or a
            number that does not fit, if strict.
        AutoconfigError: the file names a layer or a number that does not exist, with its line.
    """

    def __init__(self, model: Model, options: CudaOptions | None = None) -> None:
        options = options or CudaOptions()
        device, gpu, autoconfig, size = options.device, options.gpu, options.autoconfig, options.input_size
        self.cupy = load_cupy()
        self.device = self.cupy.cuda.Device() if device is None else self.cupy.cuda.Device(device)
        self.chip = chip_at(self.cupy, self.device.id)
        if gpu is not None and self.chip.name != gpu:
            raise EngineError(f"GPU {self.device.id} is a {self.chip.name}, not a {gpu}; name it, or leave --gpu auto")
        library = nvrtc.require_nvrtc()
        self._portable = nvrtc.target(library, self.chip.arch) == nvrtc.PORTABLE
        if self._portable:
            LOGGER.warning(
                "%s (%s): NVRTC %s does not know this chip: the driver compiles the kernels from PTX for %s",
                self.chip.name, self.chip.arch, nvrtc.version(library), nvrtc.PORTABLE,
            )  # fmt: skip
        if self.chip.warning:
            LOGGER.warning("%s: %s", self.chip.name, self.chip.warning)
        self.model = model
        self.size = default_input_size(model.network) if size is None else size
        self.tuning: Tuning = load_tuning(self.chip.name, model.network, autoconfig)
        self._strict = options.strict
        self._told: set[str] = set()
        if options.strict and autoconfig is not None and autoconfig.notice is not None:
            raise EngineError(f"{autoconfig.notice}; name one of this engine's files, or leave --strict out")
        self._functions: dict[KernelSource, Any] = {}
        self._constants: dict[tuple[str, str], tuple[Any, ...]] = {}
        self.compiled = Compiled({}, 0, 0.0)

    @property
    def notice(self) -> str:
        """What it runs on, which kernels, and what compiling took so far."""
        return f"{self.chip.name} ({self.chip.arch}), {self.tuning.notice}; {self.compiled}"

    def plan(self, n: int, keep_all: bool = False, top: int = 0) -> NetworkPlan:
        check_batch(n)
        numbers = self.tuning.numbers_for(n)
        net = self.model.network
        plan = make_plan(net, self.chip, n, size=self.size, numbers=numbers, keep_all=keep_all, top=top)
        notices = self.tuning.notices(plan)
        if notices and self._strict:
            more = f" (and {len(notices) - 1} more like it)" if len(notices) > 1 else ""
            raise EngineError(f"{notices[0]}{more}; fix or remove the line, or leave --strict out")
        for notice in dict.fromkeys(notices):
            if notice not in self._told:
                self._told.add(notice)
                LOGGER.warning("%s", notice)
        return plan

    def batch(self, n: int, keep_all: bool = False, top: int = 0) -> DeviceBatch:
        """Memory and a graph for batches of `n` images; every call gives another one.

        With `top` > 0 the graph also gives the best `top` classes and their scores.
        """
        with self.device:
            return DeviceBatch(self, self.plan(n, keep_all, top))

    def launches(self, kernels: tuple[Kernel, ...], tensors: Mapping[str, int]) -> tuple[Launch, ...]:
        """The kernels on tensors at these device addresses."""
        self.load([kernel.source for kernel in kernels])
        return tuple(self._launch(kernel, tensors) for kernel in kernels)

    def function(self, source: KernelSource) -> Any:
        """A kernel that is not of the network, as a cupy.RawKernel, from the same cache. Raises EngineError."""
        self.load([source])
        return self._functions[source]

    def close(self) -> None:
        """Give back the device memory of weights and binaries. May be called twice."""
        self._constants.clear()
        self._functions.clear()
        self._free()

    def _free(self) -> None:
        with self.device:
            self.cupy.get_default_memory_pool().free_all_blocks()

    def load(self, sources: Sequence[KernelSource]) -> None:
        """Have these binaries in memory, compiled side by side where they are not in the cache."""
        new = [source for source in dict.fromkeys(sources) if source not in self._functions]
        if not new:
            return
        compiled = compile_all(new, self.chip.arch)
        before = self.compiled
        self.compiled = Compiled(
            {**before.files, **compiled.files},
            before.missed + compiled.missed,
            before.seconds + compiled.seconds,
            before.damaged + compiled.damaged,
        )
        for source, file in compiled.files.items():
            try:
                self._functions[source] = self.cupy.RawModule(path=str(file)).get_function(source.function)
            except self.cupy.cuda.driver.CUDADriverError as error:
                raise EngineError(f"{file}: the driver does not load this binary ({error}); remove it") from error

    def _launch(self, kernel: Kernel, tensors: Mapping[str, int]) -> Launch:
        function = self._functions[kernel.source]
        if kernel.shared_bytes > 48 << 10:
            function.max_dynamic_shared_size_bytes = self.chip.shared_bytes - function.shared_size_bytes
        addresses = [array.data.ptr for array in self._uploaded(kernel)]
        workspace = self._zeros(kernel)
        if workspace is not None:
            tensors = {**tensors, WORKSPACE: workspace.data.ptr}
        arguments = kernel.arguments(tensors, addresses)
        # Portable PTX is of before there was overlap: its kernels do not wait for the one before.
        overlap = self.chip.capability >= OVERLAP_CAPABILITY and not self._portable
        name = kernel.op.name
        size = kernel.shared_bytes
        return Launch(self.cupy, name, function, kernel.grid, kernel.threads, arguments, size, overlap, workspace)

    def _zeros(self, kernel: Kernel) -> Any:
        """A launch's workspace, None where it needs none."""
        if not isinstance(kernel, HasWorkspace):
            return None
        with memory_errors(f"{kernel.op.name}'s workspace"):
            zeros = self.cupy.zeros(kernel.workspace_bytes, np.uint8)
        self.cupy.cuda.get_current_stream().synchronize()  # as for constants
        return zeros

    def _uploaded(self, kernel: Kernel) -> tuple[Any, ...]:
        key = (kernel.op.name, kernel.layout)
        if key not in self._constants:
            # A single byte where there is nothing: a kernel is given an address all the same.
            arrays = [np.frombuffer(array.tobytes() or b"\0", np.uint8) for array in kernel.constants()]
            with memory_errors(f"{kernel.op.name}'s weights"):
                self._constants[key] = tuple(self.cupy.asarray(array) for array in arrays)
            # The copy is the current stream's: a launch on another one would not wait for it.
            self.cupy.cuda.get_current_stream().synchronize()
        return self._constants[key]


def top_parts(memory: Any, n: int) -> tuple[Any, Any, Any]:
    """The parts of what a TopOp gives for `n` images, uint8 (bytes,): classes (n,), ids and scores (n, k)."""
    words = memory.view(np.int32)
    parts = words[n:].reshape(2, n, (len(words) // n - 1) // 2)
    return words[:n], parts[0], parts[1].view(np.float32)


class DeviceBatch:
    """Activation memory for batches of `n` images, and the CUDA graph that runs the network on it.

    Attributes:
        n: images.
        input: cupy int8 (n, 3, H, W), to be written before a run.
        sums: cupy int32 (n, classes), the last linear layer's.
        top1: cupy int32 (n,).
        top_ids, top_scores: cupy int32 and float32 (n, top), the best classes first; see `int4core.scores`.
    """

    def __init__(self, network: DeviceNetwork, plan: NetworkPlan) -> None:
        cupy = network.cupy
        self.plan = plan
        self.n = plan.n
        self._ranges = Ranges.load()
        with memory_errors(f"{plan.arena.bytes / 2**20:,.0f} MiB of activations", plan.n):
            self._memory = cupy.empty(plan.arena.bytes, cupy.uint8)
        base = self._memory.data.ptr
        self.addresses = {name: base + offset for name, offset in plan.arena.offsets.items()}
        self.input = self.tensor(INPUT).view(cupy.int8).reshape(plan.n, 3, *network.size)
        self.sums = self.tensor(CLASSES).view(cupy.int32).reshape(plan.n, -1)
        self.top1, self.top_ids, self.top_scores = top_parts(self.tensor(TOP1), plan.n)
        self.launches = network.launches(tuple(step.kernel for step in plan.steps), self.addresses)
        self.input.data.memset_async(0, self.input.nbytes)
        # As for constants; nor would it wait for whoever had this memory before.
        cupy.cuda.get_current_stream().synchronize()
        self._graph = self._capture(cupy)

    def tensor(self, name: str) -> Any:
        """The bytes of a tensor, cupy uint8 (bytes,)."""
        size = self.plan.input_bytes if name == INPUT else self._sizes[name]
        offset = self.plan.arena.offsets[name]
        return self._memory[offset : offset + size]

    @property
    def _sizes(self) -> dict[str, int]:
        return {tensor.name: tensor.bytes for step in self.plan.steps for tensor in outputs(step.op)}

    def run(self, stream: Any) -> None:
        """Run the network on `input`, asynchronously on a cupy.cuda.Stream."""
        self._graph.launch(stream)

    def run_layers(self, stream: Any) -> None:
        """The same without the graph, a launch an operation, each in a range of its name: for profilers."""
        with stream:
            for launch in self.launches:
                with self._ranges.span(launch.name):
                    launch()

    def _capture(self, cupy: Any) -> Any:
        stream = cupy.cuda.Stream(non_blocking=True)
        self.run_layers(stream)  # whatever a first launch sets up is not part of a graph
        stream.synchronize()
        with stream:
            stream.begin_capture()
            for launch in self.launches:
                launch()
            return stream.end_capture()
