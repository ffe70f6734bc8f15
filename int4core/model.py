"""A model: the network, and where it came from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from int4core.format import digest, is_packed, read_network, read_packed, write_network
from int4core.layers import ResNet


@dataclass(frozen=True, eq=False)
class Model:
    """A quantised ResNet with its weights.

    Attributes:
        network: the typed layers; tensors of a loaded model are read-only.
        path: the folder it was loaded from, or None for a model made in memory.
    """

    network: ResNet
    path: Path | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read the model folder `path`, the one that holds the file named `model`.

        The folder may have any name: the first component of a data path, `model` or the folder's own
        name, means the folder itself. A folder that `tools.hub pack` wrote (config.json, model.safetensors) is read
        too. The network is checked as a whole (`int4core.validate`).

        Raises:
            ModelError: whatever is wrong with the folder, with its file, line and reason.
        """
        return cls(read_packed(path) if is_packed(path) else read_network(path), Path(path))

    @property
    def digest(self) -> str:
        """SHA-256 of the network, in hex: equal for models that are equal in every layer and weight."""
        return digest(self.network)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to the folder `path`, in the published format.

        The files appear all at once. An older model there is replaced, except for files that are not
        part of the format. Killed at any moment, it leaves one of the two models at `path`; where the file system
        cannot exchange two folders (NFS), there may be none, and `load` names where the older one lies. The folder
        loads again under any name.

        Raises:
            ModelError: the network breaks a rule of the format (`file` is the layer's name), `path` holds
                something that is not a model, or it cannot be written.
        """
        write_network(self.network, path)
