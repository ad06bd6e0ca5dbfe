"""Debian's fsverity and zstd: they see what we compute, and we read what they pack."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from composefs_async import Algorithm, Repository, fsverity
from composefs_async.oci import import_layer

SIZES = [0, 1, 4095, 4096, 4097, 128 * 4096, 128 * 4096 + 1, 3_000_000]


@pytest.mark.parametrize("algorithm", Algorithm, ids=lambda algorithm: algorithm.value)
def test_fsverity_computes_the_same_digests(tool: Callable[[str], Path], tmp_path: Path, algorithm: Algorithm) -> None:
    program = tool("fsverity")
    with Repository.init(tmp_path / "repo", algorithm=algorithm, insecure=True) as repo:
        stored = repo.ensure_objects(bytes(range(251)) * (size // 251) + bytes(size % 251) for size in SIZES)
        paths = [Path(repo.path, "objects", found.id.path) for found in stored]
    command = [program, "digest", f"--hash-alg={algorithm.value}", "--compact", *paths]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert said == [found.id.hex() for found in stored]
    assert said == [fsverity.digest(path.read_bytes(), algorithm).hex() for path in paths]


@pytest.mark.parametrize("options", [["-3"], ["-19", "--long=27"], ["--no-check", "-1"], ["--fast=5", "-B262144"]])
def test_layers_that_zstd_packed_are_imported(tool: Callable[[str], Path], tmp_path: Path, options: list[str]) -> None:
    program = tool("zstd")
    (tmp_path / "file").write_bytes(b"".join(n.to_bytes(4, "little") for n in range(200_000)))
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "tar", "file"], check=True)
    subprocess.run([program, "-q", *options, tmp_path / "tar", "-o", tmp_path / "tar.zst"], check=True)
    content = (tmp_path / "tar").read_bytes()
    diff_id = f"sha256:{hashlib.sha256(content).hexdigest()}"

    async def main() -> bytes:
        repo = await Repository.init_async(tmp_path / "repo", insecure=True)
        async with repo, await anyio.open_file(tmp_path / "tar.zst", "rb") as source:
            await import_layer(repo, diff_id, source)
            return b"".join([piece async for piece in repo.merge_splitstream_async(f"oci-layer-{diff_id}")])

    assert anyio.run(main) == content
