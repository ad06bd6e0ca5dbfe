"""The benchmarks' inputs can be made, are kept, and are images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from composefs_async.oci.sources import OciLayoutSource, ResolvedImage

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "inputs.py"


def make(cache: Path, name: str) -> str:
    command = [sys.executable, str(SCRIPT), name, "--scale", "0.001", "--cache", str(cache)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_input_is_made_once_and_described(tmp_path: Path) -> None:
    async def resolve() -> ResolvedImage:
        return await OciLayoutSource(tmp_path / "T-0.001").resolve(tag="latest")

    said = make(tmp_path, "T")
    found = anyio.run(resolve)
    packed = found.layers[0].descriptor.size
    assert json.loads((tmp_path / "T-0.001" / "input.json").read_bytes()) == {
        "name": "T",
        "path": str(tmp_path / "T-0.001"),
        "maker": "layout_writer",
        "layers": 1,
        "entries": 13,
        "tar_bytes": packed,
        "packed_bytes": packed,
    }
    assert f"T: 1 layer(s), 13 entries, {packed / 2**20:.1f} MiB of tar" in said
    before = (tmp_path / "T-0.001" / "index.json").stat().st_ino
    assert make(tmp_path, "T").partition(" (")[0] == said.partition(" (")[0]
    assert (tmp_path / "T-0.001" / "index.json").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["T-0.001"]


def test_unknown_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        make(tmp_path, "nonsense")
    assert "unknown input nonsense; there are: A, A-zstd, B, T" in caught.value.stderr
