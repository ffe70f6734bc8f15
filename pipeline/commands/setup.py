"""From options to what they come to on this machine: where to compute, with which model, on samples of which size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from int4core.layers import ResNet, walk
from int4core.model import Model
from int4core.network import default_input_size
from int4core.options import BackendOptions, CudaOptions, NumpyOptions, TorchOptions
from int4core.preprocess import short_side
from int4core.tuning import autoconfig
from int4core.tuning.autoconfig import Autoconfig
from pipeline.commands.options import EngineOptions
from pipeline.defaults import default_model
from pipeline.errors import PipelineError
from pipeline.extras import is_installed
from pipeline.machine.gpus import Target, choose_target
from pipeline.samples.images import ImageRules
from pipeline.stages.load import Decode, Kind, Preparation
from pipeline.stages.model import load_model


@dataclass(frozen=True)
class Setup:
    """What the engine's options come to.

    Attributes:
        side: of the square inputs, in pixels.
        backend_options: see `int4core.Engine`.
    """

    target: Target
    model: Path
    network: ResNet
    side: int
    backend_options: BackendOptions

    @cached_property
    def digest(self) -> str:
        """`Model.digest` of the network: 30 ms for ResNet-50."""
        return Model(self.network).digest

    def short_side(self, resize: bool) -> int | None:
        """What images are resized to before the crop; None: they are sized."""
        return short_side(self.side) if resize else None

    def preparation(self, kind: Kind, resize: bool, rules: ImageRules, decode: Decode = "cpu") -> Preparation:
        """What loaders do with a source.

        Where it is installed, Numba resizes what they decode. Beside NumPy's engine, which takes many times as long for
        an image as they do, that is not worth the second that each of them takes longer to start.
        """
        compiled = kind == "images" and self.target.backend != "numpy" and is_installed("numba")
        return Preparation(kind, self.side, self.short_side(resize), rules, decode, compiled)


def set_up(options: EngineOptions, say: Callable[[str], None]) -> Setup:
    """Look at the machine, the model and the tuned file. Raises PipelineError or Int4CoreError."""
    target = choose_target(options.gpu, numbers=options.gpus, cpu_backend=options.cpu_backend)
    say(f"running on {target.notice}")
    model = options.model or default_model()
    network = load_model(model, options.digest).network
    height, width = default_input_size(network)
    if height != width:
        raise PipelineError(f"{model}: takes {height}x{width} inputs; images are cropped to squares")
    config: Autoconfig | None = None
    if options.autoconfig is not None:
        config = autoconfig.read(options.autoconfig)
        if config.notice is not None:
            say(config.notice)
        config.validate(layers={layer.name for layer in walk(network)})
        if not target.gpus:
            say(f"{options.autoconfig} is valid; the CPU has no kernels to choose from")
    return Setup(target, model, network, height, options_of(target, config, strict=options.strict))


def options_of(target: Target, config: Autoconfig | None = None, *, strict: bool = False) -> BackendOptions:
    """Those of the target's backend."""
    if target.gpus:
        return CudaOptions(gpu=target.key, autoconfig=config, strict=strict)
    return TorchOptions() if target.backend == "torch" else NumpyOptions()
