"""Where a round wants its files: a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.submission.plan import Plan


@dataclass(frozen=True)
class Layout:
    """Folders and names under DIVISION/SUBMITTER; `{}` stands for SYSTEM/BENCHMARK/SCENARIO.

    Attributes:
        measurements: of user.conf, README.md and the description of the model.
        compliance: of TEST01 and TEST04.
        description: the name of the model's description.
    """

    measurements: str
    compliance: str
    code: str
    description: str

    @property
    def is_one_tree(self) -> bool:
        """Whether all of a scenario lies in one folder, as MLCommons' own automation leaves it."""
        return self.measurements == RESULTS


RESULTS = "results/{}"
_APART = Layout("measurements/{}", "compliance/{}", "code", "{system}_{scenario}.json")
_TOGETHER = Layout(RESULTS, RESULTS, "src", "measurements.json")

LAYOUTS: Mapping[str, Layout] = {"v5.0": _APART, "v5.1": _APART, "v6.0": _TOGETHER, "v6.1": _TOGETHER}


@dataclass(frozen=True)
class Tree:
    """A round's layout with a plan's names in it; all paths are under `root`."""

    root: Path
    plan: Plan

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.plan.round]

    @property
    def submitter(self) -> Path:
        return self.root / self.plan.division / self.plan.submitter

    @property
    def system(self) -> Path:
        """The file of the system's description."""
        return self.submitter / "systems" / f"{self.plan.system}.json"

    @property
    def code(self) -> Path:
        return self.submitter / self.layout.code

    def results(self, scenario: str) -> Path:
        return self._scenario(RESULTS, scenario)

    def compliance(self, scenario: str) -> Path:
        return self._scenario(self.layout.compliance, scenario)

    def measurements(self, scenario: str) -> Path:
        return self._scenario(self.layout.measurements, scenario)

    def description(self, scenario: str) -> Path:
        name = self.layout.description.format(system=self.plan.system, scenario=scenario)
        return self.measurements(scenario) / name

    def _scenario(self, folder: str, scenario: str) -> Path:
        return self.submitter / folder.format(f"{self.plan.system}/{self.plan.benchmark}/{scenario}")
