"""Commands on directories and images against cfsctl, on repositories of either program."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async.cli.app import run

Tool = Callable[[str], Path]


@pytest.fixture
def tmp_path(disk_path: Path) -> Path:
    """Files of tmpfs cannot be mounted without a loop device."""
    return disk_path


@pytest.fixture
def source(tmp_path: Path, acl: bytes) -> Path:
    top = tmp_path / "source"
    (top / "usr" / "bin").mkdir(parents=True)
    (top / "run" / "lost").mkdir(parents=True)
    for size in (0, 1, 64, 65, 4096, 5 << 20):
        (top / "usr" / "bin" / f"file{size}").write_bytes(os.urandom(size))
    os.link(top / "usr" / "bin" / "file65", top / "usr" / "again")
    os.link(top / "usr" / "bin" / "file1", top / "one")
    (top / "usr" / "a b").symlink_to("to a place")
    os.mkfifo(top / "pipe")
    os.mknod(top / "socket", stat.S_IFSOCK | 0o755)
    os.setxattr(top / "usr" / "bin" / "file1", "user.one", b"1=\0")
    os.setxattr(top / "usr", "user.two", b"2")
    with open(top / "usr" / "holes", "wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"here")
    if os.geteuid() == 0:
        os.setxattr(
            top / "usr" / "bin" / "file64", "security.capability", bytes.fromhex("0100000200000000" + "00" * 12)
        )
        os.setxattr(top / "usr" / "bin" / "file1", "system.posix_acl_access", acl)
        os.setxattr(top / "usr" / "bin", "system.posix_acl_default", acl)
        os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(5, 300))
        for name in (".", "usr", "usr/bin/file64", "usr/bin/file4096", "usr/a b", "pipe"):
            os.setxattr(top / name, "security.selinux", b"u:r:t:s0\0", follow_symlinks=False)
    return top


@pytest.fixture(params=["sha256", "sha512"])
def repository(request: pytest.FixtureRequest, tool: Tool, tmp_path: Path) -> Path:
    command = [tool("cfsctl"), "init", "--algorithm", f"fsverity-{request.param}-12", "--insecure", tmp_path / "repo"]
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path / "repo"


def theirs(tool: Tool, repository: Path, *arguments: str | Path) -> bytes:
    command = [tool("cfsctl"), "--repo", repository, *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture
def ours(repository: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., bytes]:
    def call(*arguments: str | Path) -> bytes:
        capsysbinary.readouterr()
        code = run(["--repo", str(repository), *map(str, arguments)])
        out, error = capsysbinary.readouterr()
        assert (code, error) == (0, b"")
        return out

    return call


OPTIONS = [[], ["--no-propagate-usr-to-root"], ["--xattrs=keep-user-xattrs"]]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_directories_become_the_same_image(
    tool: Tool, repository: Path, ours: Callable[..., bytes], source: Path, options: list[str]
) -> None:
    for command in ("create-dumpfile", "compute-id", "create-image"):
        assert ours(command, *options, source) == theirs(tool, repository, command, *options, source)


def test_images_of_either_are_read_by_both(
    tool: Tool, repository: Path, ours: Callable[..., bytes], source: Path
) -> None:
    ours("create-image", source, "made/here")
    theirs(tool, repository, "create-image", source, "made/there")
    listed = [
        json.loads(found)["images"]
        for found in (ours("images", "--json"), theirs(tool, repository, "images", "--json"))
    ]
    assert listed[0] == sorted(listed[1], key=lambda image: image["name"])
    for options in ([], ["--no-trunc"]):
        mine, other = (found.decode().splitlines() for found in (
            ours("images", *options), theirs(tool, repository, "images", *options)
        ))  # fmt: skip
        assert (mine[:3], mine[-1], sorted(mine)) == (other[:3], other[-1], sorted(other))
    for name in ("refs/made/here", "refs/made/there"):
        for arguments in (
            ["dump-files", name, "/usr", "/one"],
            ["dump-files", name, "socket"],
            ["dump-files", "--backing-path-only", name, "/usr/again", "/one", "/pipe"],
        ):
            assert ours(*arguments) == theirs(tool, repository, *arguments)
        assert sorted(ours("image-objects", name).split()) == sorted(
            theirs(tool, repository, "image-objects", name).split()
        )
    assert theirs(tool, repository, "fsck").splitlines()[-1:] == [b"status: ok"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_cfsctl_mounts_what_we_made(
    tool: Tool, repository: Path, ours: Callable[..., bytes], source: Path, tmp_path: Path
) -> None:
    image_id = ours("create-image", source, "name").decode().strip().partition(":")[2]
    place = tmp_path / "place"
    place.mkdir()
    # By a reference it would ask for fs-verity, in insecure repositories too.
    theirs(tool, repository, "mount", image_id, place)
    try:
        large = (place / "usr" / "bin" / f"file{5 << 20}").read_bytes()
    finally:
        ours("umount", place)
    assert large == (source / "usr" / "bin" / f"file{5 << 20}").read_bytes()
