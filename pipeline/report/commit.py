"""The commit of the source tree that runs, where there is one."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 10.0


def commit(root: Path = ROOT) -> str | None:
    """The commit's 40 digits, with `-dirty` where tracked files differ from it; None outside a checkout of git."""
    if not (root / ".git").exists():
        return None
    head, changed = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    if head is None or changed is None:
        return None
    return f"{head}-dirty" if changed else head


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True, timeout=_PATIENCE_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
