"""Mounts without privileges: the same files and metadata as the kernel's own mount, and what is told when not."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from composefs_async import Algorithm, Repository
from composefs_async._sys.rootless_probe import probe_rootless
from composefs_async.erofs.writer import build_image
from composefs_async.errors import DigestMismatchError, ImageNotFoundError, MountError
from composefs_async.repository import state_of
from composefs_async.results import MountOptions
from composefs_async.tree.inodes import Special

pytestmark = pytest.mark.skipif(
    not probe_rootless().rootless, reason="no rootless mounts here: see 'composefs-async doctor'"
)

COLLECT = """
import hashlib, json, os, stat, sys

def describe(path):
    found = os.lstat(path)
    kind = stat.S_IFMT(found.st_mode)
    entry = [found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns]
    if kind != stat.S_IFDIR:
        entry += [found.st_size, found.st_nlink]
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            entry.append(hashlib.sha256(file.read()).hexdigest())
    if kind == stat.S_IFLNK:
        entry.append(os.readlink(path))
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
    return entry + [[name, os.getxattr(path, name).hex()] for name in sorted(names)]

found = {".": describe(".")}
for top, directories, files in os.walk("."):
    for name in directories + files:
        found[os.path.join(top, name)] = describe(os.path.join(top, name))
with open(sys.argv[1], "w") as out:
    json.dump(found, out)
"""

AS_NOBODY = """
import os, sys
from composefs_async import Repository
from composefs_async.repository import state_of
from composefs_async._repo import rootless
import composefs_async.erofs.reader.tree
os.setgroups([])
os.setgid(1234)
os.setuid(1234)
with Repository.open_path(sys.argv[1]) as repo:
    found = repo.enter_rootless(sys.argv[2])
