"""The model directory: one small text file per layer, raw little-endian tensors in `npdata/`.

- `schema`: which keys a layer type has, in the order they are written.
- `text`: the grammar of a layer file.
- `npdata`: how tensors lie in bytes.
- `files`: opening files that may be hostile.
- `read`, `write`: a folder to a network and back.
- `parts`: a network as plain values and named tensors, for files of other kinds, and back.
- `packed`: such a file for hubs, config.json and model.safetensors.

What a network must satisfy beyond its grammar is the business of `int4core.validate`.
"""

from int4core.format.packed import is_packed, read_packed
from int4core.format.read import read_network
from int4core.format.write import digest, write_network

__all__ = ["digest", "is_packed", "read_network", "read_packed", "write_network"]
