"""A backend's options besides the model and the batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from int4core.errors import EngineError
from int4core.layers import Pair
from int4core.tuning.autoconfig import Autoconfig


@dataclass(frozen=True)
class HostOptions:
    """Of the backends that compute on the CPU.

    Attributes:
        input_size: (H, W) of the images; None takes the size that fits the network's strides (224 x 224 for ResNet-50).
        threads: worker threads; None takes one for each CPU this process may use.

    Raises:
        EngineError: no thread.
    """

    input_size: Pair | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise EngineError(f"threads={self.threads}: at least one worker thread is needed")


@dataclass(frozen=True)
class NumpyOptions(HostOptions):
    """Of the backend `numpy`."""


@dataclass(frozen=True)
class TorchOptions(HostOptions):
    """Of the backend `torch`."""


@dataclass(frozen=True)
class CudaOptions:
    """Of the backend `cuda`.

    Attributes:
        input_size: (H, W) of the images; None takes the size that fits the network's strides.
        device: which GPU, as CUDA counts them; None takes the current one.
        gpu: a name of `int4core.plan --gpu` that the GPU must have; None for any.
        autoconfig: the kernels to use; None takes the tuned file of this chip where there is one.
        strict: whether a kernel number that does not fit its layer is an error, and not only a warning.
    """

    input_size: Pair | None = None
    device: int | None = None
    gpu: str | None = None
    autoconfig: Autoconfig | None = None
    strict: bool = False


BackendOptions: TypeAlias = NumpyOptions | TorchOptions | CudaOptions
