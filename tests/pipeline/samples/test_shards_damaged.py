"""Shards that are cut short, damaged, hostile, or none."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pipeline.samples.expand import expand
from tests.pipeline.samples.expanded import failures, read_all, write_tar

pytestmark = pytest.mark.usefixtures("in_a_folder")


class TestDamagedShards:
    @pytest.mark.parametrize("cut", range(0, 6 * 1024 + 1, 256))
    def test_a_shard_that_is_cut_short(self, cut: int) -> None:
        members = {f"{n}.jpg": bytes([n]) * 400 for n in range(6)}
        write_tar("whole.tar", members)
        Path("s.tar").write_bytes(Path("whole.tar").read_bytes()[:cut])
        found = read_all(expand(["s.tar"]))
        good = {key: data for key, data in found.items() if isinstance(data, bytes)}
        whole = cut // 1024 + (cut % 1024 >= 512 + 400)
        assert good == {f"s.tar/{n}.jpg": bytes([n]) * 400 for n in range(whole)}
        why = found["s.tar"]
        assert isinstance(why, str)
        assert ("not a tar file" if cut < 512 else f"damaged or cut short after {whole} members (") in why
        if cut % 1024 in (512, 768):
            assert "ends within this member" in str(found[f"s.tar/{whole}.jpg"])

    def test_a_damaged_header_in_the_middle(self) -> None:
        write_tar("s.tar", {f"{n}.jpg": bytes([n]) * 400 for n in range(6)})
        data = bytearray(Path("s.tar").read_bytes())
        data[3 * 1024 + 5] ^= 1
        Path("s.tar").write_bytes(data)
        found = read_all(expand(["s.tar"]))
        assert list(found) == ["s.tar/0.jpg", "s.tar/1.jpg", "s.tar/2.jpg", "s.tar"]
        assert "damaged or cut short after 3 members" in str(found["s.tar"])

    @pytest.mark.parametrize("data", [b"", b"text", b"\x1f\x8b" + b"x" * 1000, b"\xff" * 5000])
    def test_what_is_no_tar(self, data: bytes) -> None:
        Path("s.tar").write_bytes(data)
        assert "not a tar file" in failures(expand(["s.tar"]))["s.tar"]

    @pytest.mark.parametrize("size", [-1024, -1, 1 << 40, (1 << 63) - 600, 1 << 63, 1 << 87])
    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_sizes_of_a_hostile_header(self, size: int, kind: bytes) -> None:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.type = size, kind
        header = info.tobuf(tarfile.GNU_FORMAT)
        Path("s.tar").write_bytes(header + b"x" * 5000)
        sources = list(expand(["s.tar"]))
        assert len(sources) <= 2
        assert "s.tar" in failures(sources)
