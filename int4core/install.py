"""The command that installs an optional part of this package, which is on no index: by the path it came from.

What looks that up is imported when something is missing: every process imports this module, and would take a tenth
longer to import the package.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

NAME = "int4-resnet50"


def install_command(extra: str) -> str:
    """`pip install` with the checkout or the wheel this package comes from and its `extra`.

    Where neither is there any more, it installs what the extra asks for.
    """
    return f"{shlex.quote(sys.executable)} -m pip install {install_argument(extra)}"


def install_argument(extra: str) -> str:
    """What that command ends in, as a shell takes it."""
    checkout, wheel = _checkout(), _wheel()
    if checkout is not None:
        return f"-e {_quoted(f'{checkout}[{extra}]')}"
    if wheel is not None:
        return _quoted(f"{wheel}[{extra}]")
    return " ".join(map(_quoted, _required(extra) or [f"{Path(__file__).resolve().parents[1]}[{extra}]"]))


def _checkout() -> Path | None:
    """The source tree that this module lies in."""
    folder = Path(__file__).resolve().parents[1]
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return folder if re.search(rf'^name *= *"{NAME}"$', text, re.MULTILINE) else None


def _wheel() -> Path | None:
    """The file or folder that it was installed from, as pip noted down (PEP 610)."""
    from importlib import metadata
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        noted = json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")
        url = urlsplit(str(noted["url"]))
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
    path = Path(url2pathname(url.path))
    return path if url.scheme == "file" and path.exists() else None


def _required(extra: str) -> list[str]:
    """What the extra asks for, of those that an index has."""
    from importlib import metadata

    try:
        requirements = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        requirements = []
    marked = (requirement.partition(";") for requirement in requirements)
    return [what.strip() for what, _, marker in marked if re.search(rf"extra == [\"']{extra}[\"']", marker)]


def _quoted(text: str) -> str:
    return f"'{text}'" if "'" not in text else shlex.quote(text)
