"""The INT4 engine: model directory format, exact integer arithmetic, NumPy, PyTorch and CUDA backends."""

from int4core.engine import Engine
from int4core.errors import EngineError, Int4CoreError, ModelError
from int4core.model import Model
from int4core.options import CudaOptions, NumpyOptions, TorchOptions

__version__ = "0.1.0"

__all__ = [
    "CudaOptions",
    "Engine",
    "EngineError",
    "Int4CoreError",
    "Model",
    "ModelError",
    "NumpyOptions",
    "TorchOptions",
    "__version__",
]
