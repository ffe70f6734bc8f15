"""A model that is saved replaces another as a whole, or leaves it as it was."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from int4core.errors import ModelError
from int4core.exchange import exchange
from int4core.format import write
from int4core.format.files import ModelFolder
from int4core.model import Model
from int4core.random_model import random_model
from tests.int4core.model_folders import contents, small


class TestSave:
    def test_a_model_replaces_a_model_and_leaves_other_files(self, folder: Path) -> None:
        (folder / "README.md").write_text("kept")
        (folder / "layer1_0_conv1").write_text("damaged")
        random_model(width=4, classes=9, pool=1).save(folder)
        assert Model.load(folder).network.classes == 9
        assert (folder / "README.md").read_text() == "kept"
        assert not (folder / "layer1_1").exists()
        assert [f.name for f in folder.parent.iterdir()] == ["model"]

    def test_parents_are_made_and_an_empty_folder_is_filled(self, tmp_path: Path) -> None:
        small().save(tmp_path / "a" / "b")
        (tmp_path / "empty").mkdir()
        small().save(str(tmp_path / "empty"))
        assert contents(tmp_path / "a" / "b") == contents(tmp_path / "empty")

    def test_what_is_no_model_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "notes").write_text("mine")
        with pytest.raises(ModelError, match="not a model"):
            small().save(tmp_path)
        with pytest.raises(ModelError, match="is a file"):
            small().save(tmp_path / "notes")
        with pytest.raises(ModelError, match="cannot be written"):
            small().save(tmp_path / "notes" / "model")
        assert contents(tmp_path) == {"notes": b"mine"}

    def test_a_failed_save_leaves_the_old_model(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before, done, real = contents(folder), [0], write._write_layer

        def full_disk(folder: Path, layer: Any) -> None:
            done[0] += 1
            if done[0] == 20:
                raise OSError(28, "No space left on device")
            real(folder, layer)

        monkeypatch.setattr(write, "_write_layer", full_disk)
        with pytest.raises(ModelError, match="No space left"):
            random_model(width=4, classes=9, pool=1).save(folder)
        assert contents(folder) == before
        assert [f.name for f in folder.parent.iterdir()] == ["model"]

    def test_saves_at_the_same_time_leave_one_whole_model(self, tmp_path: Path) -> None:
        models = [random_model(width=2, classes=c, pool=1) for c in (2, 3)]
        errors: list[Exception] = []

        def save(model: Model) -> None:
            try:
                for _ in range(4):
                    model.save(tmp_path / "model")
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=save, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert Model.load(tmp_path / "model").network.classes in (2, 3)
        assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_a_save_that_is_killed_at_any_moment_leaves_a_whole_model_and_the_users_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks before and after each change of a name sees what a kill there would leave."""
    (folder.parent / "one").mkdir()
    (folder.parent / "two").mkdir()
    if not exchange(folder.parent / "one", folder.parent / "two"):
        pytest.skip("this file system cannot exchange two folders")
    (folder / "README.md").write_text("mine")
    (folder / "classes.txt").symlink_to("README.md")
    before, after = Model.load(folder), random_model(width=4, classes=9, pool=1)
    rename, link, seen = Path.rename, os.link, []

    def look() -> None:
        seen.append(Model.load(folder).digest)
        assert (folder / "README.md").read_text() == (folder / "classes.txt").read_text() == "mine"

    def looked_at(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*what: Any, **options: Any) -> Any:
            look()
            result = change(*what, **options)
            look()
            return result

        return changed

    monkeypatch.setattr(Path, "rename", looked_at(rename))
    monkeypatch.setattr(os, "link", looked_at(link))
    monkeypatch.setattr(write, "exchange", looked_at(exchange))
    after.save(folder)
    assert set(seen) == {before.digest, after.digest}
    assert (folder / "classes.txt").is_symlink()
    assert sorted(f.name for f in folder.parent.iterdir()) == ["model", "one", "two"]


def test_where_folders_cannot_be_exchanged_a_model_is_replaced_by_two_renames(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "exchange", lambda _one, _other: False)
    (folder / "README.md").write_text("mine")
    (folder / "notes").mkdir()
    random_model(width=4, classes=9, pool=1).save(folder)
    assert Model.load(folder).network.classes == 9
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "notes").is_dir()
    assert [f.name for f in folder.parent.iterdir()] == ["model"]


