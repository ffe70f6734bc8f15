"""What the engine needs of a machine: Python and NumPy."""

from __future__ import annotations

import subprocess
import sys

from tests.paths import ROOT

# With -I neither the user's folder nor its site-packages are looked at, so that the checkout is named.
CODE = """
import sys
sys.path.insert(0, {root!r})
before = set(sys.modules)
import int4core
found = {{name.partition('.')[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
print(' '.join(sorted(found)))
"""


def test_importing_the_engine_imports_numpy_and_nothing_else() -> None:
    run = [sys.executable, "-I", "-c", CODE.format(root=str(ROOT))]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["int4core", "numpy"]
