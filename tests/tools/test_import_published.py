from __future__ import annotations

from pathlib import Path

import pytest

from int4core.random_model import random_model
from tests.paths import SHARED, needs_shared
from tools.import_published import main


def test_a_sound_model_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(blocks=(1, 1, 1, 1), width=4, classes=5, pool=1).save(tmp_path / "model")
    assert main([str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out
    assert "4 blocks, 5 classes" in out
    assert "u4s4s32" in out


def test_the_model_may_lie_deeper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(blocks=(1, 1, 1, 1), width=4, classes=5, pool=1).save(tmp_path / "code" / "int4" / "model")
    assert main([str(tmp_path)]) == 0
    assert str(tmp_path / "code" / "int4" / "model") in capsys.readouterr().out.replace("\n", "")


def test_nothing_there_says_where_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing")]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "missing") in err
    assert "mlcommons/inference_results_v0.5" in err


def test_a_name_that_no_file_can_have_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["x" * 300])
    assert "too long a name for a file (300 bytes)" in capsys.readouterr().err


def test_several_models_are_not_guessed_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        random_model(blocks=(1, 1, 1, 1), width=4, classes=5, pool=1).save(tmp_path / name)
    assert main([str(tmp_path)]) == 2
    assert "holds 2 models" in capsys.readouterr().err


def test_a_damaged_model_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(blocks=(1, 1, 1, 1), width=4, classes=5, pool=1).save(tmp_path / "model")
    weight = tmp_path / "model" / "npdata" / "fc.weight"
    weight.write_bytes(weight.read_bytes()[:-1])
    assert main([str(tmp_path / "model")]) == 1
    assert "fc" in capsys.readouterr().err


@needs_shared
def test_the_published_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SHARED / "model-v0.5" / "model")]) == 0
    out = capsys.readouterr().out
    assert "16 blocks, 1000 classes, images of 3x224x224" in out
    # 8-bit first layer and last layer, 4-bit in between: 64*3*7*7, 23,445,504 / 2 and 2048*1000 bytes.
    for size in ("9,408", "11,722,752", "2,048,000"):
        assert size in out
