"""Where a user's own files lie."""

from __future__ import annotations

import os
from pathlib import Path


def xdg_folder(variable: str, usual: str) -> Path:
    """The folder that the environment's `variable` names, or `usual` in the user's home.

    A user whom the system does not know (a container's) and without HOME has `/` for a home, as elsewhere: what has to
    be written there is an error that names the place.
    """
    named = os.environ.get(variable)
    if named:
        return Path(named)
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/")
    return home / usual
