"""Directories as trees."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from composefs_async import fsverity
from composefs_async._repo import batch, scan
from composefs_async._repo.scan import INLINE_MAX, ScanOptions, scan_and_store, scan_directory
from composefs_async._repo.scan import content as scan_content
from composefs_async._repo.scan.content import FlatState, OpenFile
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import IntegrityError
from composefs_async.repository import Repository, state_of
from composefs_async.tree import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from composefs_async.tree.walk import find, walk

from ..conftest import preloading

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(autouse=True, params=["native", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All is the same with the native code and without."""
    way: str = request.param
    if way == "native" and not batch.NATIVE:
        pytest.skip("the native module is not built, or switched off")
    monkeypatch.setattr(batch, "NATIVE", way == "native")
    return way


# The native code reads files of less than a mebibyte at once.
ABOUT_A_MEBIBYTE = [(1 << 20) - 1, 1 << 20]
SIZES = [
    0,
    1,
    INLINE_MAX,
    INLINE_MAX + 1,
    4095,
    4096,
    4097,
    128 * 4096,
    128 * 4096 + 1,
    *ABOUT_A_MEBIBYTE,
    (4 << 20) + 5,
    9 << 20,
]


def content(size: int) -> bytes:
    return (b"%d bytes\n" % size * (size // 2 + 1))[:size]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with files of many sizes, in two directories."""
    top = tmp_path / "source"
    for place in (top, top / "below"):
        place.mkdir()
        for size in SIZES:
            (place / f"file{size}").write_bytes(content(size))
    return top


def digests(root: Directory) -> dict[bytes, ObjectId]:
    return {
        path: ObjectId(inode.digest) for path, inode in walk(root) if isinstance(inode, ExternalFile) and inode.digest
    }


def expected(algorithm: Algorithm) -> dict[bytes, ObjectId]:
    large = [size for size in SIZES if size > INLINE_MAX]
    names = [(b"%bfile%d" % (prefix, size), size) for prefix in (b"/", b"/below/") for size in large]
    return {name: fsverity.digest(content(size), algorithm) for name, size in names}


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_large_files_have_their_digests_and_small_ones_are_inline(
    source: Path, algorithm: Algorithm, threads: int | None
) -> None:
    root = scan_directory(source, algorithm, ScanOptions(threads=threads))
    assert digests(root) == expected(algorithm)
    inline = {path: inode.content for path, inode in walk(root) if isinstance(inode, InlineFile)}
    assert inline == {
        b"%bfile%d" % (prefix, size): content(size) for prefix in (b"/", b"/below/") for size in SIZES[:3]
    }


def test_storing_gives_the_same_tree_and_the_objects(source: Path, repo: Repository) -> None:
    root = scan_and_store(state_of(repo), source)
    found = digests(root)
    assert found == expected(repo.algorithm)
    for path, object_id in found.items():
        assert repo.read_object(object_id) == content(int(path.rpartition(b"file")[2]))


@pytest.mark.parametrize(("files", "directories"), [(300, 7), (1100, 1), (150, 150)])
def test_many_files_are_read_in_several_batches(tmp_path: Path, repo: Repository, files: int, directories: int) -> None:
    for number in range(files):
        (tmp_path / "source" / str(number % directories)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / str(number % directories) / str(number)).write_bytes(b"%d " % number * 100)
    found = digests(scan_and_store(state_of(repo), tmp_path / "source"))
    assert found == {
        b"/%d/%d" % (number % directories, number): fsverity.digest(b"%d " % number * 100, repo.algorithm)
        for number in range(files)
    }
    assert {object_id: repo.read_object(object_id) for object_id in found.values()} == {
        fsverity.digest(b"%d " % number * 100, repo.algorithm): b"%d " % number * 100 for number in range(files)
    }


def test_a_flat_store_is_what_mkcomposefs_makes(source: Path, tmp_path: Path) -> None:
    state = FlatState(str(tmp_path / "store"), Algorithm.SHA256)
    try:
        found = digests(scan_and_store(state, source))
    finally:
        state.close()
    stored = {str(path.relative_to(tmp_path / "store")) for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert stored == {object_id.path for object_id in found.values()}
    assert {stat.S_IMODE((tmp_path / "store" / name).stat().st_mode) for name in stored} == {0o644}
    for path, object_id in found.items():
        assert (tmp_path / "store" / object_id.path).read_bytes() == content(int(path.rpartition(b"file")[2]))


# -- metadata ----------------------------------------------------------------------------------


def make_all_kinds(top: Path) -> None:
    top.mkdir()
    (top / "file").write_bytes(b"x")
    (top / "link").symlink_to("nowhere/at all")
    os.mkfifo(top / "pipe", 0o600)
    os.mknod(top / "socket", stat.S_IFSOCK | 0o700)
    (top / "directory").mkdir()
    os.chmod(top / "directory", 0o2711)
    os.chmod(top / "file", 0o4751)
    for name in ("file", "link", "pipe", "socket", "directory"):
        os.utime(top / name, ns=(0, 1_234_567_890_123_456_789), follow_symlinks=False)


def kinds(root: Directory) -> dict[bytes, tuple[type[Inode], int, int]]:
    return {path: (type(inode), inode.mode, inode.mtime_ns) for path, inode in walk(root) if path != b"/"}


def test_every_kind_keeps_its_mode_and_its_time(tmp_path: Path) -> None:
    make_all_kinds(tmp_path / "source")
    root = scan_directory(tmp_path / "source", Algorithm.SHA256)
    time = 1_234_567_890_123_456_789
    status = os.stat(tmp_path / "source" / "pipe")
    assert kinds(root) == {
        b"/file": (InlineFile, stat.S_IFREG | 0o4751, time),
        b"/link": (Symlink, stat.S_IFLNK | 0o777, time),
        b"/pipe": (Special, status.st_mode, time),
        b"/socket": (Special, os.stat(tmp_path / "source" / "socket").st_mode, time),
        b"/directory": (Directory, stat.S_IFDIR | 0o2711, time),
    }
    link = root.children[b"link"]
    assert isinstance(link, Symlink)
    assert link.target == b"nowhere/at all"
    assert (root.nlink, root.uid, root.gid) == (3, os.geteuid(), os.stat(tmp_path / "source").st_gid)


def test_use_epoch_makes_every_time_zero(tmp_path: Path) -> None:
    make_all_kinds(tmp_path / "source")
    root = scan_directory(tmp_path / "source", Algorithm.SHA256, ScanOptions(use_epoch=True))
    assert {inode.mtime_ns for _, inode in walk(root)} == {0}


@pytest.mark.skipif(os.geteuid() != 0, reason="making devices needs root")
def test_devices_can_be_left_out(tmp_path: Path) -> None:
    make_all_kinds(tmp_path / "source")
    os.mknod(tmp_path / "source" / "char", stat.S_IFCHR | 0o600, os.makedev(1, 300))
    os.mknod(tmp_path / "source" / "block", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    root = scan_directory(tmp_path / "source", Algorithm.SHA256)
    numbers = {name: inode.rdev for name, inode in root.children.items() if isinstance(inode, Special)}
    assert numbers == {
        b"char": os.makedev(1, 300),
        b"block": os.makedev(259, 70000),
        b"pipe": 0,
        b"socket": 0,
    }
    root = scan_directory(tmp_path / "source", Algorithm.SHA256, ScanOptions(devices=False))
    assert sorted(root.children) == [b"directory", b"file", b"link", b"pipe", b"socket"]


XATTRS = {
    "user.b": b"2",
    "user.a": b"\0\xff",
    "trusted.t": b"t",
    "security.capability": bytes.fromhex("0100000200000000" + "00" * 12),
}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (ScanOptions(), sorted(XATTRS)),
        (ScanOptions(read_xattrs=False), []),
        (ScanOptions(keep_xattr=lambda name: name.startswith(b"user.")), ["user.a", "user.b"]),
        (ScanOptions(keep_xattr=lambda name: name == b"security.capability"), ["security.capability"]),
    ],
    ids=["all", "none", "user", "capability"],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="trusted attributes need root")
def test_attributes_are_filtered_by_name(tmp_path: Path, options: ScanOptions, kept: list[str]) -> None:
    make_all_kinds(tmp_path / "source")
    try:
        for name, value in XATTRS.items():
            os.setxattr(tmp_path / "source" / "file", name, value)
        os.setxattr(tmp_path / "source" / "link", "trusted.t", b"t", follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        pytest.skip(f"the file system of tmp_path cannot have these attributes: {error}")
    root = scan_directory(tmp_path / "source", Algorithm.SHA256, options)
    # A label of SELinux may be there too where it is enabled.
    found = {name: value for name, value in root.children[b"file"].xattrs if name != b"security.selinux"}
    assert found == {name.encode(): XATTRS[name] for name in kept}
    assert list(found) == sorted(found)
    link = [name for name, _ in root.children[b"link"].xattrs if name != b"security.selinux"]
    assert link == ([b"trusted.t"] if "trusted.t" in kept else [])


@pytest.mark.parametrize(("files", "size"), [(60, 3000), (3, 10)])
def test_attributes_of_any_size_are_read(tmp_path: Path, files: int, size: int) -> None:
    (tmp_path / "source").mkdir()
    values = {b"%d" % number: b"%d" % number * size for number in range(files)}
    for name, value in values.items():
        path = os.fsencode(tmp_path / "source") + b"/" + name
        with open(path, "wb") as file:
            file.write(b"x" * 100)
        try:
            os.setxattr(path, "user.name", value[:size])
            os.setxattr(path, "user.empty", b"")
        except OSError as error:
            pytest.skip(f"the file system of tmp_path cannot have these attributes: {error}")
    root = scan_directory(tmp_path / "source", Algorithm.SHA256, ScanOptions(keep_xattr=is_users))
    assert {name: inode.xattrs for name, inode in root.children.items()} == {
        name: ((b"user.empty", b""), (b"user.name", value[:size])) for name, value in values.items()
    }


def is_users(name: bytes) -> bool:
    return name.startswith(b"user.")


@pytest.mark.parametrize("size", [1, 1000, 1 << 16, (1 << 16) + 1, 2 << 20])
def test_a_file_with_many_names_is_one_inode(tmp_path: Path, size: int) -> None:
    for number in range(100):
        (tmp_path / "source" / str(number)).mkdir(parents=True)
        if number:
            os.link(tmp_path / "source" / "0" / "name", tmp_path / "source" / str(number) / "name")
        else:
            (tmp_path / "source" / "0" / "name").write_bytes(content(size))
    root = scan_directory(tmp_path / "source", Algorithm.SHA256)
    found = {find(root, b"/%d/name" % number) for number in range(100)}
    assert [(inode.nlink, type(inode)) for inode in found if inode] == [
        (100, InlineFile if size == 1 else ExternalFile)
    ]


def test_names_of_one_file_share_an_inode(tmp_path: Path) -> None:
    make_all_kinds(tmp_path / "source")
    (tmp_path / "source" / "large").write_bytes(content(1000))
    os.link(tmp_path / "source" / "large", tmp_path / "source" / "directory" / "again")
    os.link(tmp_path / "source" / "large", tmp_path / "outside")
    os.link(tmp_path / "source" / "pipe", tmp_path / "source" / "pipe2")
    root = scan_directory(tmp_path / "source", Algorithm.SHA256)
    large = root.children[b"large"]
    assert find(root, b"/directory/again") is large
    assert large.nlink == 2
    assert root.children[b"pipe"] is root.children[b"pipe2"]
    apart = scan_directory(tmp_path / "source", Algorithm.SHA256, ScanOptions(hard_links=False))
    again = find(apart, b"/directory/again")
    assert isinstance(again, ExternalFile)
    assert again is not apart.children[b"large"]
    assert (again.nlink, again.digest) == (1, fsverity.digest(content(1000), Algorithm.SHA256))


def test_holes_are_zeros(tmp_path: Path, repo: Repository) -> None:
    (tmp_path / "source").mkdir()
    with open(tmp_path / "source" / "sparse", "wb") as file:
        file.truncate(6 << 20)
        file.seek(5 << 20)
        file.write(b"end")
    data = (tmp_path / "source" / "sparse").read_bytes()
    root = scan_and_store(state_of(repo), tmp_path / "source")
    assert digests(root) == {b"/sparse": fsverity.digest(data, repo.algorithm)}
    assert repo.read_object(digests(root)[b"/sparse"]) == data


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path / "source")
    os.mkdir(top)
    for name in (b"\xff\xfe", b"a\nb"):
        with open(os.path.join(top, name), "wb") as file:
            file.write(content(100))
    assert sorted(scan_directory(tmp_path / "source", Algorithm.SHA256).children) == [b"a\nb", b"\xff\xfe"]


def test_a_tree_deeper_than_any_path_is_read_with_few_descriptors(tmp_path: Path) -> None:
    depth, name = 300, "d" * 200
    (tmp_path / "source").mkdir()
    fd = os.open(tmp_path / "source", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("side", dir_fd=fd)
    os.close(fd)
    root = scan_directory(tmp_path / "source", Algorithm.SHA256)
    for _ in range(depth):
        below = root.children[name.encode()]
        assert isinstance(below, Directory)
        root = below
        assert {b"leaf", b"side"} <= set(root.children)


# -- what changes meanwhile --------------------------------------------------------------------


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    path.write_bytes(b"y" * path.stat().st_size)
    os.utime(path, ns=(1, 1))


def shrink(path: Path) -> None:
    os.truncate(path, 10)


@pytest.mark.parametrize("change", [grow, rewrite, shrink])
@pytest.mark.parametrize("store", [False, True], ids=["digest", "store"])
def test_a_large_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path,
    repo: Repository,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    store: bool,
) -> None:
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "file"
    path.write_bytes(content(5 << 20))
    taken = OpenFile.__init__

    def take(self: OpenFile, *arguments: Any) -> None:
        taken(self, *arguments)
        change(path)

    monkeypatch.setattr(OpenFile, "__init__", take)
    scan_it = partial(scan_and_store, state_of(repo)) if store else partial(scan_directory, algorithm=repo.algorithm)
    with pytest.raises(IntegrityError, match=r"source/file changed while it was read"):
        scan_it(tmp_path / "source")


# What is read through /proc has another size than it says.
@pytest.mark.skipif(not os.path.isdir("/proc/self/attr"), reason="needs /proc")
def test_a_file_that_is_longer_than_it_says_is_refused() -> None:
    with pytest.raises(IntegrityError, match=r"/proc/self/net/stat/\w+ changed while it was read"):
        scan_directory("/proc/self/net/stat", Algorithm.SHA256)


CHANGE = """
import os, sys
from composefs_async._repo import batch
from composefs_async._repo.scan import scan_and_store, scan_directory
from composefs_async.digest import Algorithm
from composefs_async.errors import IntegrityError
from composefs_async.repository import Repository, state_of
batch.NATIVE = sys.argv[1] == "native"
for change in ("grow", "rewrite", "shrink"):
    os.environ["CHANGE"] = change
    for source in sys.argv[3:]:
        try:
            if sys.argv[2]:
                with Repository.open_path(sys.argv[2]) as repo:
                    scan_and_store(state_of(repo), source)
            else:
                scan_directory(source, Algorithm.SHA256)
        except IntegrityError as error:
            print(error)
"""


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not on PATH")
    library = tmp_path_factory.mktemp("changing") / "changing.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, Path(__file__).with_name("changing.c")], check=True)
    return library


@pytest.mark.parametrize("store", [False, True], ids=["digest", "store"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    changing: Path, tmp_path: Path, repo: Repository, way: str, store: bool
) -> None:
    sources = [tmp_path / str(size) for size in (30, 1000, 3 << 20)]
    for source in sources:
        source.mkdir()
        (source / "file").write_bytes(content(int(source.name)))
    done = subprocess.run(
        [sys.executable, "-P", "-c", CHANGE, way, tmp_path / "repo" if store else "", *sources],
        env=preloading(changing), capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [f"{source}/file changed while it was read; scan again when nothing writes there" for source in sources]
    assert (done.returncode, done.stderr, done.stdout.splitlines()) == (0, "", said * 3)


class Listed(list[Any]):
    """What scandir gives, with something that happens behind it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def link_away(path: Path) -> None:
    path.unlink()
    path.symlink_to("../secret")


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (link_away, errno.ELOOP),
        (Path.unlink, errno.ENOENT),
        (make_pipe, IntegrityError),
        (make_directory, IntegrityError),
    ],
)
def test_a_name_that_changed_its_meaning_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], expected: int | type[Exception]
) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 100)
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "file"
    path.write_bytes(b"x")
    listing = os.scandir

    def list_and_change(fd: int) -> Listed:
        with listing(fd) as entries:
            listed = Listed(entries)
        change(path)
        return listed

    monkeypatch.setattr(scan.os, "scandir", list_and_change)
    with pytest.raises((OSError, IntegrityError), match=r"source/file") as caught:
        scan_directory(tmp_path / "source", Algorithm.SHA256)
    assert expected in (type(caught.value), getattr(caught.value, "errno", None))


# -- what cannot be read -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("missing", errno.ENOENT), ("source/file0", errno.ENOTDIR)])
def test_what_is_no_directory_is_named(tmp_path: Path, source: Path, name: str, number: int) -> None:
    with pytest.raises(OSError, match=name) as caught:
        scan_directory(tmp_path / name, Algorithm.SHA256)
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / name))


def test_an_error_of_a_worker_names_its_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(files: list[OpenFile], algorithm: Algorithm) -> list[ObjectId]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), files[0].path())

    monkeypatch.setattr(scan_content, "_digest_native", fail)
    monkeypatch.setattr(scan_content, "_digest_python", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        scan_directory(source, Algorithm.SHA256)
    assert os.path.isfile(caught.value.filename)


def test_an_object_that_cannot_be_stored_is_named(source: Path, tmp_path: Path, repo: Repository) -> None:
    object_id = fsverity.digest(content(4095), repo.algorithm)
    (tmp_path / "repo" / "objects").mkdir(exist_ok=True)
    (tmp_path / "repo" / "objects" / object_id.path[:2]).touch()
    with pytest.raises(OSError, match=r"Not a directory") as caught:
        scan_and_store(state_of(repo), source)
    assert caught.value.filename == f"{tmp_path}/repo/objects/{object_id.path}"


@pytest.mark.anyio
async def test_the_repository_scans_in_both_forms(repo: Repository, source: Path) -> None:
    assert digests(repo.scan_directory(source)) == expected(repo.algorithm)
    assert digests(await repo.scan_directory_async(source)) == expected(repo.algorithm)


@pytest.mark.parametrize("size", [0, INLINE_MAX, INLINE_MAX + 1, 5000, 2 << 20])
@pytest.mark.parametrize("names", [2, 3])
def test_names_of_one_file_share_its_inode(tmp_path: Path, size: int, names: int) -> None:
    (tmp_path / "name0").write_bytes(content(size))
    for number in range(1, names):
        os.link(tmp_path / "name0", tmp_path / f"name{number}")
    found = scan_directory(tmp_path, Algorithm.SHA256)
    assert len(found.children) == names
    assert len(set(map(id, found.children.values()))) == 1
    assert found.children[b"name0"].nlink == names
    apart = scan_directory(tmp_path, Algorithm.SHA256, ScanOptions(hard_links=False))
    assert len(set(map(id, apart.children.values()))) == names
