"""`python -m tools.finetune prepare|pretrain|calibrate|train|export|verify|evaluate|recipe`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from int4core.errors import Int4CoreError, printed
from int4core.streams import run_command
from tools.finetune.errors import FinetuneError, need_torch
from tools.finetune.options import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        need_torch()
        # Only here, because every module behind it is torch's.
        from tools.finetune.commands import COMMANDS

        COMMANDS[args.command](args)
    except (FinetuneError, Int4CoreError) as error:
        print(f"{args.command}: {printed(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
