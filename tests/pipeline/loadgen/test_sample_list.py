"""The list of samples: whatever files are called, it comes back as it was, and lies beside its own logs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.loadgen.sample_list import find_sample_list, read_sample_list, write_sample_list
from pipeline.samples.library import SampleLibrary

NAMES = ("a.jpg", "sub/b c.jpg", "tab\tand\nnew\rline.jpg", 'quo"te.jpg', "not-utf8-\udce9.jpg", "é.jpg", "#,;.jpg")


@pytest.mark.parametrize("labels", [None, [7, 0, 999, 1, 2, 3, 4]])
def test_names_and_labels_come_back(labels: list[int] | None, tmp_path: Path) -> None:
    known = None if labels is None else np.array(labels, dtype=np.int32)
    library = SampleLibrary(tuple(Path("folder") / name for name in NAMES), known, "images", NAMES)
    path = tmp_path / "mlperf_log_samples.tsv"
    write_sample_list(path, library)
    again = read_sample_list(path)
    assert again.names == NAMES
    assert (None if again.labels is None else again.labels.tolist()) == labels
    first = "0\ta.jpg\tfolder/a.jpg\t" + ("7" if labels else "")
    assert path.read_bytes().decode(errors="replace").splitlines()[:2] == ["number\tname\tpath\tlabel", first]


def test_it_is_found_by_its_log(tmp_path: Path) -> None:
    for name in ("mlperf_log_samples.tsv", "x_samples_y.tsv", "samples.tsv", "mlperf_log_b_samples.tsv", "samples"):
        (tmp_path / name).touch()
    for log, beside in (
        ("mlperf_log_accuracy.json", "mlperf_log_samples.tsv"),
        ("mlperf_log_2026-11-25T20:30:00Z_accuracy.json", "mlperf_log_samples.tsv"),
        ("mlperf_log_b_accuracy.json", "mlperf_log_b_samples.tsv"),
        ("x_accuracy_y.json", "x_samples_y.tsv"),
        ("accuracy.json", "samples.tsv"),
    ):
        assert find_sample_list(tmp_path / log) == tmp_path / beside
    assert find_sample_list(tmp_path / "a.json") is None
    assert find_sample_list(tmp_path / "none" / "mlperf_log_accuracy.json") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":1: not a list of samples: its columns are number, name, path, label"),
        ("name\tlabel\n", ":1: not a list of samples"),
        ("number\tname\tpath\tlabel\n1\ta\ta\t0\n", ":2: not sample 0"),
        ("number\tname\tpath\tlabel\n0\ta\ta\t0\n1\tb\t0\n", ":3: not sample 1"),
        ("number\tname\tpath\tlabel\n0\ta\ta\t-1\n", ":2: not sample 0"),
        ("number\tname\tpath\tlabel\n0\ta\ta\t" + "1" * 5000 + "\n", ":2: not sample 0"),
        ('number\tname\tpath\tlabel\n0\t"a\ta\t0\n', "not a list of samples: unexpected end of data"),
        ("number\tname\tpath\tlabel\n0\ta\ta\t1\n1\tb\tb\t\n", ": 1 samples have no label, and others have"),
    ],
)
def test_what_is_no_list_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.tsv"
    path.write_text(text)
    with pytest.raises(PipelineError) as caught:
        read_sample_list(path)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300
    with pytest.raises(PipelineError, match="cannot be read"):
        read_sample_list(tmp_path / "none")
