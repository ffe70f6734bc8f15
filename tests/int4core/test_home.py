from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from int4core.backends.cuda.jit.cache import CACHE_DIR, cache_folder
from int4core.random_model import random_model
from int4core.tuning.files import FOLDER, load_tuning, user_folder


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", CACHE_DIR):
        monkeypatch.delenv(name, raising=False)


def test_the_users_folders_are_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/ada")
    assert user_folder() == Path("/users/ada/.config/int4core/autoconfig")
    assert cache_folder() == Path("/users/ada/.cache/int4core")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/config")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert user_folder() == Path("/config/int4core/autoconfig")
    assert cache_folder() == Path("/cache/int4core")


def test_a_user_without_a_home_takes_the_packages_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number of its own."""

    def unknown(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache_folder() == Path("/.cache/int4core")
    network = random_model(width=2, classes=3, pool=1).network
    assert load_tuning("h100", network).batch == load_tuning("h100", network, folders=(FOLDER,)).batch == 1024