def test_where_the_model_lies_that_a_killed_save_has_moved_aside_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(_fresh: Path, _target: Path) -> None:
        raise Killed

    before, rename = contents(folder), Path.rename
    monkeypatch.setattr(write, "exchange", lambda _one, _other: False)
    monkeypatch.setattr(Path, "rename", lambda old, new: killed(old, new) if new == folder else rename(old, new))
    with pytest.raises(Killed):
        random_model(width=4, classes=9, pool=1).save(folder)
    (left,) = folder.parent.glob(".model.old-*")
    with pytest.raises(ModelError, match=rf"; {left} is what a save that was killed had moved aside"):
        Model.load(folder)
    rename(left, folder)
    assert contents(folder) == before


def moved_aside_while_others_files_are_kept(target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another process has moved `target` aside, to what is returned, and is about to replace it."""
    aside, keep = target.with_name("aside"), write._keep_foreign

    def late(old: Path, new: Path) -> None:
        target.rename(aside)
        keep(old, new)

    monkeypatch.setattr(write, "_keep_foreign", late)
    return aside


def test_a_model_that_another_process_moves_aside_after_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    random_model(width=2, classes=2, pool=1).save(target)
    aside = moved_aside_while_others_files_are_kept(target, monkeypatch)
    random_model(width=2, classes=3, pool=1).save(target)
    assert [file.name for file in tmp_path.iterdir()] == ["aside"]
    assert Model.load(aside).network.classes == 3


def test_a_users_file_waits_for_the_model_of_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    random_model(width=2, classes=2, pool=1).save(target)
    (target / "README.md").write_text("mine")
    aside = moved_aside_while_others_files_are_kept(target, monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda _seconds: aside.rename(target))
    random_model(width=2, classes=3, pool=1).save(target)
    assert (target / "README.md").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_users_file_is_not_removed_where_there_is_no_model_to_put_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    random_model(width=2, classes=2, pool=1).save(target)
    (target / "README.md").write_text("mine")
    moved_aside_while_others_files_are_kept(target, monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    with pytest.raises(ModelError, match=r"keep writing this folder; .*README\.md is what is left of the one before"):
        random_model(width=2, classes=3, pool=1).save(target)
    (left,) = tmp_path.glob(".model.old-*/README.md")
    assert left.read_text() == "mine"


def test_a_model_that_another_process_moves_aside_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, is_dir = tmp_path / "model", Path.is_dir
    random_model(width=2, classes=2, pool=1).save(target)

    def moved_before_it_is_looked_at(self: Path, **options: bool) -> bool:
        if self == target and not (tmp_path / "aside").exists():
            target.rename(tmp_path / "aside")
        return is_dir(self, **options)

    monkeypatch.setattr(Path, "is_dir", moved_before_it_is_looked_at)
    random_model(width=2, classes=3, pool=1).save(target)
    assert Model.load(target).network.classes == 3


def test_a_model_that_is_replaced_while_it_is_read_is_no_mixture_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (random_model(width=2, classes=2, pool=1, seed=seed) for seed in (1, 2))
    first.save(tmp_path / "model")
    read, done = ModelFolder.read_data, []

    def replaced_meanwhile(self: ModelFolder, *what: Any) -> Any:
        done.append(what)
        if len(done) == 9:
            second.save(tmp_path / "model")
        return read(self, *what)

    monkeypatch.setattr(ModelFolder, "read_data", replaced_meanwhile)
    with pytest.raises(ModelError, match="was replaced while it was read; load it again"):
        Model.load(tmp_path / "model")
    assert Model.load(tmp_path / "model").digest == second.digest


def test_the_digest_is_of_the_network_and_not_of_its_folder(tmp_path: Path) -> None:
    network = random_model(blocks=(1, 1, 1, 1), width=16, classes=10, pool=2, seed=3)
    network.save(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("notes")
    (tmp_path / "a").rename(tmp_path / "b")
    assert Model.load(tmp_path / "b").digest == network.digest
    other = tmp_path / "b" / "npdata" / "conv1.bias"
    data = bytearray(other.read_bytes())
    data[0] ^= 1
    other.write_bytes(data)
    assert Model.load(tmp_path / "b").digest != network.digest
