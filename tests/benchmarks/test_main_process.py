"""What a source costs is measured on all of them, each through the command's own way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.main_process import main


def test_every_source_of_a_list_a_folder_and_a_shard_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sources", "600", "--loaders", "1", "--sections", "list,folder,tar"]) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r": 600 sources in [0-9.]+ s, [0-9,]+ sources/s$", said, re.MULTILINE)) == 3
    assert (
        len(re.findall(r"^  together +[0-9.]+: ([0-9,]+ sources/s at most|too few sources)$", said, re.MULTILINE)) == 3
    )


def test_a_loaders_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (300, 260), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "3.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    assert main(["--images", str(tmp_path), "--files", "200", "--sections", "loader"]) == 0
    assert re.search(
        r"a loader: [0-9.]+ us of CPU per file, [0-9]+ kB on average \(images, gpu 256\)", capsys.readouterr().out
    )


def test_prepared_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--files", "200", "--sections", "npy"]) == 0
    assert re.search(r"a loader: [0-9.]+ us of CPU per file, 151 kB on average \(tensors", capsys.readouterr().out)