assert os.getcwd() == found.path
print(found.left_out, os.getuid(), flush=True)
sys.argv = ["collect", sys.argv[3]]
exec(os.environ["COLLECT"])
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory on a disk that anybody can look into and write to."""
    with tempfile.TemporaryDirectory(prefix="composefs-async-tests-") as place:
        Path(place).chmod(0o777)
        yield Path(place)


def make_files(top: Path) -> Path:
    """Everything that an image can hold and a namespace can have."""
    (top / "usr/bin/deep/er").mkdir(parents=True)
    (top / "usr/large").write_bytes(os.urandom(100_000))
    (top / "usr/small").write_bytes(b"small")
    (top / "usr/empty").write_bytes(b"")
    (top / "usr/64").write_bytes(b"x" * 64)
    (top / "usr/65").write_bytes(b"x" * 65)
    (top / "usr/bin/link").symlink_to("../large")
    (top / "usr/bin/long").symlink_to("x" * 900)
    os.link(top / "usr/large", top / "usr/bin/deep/er/again")
    os.link(top / "usr/bin/link", top / "usr/bin/deep/symbolic")
    os.mkfifo(top / "usr/pipe", 0o620)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(top / "usr/socket"))
    (top / "usr/new\nline \u00e9").write_bytes(b"")
    (top / "usr/small").chmod(0o4755)
    (top / "usr/bin/deep").chmod(0o1711)
    os.setxattr(top / "usr/large", "user.note", b"a\0b")
    os.setxattr(top / "usr/bin", "user.overlay.opaque", b"y")
    if os.geteuid() == 0:
        os.chown(top / "usr/64", 7, 8)
        os.chown(top / "usr/bin/link", 70000, 8, follow_symlinks=False)
    for number, (above, directories, files) in enumerate(os.walk(top, topdown=False)):
        for name in (*directories, *files):
            os.utime(Path(above, name), ns=(0, 1_000_000_000_123_456_789 + number), follow_symlinks=False)
    os.utime(top, ns=(0, 1_700_000_000_000_000_001))
    return top


def make(public: Path, algorithm: Algorithm, version: int) -> tuple[Repository, str]:
    repo = Repository.init(public / "repo", algorithm=algorithm, insecure=True)
    tree = repo.scan_directory(make_files(public / "files"))
    return repo, repo.write_image(build_image(tree, algorithm, version), "name").hex()


def collected(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize(
    ("algorithm", "version"), [(Algorithm.SHA256, 1), (Algorithm.SHA512, 2), (Algorithm.SHA256, 0)]
)
def test_everything_is_as_in_a_mount_by_the_kernel(
    may_mount: None, public: Path, algorithm: Algorithm, version: int
) -> None:
    repo, image = make(public, algorithm, version)
    with repo:
        (public / "collect.py").write_text(COLLECT)
        (public / "mnt").mkdir()
        repo.mount_at(image, public / "mnt")
        try:
            command = [sys.executable, public / "collect.py", public / "kernel.json"]
            subprocess.run(command, cwd=public / "mnt", check=True)
        finally:
            repo.unmount(public / "mnt")
        command = [sys.executable, str(public / "collect.py"), str(public / "rootless.json")]
        assert repo.run_rootless(image, command) == 0
    kernel, rootless = collected(public / "kernel.json"), collected(public / "rootless.json")
    assert rootless == kernel
    assert len(kernel) == 17


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else, which only root can")
def test_somebody_without_rights_sees_all_but_the_owners(public: Path) -> None:
    repo, image = make(public, Algorithm.SHA256, 1)
    with repo:
        tree = repo.scan_directory(public / "files")
        tree.children[b"null"] = Special(stat.S_IFCHR | 0o666, 1, 0, 0, 0, rdev=os.makedev(1, 3))
        tree.children[b"hidden"] = Special(stat.S_IFCHR, 1, 0, 0, 0)
        tree.children[b"usr"].uid = 7
        image = repo.write_image(build_image(tree, Algorithm.SHA256, 1)).hex()
    (public / "repo").chmod(0o755)
    environment = {**os.environ, "COLLECT": COLLECT}
    command = [sys.executable, "-c", AS_NOBODY, public / "repo", image, public / "found.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == (
        "3 files have another owner, 1 devices are not there 0\n",
        "",
        0,
    )
    found = collected(public / "found.json")
    assert "./null" not in found
    # As the kernel shows a whiteout in an image: an empty file that another overlay takes for one.
    assert found["./hidden"][-1] == ["user.overlay.whiteout", ""]
    assert found["."][-1] == ["user.overlay.whiteouts", ""]
    assert found["./usr/64"][1:3] == [0, 0]
    assert list(Path(tempfile.gettempdir(), "composefs-async-1234").iterdir()) == []


def test_the_command_gets_the_mount_and_gives_its_exit_code(public: Path, capfd: pytest.CaptureFixture[str]) -> None:
    repo, image = make(public, Algorithm.SHA256, 1)
    with repo:
        script = 'test "$(pwd)" = "$COMPOSEFS_MOUNT" && cat usr/small && exit $CODE'
        path = os.environ["PATH"]
        assert repo.run_rootless(image, ["sh", "-c", script], environment={"CODE": "7", "PATH": path}) == 7
        assert capfd.readouterr().out == "small"
        assert repo.run_rootless("name", ["sh", "-c", "kill -9 $$"]) == -9
        with pytest.raises(OSError, match="no-such-program"):
            repo.run_rootless(image, ["no-such-program"])
        with pytest.raises(ImageNotFoundError):
            repo.run_rootless("nothing", ["true"])
        with pytest.raises(ValueError, match="no command"):
            repo.run_rootless(image, [])


@pytest.mark.anyio
async def test_the_same_without_blocking(public: Path) -> None:
    repo, image = make(public, Algorithm.SHA256, 1)
    async with repo:
        assert await repo.run_rootless_async(image, ["sh", "-c", "exit 3"]) == 3
        with pytest.raises(OSError, match="no-such-program"):
            await repo.run_rootless_async(image, ["no-such-program"])


def test_changes_go_to_the_upper_directory(public: Path) -> None:
    repo, image = make(public, Algorithm.SHA256, 1)
    for name in ("upper", "work"):
        (public / name).mkdir()
    with repo:
        script = "echo changed >> usr/small && rm usr/empty && echo new > new"
        upper, work = public / "upper", public / "work"
        assert repo.run_rootless(image, ["sh", "-c", script], options=MountOptions(upper, work, read_write=True)) == 0
        assert (public / "upper/usr/small").read_bytes() == b"smallchanged\n"
        assert sorted(os.listdir(public / "upper")) == ["new", "usr"]
        with pytest.raises(ValueError, match="given both"):
            repo.run_rootless(image, ["true"], options=MountOptions(upper=upper))
        assert repo.run_rootless(image, ["sh", "-c", "echo 2> /dev/null > new"], options=MountOptions(upper, work)) != 0


def test_an_image_is_verified_before_it_is_believed(public: Path) -> None:
    from composefs_async._repo.rootless import verified_tree

    repo, image = make(public, Algorithm.SHA256, 1)
    with repo:
        path = public / "repo/objects" / image[:2] / image[2:]
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.chmod(0o644)
        path.write_bytes(content)
        with pytest.raises(DigestMismatchError, match=f"image {image}"):
            verified_tree(state_of(repo), image)
        with pytest.raises(MountError, match="expected digest"):
            repo.run_rootless(image, ["true"])


def test_a_system_that_forbids_namespaces_is_told(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes
    import errno

    from composefs_async._sys import namespaces

    class Refusing:
        def unshare(self, flags: int) -> int:
            ctypes.set_errno(errno.EPERM)
            return -1

    monkeypatch.setattr(namespaces, "_libc", Refusing())
    with pytest.raises(MountError, match=r"making user namespace: Operation not permitted .*unprivileged_userns_clone"):
        namespaces.enter_namespaces()
