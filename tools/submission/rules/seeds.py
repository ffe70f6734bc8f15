"""The seeds are the round's."""

from collections.abc import Iterator

from pipeline.loadgen.rounds import ROUNDS, round_of, seeds_remedy
from tools.submission.work import Work


def find(work: Work) -> Iterator[str]:
    wanted = ROUNDS[work.plan.round]
    for run in work.runs():
        if any(run.result.settings.get(name) != seed for name, seed in wanted.seeds.items()):
            whose = round_of(run.result.settings) or "no round"
            yield f"{run.name}: its seeds are those of {whose}; {seeds_remedy(wanted)}, and run again"
