"""Trees as the kernel sees them: images of all layouts, mounted and walked."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from composefs_async._sys.mount import KernelOptions, mount_composefs
from composefs_async.erofs.writer import build_image
from composefs_async.tree import Directory, ExternalFile, InlineFile, Inode, Special, Symlink, Xattrs, make_xattrs
from composefs_async.tree.walk import count_links, walk

pytestmark = pytest.mark.usefixtures("no_leaks", "may_mount")

ATTRIBUTES = [b"user.a", b"user.%b" % (b"n" * 200), b"trusted.x", b"security.x", b"trusted.overlay.mine"]
NAMES = [b"!", b"-", b".a", b"..a", b"00", b"ff", b"a b", b"\xff\n", b"long" * 63, *(b"%d" % n for n in range(300))]


class Maker:
    """Trees by chance; their seconds have no fractions, as layout 2 has none."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        values = [b"", b"v", self.rng.randbytes(300)]
        self.xattrs: list[Xattrs] = [()]
        for _ in range(6):
            chosen = self.rng.sample(ATTRIBUTES, self.rng.randrange(1, 4))
            self.xattrs.append(make_xattrs({name: self.rng.choice(values) for name in chosen}))
        self.linked: list[Inode] = []

    def common(self, kind: int) -> tuple[int, int, int, int, int, Xattrs]:
        rng = self.rng
        xattrs = rng.choice(self.xattrs)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):  # others have no user's attributes, says the kernel
            xattrs = tuple(pair for pair in xattrs if not pair[0].startswith(b"user."))
        time = rng.choice([0, 1_000_000_000, 1_700_000_000_000_000_000])
        return kind | rng.choice([0o600, 0o7755]), 1, rng.choice([0, 70000]), rng.choice([0, 5]), time, xattrs

    def directory(self, count: int, depth: int) -> Directory:
        names = self.rng.sample(NAMES, count)
        inside = {name: self.directory(self.rng.choice([0, 3, 40]), depth - 1) for name in names[:2] if depth}
        leaves = {name: self.leaf() for name in names if name not in inside}
        return Directory(*self.common(stat.S_IFDIR), inside | leaves)

    def leaf(self) -> Inode:
        rng = self.rng
        match rng.randrange(7):
            case 0 if self.linked:
                return rng.choice(self.linked)
            case 1:
                return Symlink(*self.common(stat.S_IFLNK), b"t" * rng.choice([1, 100, 1024]))
            case 2:
                return Special(*self.common(rng.choice([stat.S_IFCHR, stat.S_IFBLK])), os.makedev(7, 300))
            case 3:
                return Special(*self.common(rng.choice([stat.S_IFIFO, stat.S_IFSOCK])))
            case 4:
                return ExternalFile(*self.common(stat.S_IFREG), rng.choice([1, 4096, 1 << 33]), rng.randbytes(32))
            case _:
                self.linked.append(InlineFile(*self.common(stat.S_IFREG), rng.randbytes(rng.choice([0, 1, 64, 512]))))
                return self.linked[-1]


def expected(root: Directory) -> dict[bytes, tuple[object, ...]]:
    """What a walk over the mounted tree should find, by path."""
    links = count_links(root)
    found: dict[bytes, tuple[object, ...]] = {}
    for path, inode in walk(root):
        content: object = None
        if isinstance(inode, InlineFile):
            content = inode.content
        elif isinstance(inode, ExternalFile):
            content = inode.size
        elif isinstance(inode, Symlink):
            content = inode.target
        elif isinstance(inode, Special):
            content = inode.rdev
        owner = inode.uid, inode.gid
        names = 0 if isinstance(inode, Directory) else links[inode]
        found[path] = (inode.mode, names, owner, inode.mtime_ns, dict(inode.xattrs), content)
    return found


def walked(top: bytes) -> Iterator[tuple[bytes, tuple[object, ...]]]:
    pending = [b"/"]
    while pending:
        path = pending.pop()
        place = top + path
        status = os.lstat(place)
        content: object = None
        if stat.S_ISDIR(status.st_mode):
            # Names are listed in blocks and looked up by halving, so each is tried in both ways.
            pending += [os.path.join(path, name) for name in os.listdir(place)]
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(place)
        elif stat.S_ISREG(status.st_mode):
            content = (
                Path(os.fsdecode(place)).read_bytes() if status.st_size <= 512 and inside(place) else status.st_size
            )
        else:
            content = status.st_rdev
        names = os.listxattr(place, follow_symlinks=False)
        xattrs = {os.fsencode(name): os.getxattr(place, name, follow_symlinks=False) for name in names}
        links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
        yield path, (status.st_mode, links, (status.st_uid, status.st_gid), status.st_mtime_ns, xattrs, content)


def inside(place: bytes) -> bool:
    """Whether the content of a file is in the image: the objects of the others do not exist."""
    try:
        os.close(os.open(place, os.O_RDONLY))
    except FileNotFoundError:
        return False
    return True


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_the_kernel_sees_the_tree_that_was_written(seed: int, version: int, tmp_path: Path) -> None:
    maker = Maker(seed)
    root = maker.directory(maker.rng.choice([5, 60, 250]), 3)
    (tmp_path / "image").write_bytes(build_image(root, version=version))
    (tmp_path / "objects").mkdir()
    image, objects = os.open(tmp_path / "image", os.O_RDONLY), os.open(tmp_path / "objects", os.O_PATH)
    try:
        mount = mount_composefs(image, "test", objects, KernelOptions())
    finally:
        os.close(image)
        os.close(objects)
    try:
        assert dict(walked(b"/proc/self/fd/%d" % mount)) == expected(root)
    finally:
        os.close(mount)
