"""`python -m int4core.tuning.static --gpu t4`: see `int4core.tuning.static.model`."""

from __future__ import annotations

import sys

from int4core.streams import run_command
from int4core.tuning.static.model import main

if __name__ == "__main__":
    sys.exit(run_command(main))
