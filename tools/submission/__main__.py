"""From one command to a folder for MLPerf.

    python -m tools.submission init --round v6.1 --submitter ACME --division open --suite edge --system h200x1 DIR
    python -m tools.submission run --scenario Offline DIR [options of pipeline.offline]
    python -m tools.submission check DIR
    python -m tools.submission pack DIR OUT --inference CHECKOUT

`init` describes the machine in DIR; what it cannot know begins with FILL IN. `run` makes a scenario's accuracy run,
its performance run and the audits TEST01 and TEST04. `check` goes through the rules, more of them than the official
checker has. `pack` writes the round's tree, and has it checked by the official tools of a checkout of
mlcommons/inference. With `init --trial` counts and durations are small, for a machine that cannot run for 600 s.
Ends with 0 when all is well, 1 when something breaks a rule, 2 on a wrong command line, 3 for a trial in which nothing
is wrong but its size; `run` that a signal ended with 128 and its number.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from int4core.errors import Int4CoreError, printable, printed
from int4core.streams import run_command
from pipeline.commands.options import Parser
from pipeline.errors import PipelineError
from pipeline.loadgen.rounds import ROUNDS
from pipeline.loadgen.scenarios import SCENARIOS
from pipeline.session.supervisor import Interrupted, Supervisor
from tools.submission.check import report
from tools.submission.init import init
from tools.submission.pack import pack
from tools.submission.plan import DIVISIONS, Plan
from tools.submission.start import run_scenario
from tools.submission.work import read_work

PROG = "python -m tools.submission"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        if args.command == "init":
            plan = Plan(args.round, args.submitter, args.division, args.suite, args.system, args.trial)
            init(args.folder, plan, dict(args.set), _say)
        elif args.command == "run":
            supervisor = Supervisor()
            with supervisor.signals():
                run_scenario(args.folder, args.scenario, args.options, _say, supervisor)
        elif args.command == "pack":
            return pack(read_work(args.folder), args.out, args.inference, _say)
        else:
            return report(read_work(args.folder), _say)
    except Interrupted as error:
        print(f"submission: stopped: {printed(error)}", file=sys.stderr)
        return 128 + error.number
    except (PipelineError, Int4CoreError) as error:
        print(f"submission: {printed(error)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> Parser:
    about, _, text = (__doc__ or "").partition("\n")
    shape = argparse.RawDescriptionHelpFormatter
    parser = Parser(PROG, description=about, epilog=text, formatter_class=shape, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    first = commands.add_parser("init", help="describe the system in a new folder", allow_abbrev=False)
    first.add_argument("--round", choices=list(ROUNDS), required=True)
    first.add_argument("--submitter", required=True, metavar="NAME")
    first.add_argument("--division", choices=DIVISIONS, default="open")
    first.add_argument("--suite", choices=("edge", "datacenter"), default="edge")
    first.add_argument("--system", required=True, metavar="NAME")
    first.add_argument("--trial", action="store_true", help="small counts and durations, for no submission")
    first.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="what the machine cannot report",
    )
    first.add_argument("folder", type=Path, metavar="DIR")
    second = commands.add_parser("run", help="make a scenario's four runs", allow_abbrev=False)
    second.add_argument("--scenario", choices=SCENARIOS, required=True)
    second.add_argument("folder", type=Path, metavar="DIR")
    second.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of pipeline.offline")
    third = commands.add_parser("check", help="go through the rules", allow_abbrev=False)
    third.add_argument("folder", type=Path, metavar="DIR")
    fourth = commands.add_parser("pack", help="write the round's tree, and have it checked", allow_abbrev=False)
    fourth.add_argument("folder", type=Path, metavar="DIR")
    fourth.add_argument("out", type=Path, metavar="OUT")
    fourth.add_argument("--inference", type=Path, metavar="CHECKOUT", help="of github.com/mlcommons/inference")
    return parser


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    return name, value


def _say(line: str) -> None:
    print(printable(line), flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
