"""A disk that fails under a secure repository on ext4: dm-error answers to all, dm-flakey to reads or to writes only.

The disk fails while an operation runs, and works again afterwards.  Then the file system is mounted anew, as after a
crash: what the operation has said must be true.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from composefs_async.digest import Algorithm
from composefs_async.errors import ComposefsError
from composefs_async.oci import catalogue
from composefs_async.repository import Repository
from composefs_async.results import FsckResult

from ...maintenance.crashing import Contents, Images, problems

SECTORS = 96 << 11


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout.strip()


class Disk:
    """A device that can be let fail, with an ext4 on it."""

    def __init__(self, directory: Path) -> None:
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir()
        image = directory / "disk"
        with open(image, "wb") as file:
            file.truncate(SECTORS << 9)
        self.loop = run("losetup", "-f", "--show", image)
        run("dmsetup", "create", "failing", "--table", f"0 {SECTORS} linear {self.loop} 0")
        run("mkfs.ext4", "-q", "-O", "verity", "-b", "4096", "/dev/mapper/failing")
        self.mount()

    def mount(self) -> None:
        run("mount", "/dev/mapper/failing", self.mountpoint)

    def use(self, table: str) -> None:
        run("dmsetup", "suspend", "--noflush", "--nolockfs", "failing")
        run("dmsetup", "load", "failing", "--table", table)
        run("dmsetup", "resume", "failing")

    def fail(self, kind: str) -> None:
        run("sync")
        Path("/proc/sys/vm/drop_caches").write_text("3")
        features = {"reads": "1 error_reads", "writes": "1 error_writes"}
        error = f"0 {SECTORS} error"
        self.use(error if kind == "all" else f"0 {SECTORS} flakey {self.loop} 0 0 3600 {features[kind]}")

    def heal(self) -> None:
        """Work again; what is cached, and a journal that has been given up, are gone."""
        self.use(f"0 {SECTORS} linear {self.loop} 0")
        run("umount", self.mountpoint)
        self.mount()

    def close(self) -> None:
        run("umount", self.mountpoint)
        run("dmsetup", "remove", "failing")
        run("losetup", "-d", self.loop)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images") / "oci")


def opened(work: Callable[[Images, Repository], object]) -> Callable[[Images, Path], object]:
    def run_on(images: Images, path: Path) -> object:
        with Repository.open_path(path) as repo:
            return work(images, repo)

    return run_on


OPERATIONS: dict[str, Callable[[Images, Path], object]] = {
    "pull": lambda images, path: images.pull(path, "b"),
    "gc": opened(lambda images, repo: repo.gc()),
    "fsck": opened(lambda images, repo: repo.fsck()),
    "repair": opened(lambda images, repo: repo.repair()),
    "tag": opened(lambda images, repo: catalogue.tag(repo, images.digests["a"], "other")),
}


def prepare(images: Images, path: Path) -> None:
    Repository.init(path, algorithm=Algorithm.SHA256).close()
    images.pull(path, "a")
    with Repository.open_path(path) as repo:
        assert repo.secure
        repo.ensure_object(b"garbage" * 1000)


@pytest.mark.parametrize("kind", ["all", "reads", "writes"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_repository_outlives_a_disk_that_fails_for_a_while(disk: Disk, images: Images, name: str, kind: str) -> None:
    path, operation = disk.mountpoint / "repo", partial(OPERATIONS[name], images)
    prepare(images, path)
    before = Contents.read(path)
    disk.fail(kind)
    error, result = None, None
    try:
        result = operation(path)
    except (OSError, ComposefsError) as caught:
        error = caught
    disk.heal()
    if isinstance(result, FsckResult):
        assert {each for each in result.errors if not each.unread} == set()
    now = Contents.read(path)
    assert problems(path) == []
    assert now.names.items() >= before.names.items()
    assert name == "gc" or now.objects >= before.objects
    operation(path)
    after = Contents.read(path)
    assert problems(path) == []
    assert now.names in (before.names, after.names)
    assert error is not None or now.names == after.names
