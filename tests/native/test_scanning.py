"""Many files looked at by their names in one native call."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from composefs_async._repo.scan.files import RECORD
from composefs_async.digest import Algorithm
from composefs_async.fsverity import _python

DONE, LEFT, CHANGED = 0, 1, 2
INLINE_MAX = 64


def content(size: int) -> bytes:
    return (b"%d bytes\n" % size * (size // 2 + 1))[:size]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "folder").mkdir()
    fd = os.open(tmp_path / "folder", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def make_file(folder: int, name: str, size: int) -> None:
    with open(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=folder), "wb") as file:
        file.write(content(size))


def outcomes(core: ModuleType, folder: int, *names: bytes) -> list[int]:
    found = core.scan_files([folder] * len(names), names, 1, INLINE_MAX, True, -1, 0)
    return [record[-1] for record in RECORD.iter_unpack(found[0])]


# More than a window of digests has, in number and in bytes.
SIZES = [0, 1, 63, 64, 65, 4096, 4097, (1 << 20) - 1, *[100] * 600, *[300_000] * 5, 7]


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("stored", [False, True], ids=["digest", "store"])
def test_all_is_said_of_every_file(
    core: ModuleType, tmp_path: Path, folder: int, objects: int, algorithm: Algorithm, stored: bool
) -> None:
    names = [b"%d" % index for index in range(len(SIZES))]
    for name, size in zip(names, SIZES, strict=True):
        make_file(folder, name.decode(), size)
        os.utime(name, ns=(0, -size), dir_fd=folder)
    os.chmod("3", 0o4751, dir_fd=folder)
    os.link("4", "../linked", src_dir_fd=folder, dst_dir_fd=folder)
    records, ids, contents, attributes, failure, works = core.scan_files(
        [folder] * len(names), names, algorithm.number, INLINE_MAX, False, objects if stored else -1, 0
    )
    assert [_stated(*record) for record in RECORD.iter_unpack(records)] == [_expected(folder, name) for name in names]
    large = [content(size) for size in SIZES if size > INLINE_MAX]
    assert ids == b"".join(_python.digest(each, algorithm) for each in large)
    assert contents == b"".join(content(size) for size in SIZES if size <= INLINE_MAX)
    assert (attributes, failure, works) == (b"", None, -1)
    paths = {_python.digest(each, algorithm).path: each for each in large} if stored else {}
    files = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path / "objects")): path.read_bytes() for path in files} == paths


def _stated(
    device: int, inode: int, size: int, seconds: int, nanoseconds: int, mode: int, links: int, *others: int
) -> tuple[Any, ...]:
    return device, inode, size, seconds * 1_000_000_000 + nanoseconds, mode, links, *others


def _expected(folder: int, name: bytes) -> tuple[Any, ...]:
    status = os.stat(name, dir_fd=folder)
    where = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    return *where, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, 0, DONE


def make_linked(folder: int, size: int) -> None:
    make_file(folder, "name", size)
    os.link("name", "other", src_dir_fd=folder, dst_dir_fd=folder)


@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        (lambda folder: make_file(folder, "name", (1 << 20) - 1), DONE),
        (lambda folder: make_file(folder, "name", 1 << 20), LEFT),
        (lambda folder: make_linked(folder, 1 << 16), DONE),
        (lambda folder: make_linked(folder, (1 << 16) + 1), LEFT),
        (lambda folder: None, LEFT),
        (lambda folder: os.mkdir("name", dir_fd=folder), LEFT),
        (lambda folder: os.mkfifo("name", dir_fd=folder), LEFT),
        (lambda folder: os.symlink("/dev/null", "name", dir_fd=folder), LEFT),
    ],
    ids=["fits", "large", "linked", "large and linked", "missing", "directory", "pipe", "symlink"],
)
def test_what_is_large_or_unusual_is_left(
    core: ModuleType, folder: int, make: Callable[[int], None], outcome: int
) -> None:
    make(folder)
    make_file(folder, "good", 1)
    assert outcomes(core, folder, b"good", b"name", b"good") == [DONE, outcome, DONE]


def test_directories_that_are_none_are_left(core: ModuleType) -> None:
    assert [*RECORD.iter_unpack(core.scan_files([-1, 2**40], [b"a", b"b"], 1, 0, True, -1, 0)[0])] == [
        (0,) * 10 + (LEFT,)
    ] * 2


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_a_file_that_is_longer_than_it_says_has_changed(core: ModuleType) -> None:
    proc = os.open("/proc/self", os.O_RDONLY)
    assert outcomes(core, proc, b"status") == [CHANGED]
    os.close(proc)


def test_attributes_are_packed_and_left_where_they_do_not_fit(core: ModuleType, folder: int, tmp_path: Path) -> None:
    names = [b"%d" % index for index in range(60)]
    try:
        for name in names:
            make_file(folder, name.decode(), 1)
            os.setxattr(tmp_path / "folder" / os.fsdecode(name), "user.name", name * 1500)
    except OSError as error:
        pytest.skip(f"the file system of tmp_path cannot have these attributes: {error}")
    found = core.scan_files([folder] * 60, names, 1, INLINE_MAX, True, -1, 0)
    each = [(record[-1], record[-2]) for record in RECORD.iter_unpack(found[0])]
    fitting = [name for name, (outcome, _) in zip(names, each, strict=True) if outcome == DONE]
    assert 0 < len(fitting) < 60
    for name in fitting:
        assert struct.pack("=II", 9, len(name) * 1500) + b"user.name" + name * 1500 in found[3]
    assert [outcome for outcome, _ in each if outcome != DONE] == [LEFT] * (60 - len(fitting))
    assert sum(size for _, size in each) == len(found[3])
    unread = core.scan_files([folder] * 60, names, 1, INLINE_MAX, False, -1, 0)
    assert [record[-2:] for record in RECORD.iter_unpack(unread[0])] == [(0, DONE)] * 60


def test_the_first_failure_to_store_is_told(core: ModuleType, folder: int, objects: int) -> None:
    for name in ("1", "2", "3"):
        make_file(folder, name, 100 + int(name))
    shard = _python.digest(content(102), Algorithm.SHA256).path[:2]
    os.close(os.open(shard, os.O_CREAT | os.O_WRONLY, dir_fd=objects))
    _, ids, _, _, failure, _ = core.scan_files([folder] * 3, [b"1", b"2", b"3"], 1, INLINE_MAX, True, objects, 0)
    assert failure == (1, errno.ENOTDIR, "stat")
    assert ids[32:64] == _python.digest(content(102), Algorithm.SHA256)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([0], [], 1, 0, True, -1, 0), ValueError),
        (([0], [b"a\0b"], 1, 0, True, -1, 0), ValueError),
        (([0], [b"a"], 3, 0, True, -1, 0), ValueError),
        (([0], [b"a"], 1, 4097, True, -1, 0), ValueError),
        (([0], [b"a"], 1, -1, True, -1, 0), ValueError),
        (([0], [b"a"], 1, 0, True, -1, 3), ValueError),
        (([0], ["a"], 1, 0, True, -1, 0), TypeError),
        (([None], [b"a"], 1, 0, True, -1, 0), TypeError),
        ((0, [b"a"], 1, 0, True, -1, 0), TypeError),
        (([0], 0, 1, 0, True, -1, 0), TypeError),
    ],
)
def test_wrong_arguments_are_refused(core: ModuleType, arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        core.scan_files(*arguments)


def test_no_names(core: ModuleType) -> None:
    assert core.scan_files([], [], 2, INLINE_MAX, True, -1, 0) == (b"", b"", b"", b"", None, -1)
