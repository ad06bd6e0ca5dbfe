"""Blocks that went bad on the disk under fs-verity, which the kernel refuses to give out: found, and repaired."""

from __future__ import annotations

import fcntl
import os
import struct
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async import Algorithm, Repository
from composefs_async.oci import pull, repair

FIBMAP = 1  # linux/fs.h
FIGETBSZ = 2


@pytest.fixture
def pulled(data_dir: Path, oci_layout: Path) -> Path:
    with Repository.init(data_dir / "repo", algorithm=Algorithm.SHA256) as repo:
        anyio.run(pull, repo, f"oci:{oci_layout}:latest")
        assert repo.secure
    return data_dir / "repo"


def spoil(path: Path) -> None:
    """Change the last block of a file on the disk, behind the file system's back."""
    os.sync()
    fd = os.open(path, os.O_RDONLY)
    try:
        (size,) = struct.unpack("i", fcntl.ioctl(fd, FIGETBSZ, bytes(4)))
        last = (os.fstat(fd).st_size - 1) // size
        (block,) = struct.unpack("i", fcntl.ioctl(fd, FIBMAP, struct.pack("i", last)))
    finally:
        os.close(fd)
    assert block
    disk = os.open(device(path), os.O_RDWR | os.O_SYNC)
    try:
        os.pwrite(disk, bytes(byte ^ 1 for byte in os.pread(disk, 16, block * size)), block * size)
    finally:
        os.close(disk)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def device(path: Path) -> str:
    number = os.stat(path).st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == f"{os.major(number)}:{os.minor(number)}":
            return fields[fields.index("-") + 2]
    raise AssertionError(path)


@pytest.mark.parametrize("what", ["object", "stream", "image"])
def test_a_bad_block_is_found_and_repaired(pulled: Path, oci_layout: Path, what: str) -> None:
    objects = {path for path in (pulled / "objects").rglob("*") if path.is_file()}
    [image] = [path.resolve() for path in (pulled / "images").iterdir() if path.name != "refs"]
    [layer] = [path.resolve() for path in (pulled / "streams").glob("oci-layer-*")]
    victim = {"object": max(objects, key=lambda path: path.stat().st_size), "stream": layer, "image": image}[what]
    name = str(victim.relative_to(pulled))
    spoil(victim)
    with pytest.raises(OSError, match="Input/output error"):
        victim.read_bytes()
    with Repository.open_path(pulled) as repo:
        assert name in {each.path for each in repo.fsck().findings}
        source = [] if what == "image" else [f"oci:{oci_layout}"]
        result = anyio.run(partial(repair, repo, source))
        assert (result.ok, result.affected_refs) == (True, result.recovered_refs)
        assert [each.path for each in result.actions] == [name]
        assert repo.fsck().ok
    assert victim.read_bytes()
