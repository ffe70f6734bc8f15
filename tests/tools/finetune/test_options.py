from __future__ import annotations

import pytest

from tools.finetune.options import build_parser

TRAIN = ("train", "q.pt", "--out", "t.pt")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--batch", "0"), ("--images", "0"), ("--images", "-4"), ("--size", "0"), ("--size", "1" * 9), ("--seed", "-1"),
        ("--workers", "-1"), ("--minutes", "0"), ("--epochs", "-1"), ("--epochs", "inf"), ("--lr", "nan"),
    ],
)  # fmt: skip
def test_numbers_that_no_step_can_work_with_are_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*TRAIN, f"{option}={value}"])
    assert ended.value.code == 2
    assert f"argument {option}: '{value}' is not a" in capsys.readouterr().err


def test_what_is_given_is_taken() -> None:
    given = ("--batch=3", "--images=7", "--size=96", "--seed=0", "--workers=0", "--minutes=0.5", "--lr=1e-4")
    args = build_parser().parse_args([*TRAIN, *given])
    assert (args.batch, args.images, args.size, args.seed, args.workers) == (3, 7, 96, 0, 0)
    assert (args.minutes, args.lr, args.epochs) == (0.5, 1e-4, 3)
