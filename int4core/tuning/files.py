"""Which tuned file a GPU has, and which of its numbers a batch size takes.

`h200` is for the batch size that its `# batch:` line names; `h200.batch1` and the like are for others. Networks of
basic blocks have layers of the same names and other shapes, and files of their own: `h200.basic`, `h200.basic.batch1`.
A file in the user's folder is taken in place of the one of that name that comes with the package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from int4core.backends.cuda.families.table import KNOWN_NUMBERS, digest
from int4core.backends.cuda.plan.planner import NetworkPlan
from int4core.errors import shown
from int4core.home import xdg_folder
from int4core.layers import BasicBlock, ResNet, walk
from int4core.tuning import autoconfig
from int4core.tuning.autoconfig import Autoconfig, AutoconfigError

FOLDER = Path(__file__).resolve().parents[2] / "autoconfig"
"""The files that come with the package."""


def user_folder() -> Path:
    """The files of this user, which `int4core.tune` writes: below XDG_CONFIG_HOME, or ~/.config."""
    return xdg_folder("XDG_CONFIG_HOME", ".config") / "int4core" / "autoconfig"


TABLE = "table"
"""The comment of a file that says what its numbers mean: `table.digest` of them."""

NEAR = 2.0
"""A tuned file serves batches within this many doublings of its own."""


@dataclass(frozen=True)
class Tuning:
    """Kernel numbers by the batch size they were tuned for.

    Attributes:
        by_batch: batch size -> layer name -> number.
        configs: batch size -> the file they come from.
        notice: where all of them come from.
        everywhere: whether they serve batches of any size.
    """

    by_batch: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    configs: Mapping[int, Autoconfig] = field(default_factory=dict, repr=False)
    notice: str = "kernels chosen by rule"
    everywhere: bool = False

    @classmethod
    def of(cls, configs: Iterable[Autoconfig], notice: str, everywhere: bool = False) -> Tuning:
        """Raises AutoconfigError when a file does not say its batch size as a number."""
        by_batch = {_batch(config): config for config in configs}
        numbers = {batch: config.by_layer() for batch, config in by_batch.items()}
        return cls(numbers, by_batch, notice, everywhere)

    @property
    def batch(self) -> int:
        """The largest batch size with a file; 0 without one."""
        return max(self.by_batch, default=0)

    def numbers_for(self, n: int) -> Mapping[str, int]:
        """The numbers for batches of `n`: of the nearest tuned size, none when that is far away."""
        batch = self._serving(n)
        return {} if batch is None else self.by_batch[batch]

    def notices(self, plan: NetworkPlan) -> tuple[str, ...]:
        """The numbers that the plan does not use, each with its file and line."""
        batch = self._serving(plan.n)
        if batch is None:
            return ()
        config = self.configs[batch]
        return tuple(f"{config.place(misfit.layer)}: {misfit}" for misfit in plan.misfits)

    def _serving(self, n: int) -> int | None:
        """The tuned batch size whose numbers batches of `n` take."""
        if not self.by_batch:
            return None
        distance, batch = min((abs(math.log2(n / batch)), batch) for batch in self.by_batch)
        return batch if distance <= NEAR or self.everywhere else None


def has_basic_blocks(net: ResNet) -> bool:
    return any(isinstance(block, BasicBlock) for block in net.blocks)


def file_of(gpu: str, batch: int | None = None, folder: Path = FOLDER, *, basic: bool = False) -> Path:
    """The file of a GPU, or of one batch size besides its main one; `basic`: for networks of basic blocks."""
    return folder / (gpu + ".basic" * basic + ("" if batch is None else f".batch{batch}"))


def find_files(gpu: str, folders: Sequence[Path], *, basic: bool = False) -> list[Path]:
    """The tuned files of a chip, the main one first; of files of one name that of the first folder that has it."""
    found: dict[str, Path] = {}
    for folder in folders:
        main = file_of(gpu, None, folder, basic=basic)
        # Not what an editor leaves beside them: `h200.batch8~` would be taken in place of `h200.batch8`.
        name = re.compile(re.escape(main.name) + r"(\.batch[0-9]+)?")
        for path in (main, *folder.glob(f"{main.name}.batch*")):
            if name.fullmatch(path.name) and path.is_file():
                found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def load_tuning(
    gpu: str, net: ResNet, chosen: Autoconfig | None = None, folders: Sequence[Path] | None = None
) -> Tuning:
    """The tuning of a chip: `chosen` alone if given, else the files of `folders`: the user's and the package's.

    Networks of basic blocks take the files for these.

    Raises:
        AutoconfigError: `chosen` is for another chip or names a layer or number that does not exist; or a file is
            broken, or its numbers meant other kernels when it was written.
    """
    if chosen is not None:
        return _chosen(gpu, net, chosen)
    basic = has_basic_blocks(net)
    files = find_files(gpu, (user_folder(), FOLDER) if folders is None else folders, basic=basic)
    if not files:
        what = f"{gpu} and basic blocks" if basic else gpu
        return Tuning(notice=f"kernels chosen by rule: there is no tuned file for {what}")
    configs = [autoconfig.read(path) for path in files]
    for config in configs:
        _check(gpu, config)
    sizes = ", ".join(map(str, sorted(map(_batch, configs))))
    origin = configs[0].metadata.get("origin", "unknown")
    own = sum(path.parent == user_folder() for path in files)
    whose = f", {own} of {len(files)} files from {user_folder()}" if own else ""
    return Tuning.of(configs, f"kernels tuned for batch {sizes} ({origin}{whose})")


def _chosen(gpu: str, net: ResNet, config: Autoconfig) -> Tuning:
    if config.notice is not None:
        return Tuning(notice=f"kernels chosen by rule: {config.notice}")
    _check(gpu, config)
    config.validate(layers={layer.name for layer in walk(net)})
    return Tuning.of([config], f"kernels of {config.file}", everywhere=True)


def _check(gpu: str, config: Autoconfig) -> None:
    wanted = config.metadata.get("gpu", gpu)
    if wanted != gpu:
        raise AutoconfigError(
            config.file, 0, f"was made for {shown(wanted)}, and this GPU is {gpu}: tune it with python -m int4core.tune"
        )
    check_numbers(config)


def check_numbers(config: Autoconfig) -> None:
    """Raises AutoconfigError when a number is of no kernel, or was written for another kernel than it means here."""
    config.validate(KNOWN_NUMBERS)
    written, here = config.metadata.get(TABLE), digest(config.kernels.values())
    if written not in (None, here):
        raise AutoconfigError(
            config.file,
            0,
            f"its numbers are of another kernel table (`# {TABLE}: {shown(str(written))[1:-1]}`, {here} here): tune "
            "again with python -m int4core.tune, or remove that line if the numbers are meant as they stand",
        )


def _batch(config: Autoconfig) -> int:
    text = config.metadata.get("batch", "1024")
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise AutoconfigError(config.file, 0, f"the batch {shown(text)} is no batch size (a whole number above 0)")
    return int(text)
