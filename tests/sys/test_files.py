"""Temporary files, links, flushes and locks."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from composefs_async._sys import files
from composefs_async._sys.files import TMPFILE_PREFIX, Tmpfile


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    with files.opened(str(tmp_path), os.O_RDONLY | os.O_DIRECTORY) as fd:
        yield fd


def _refusing(number: int) -> Callable[..., int]:
    real = os.open

    def refuse(path: str, flags: int, *arguments: object, **options: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *arguments, **options)  # type: ignore[arg-type]

    return refuse


class _Linkat:
    """The C library, whose linkat(2) fails if it is to, and counts the calls."""

    def __init__(self, number: int) -> None:
        self._number, self.calls = number, 0

    def linkat(self, *arguments: object) -> int:
        self.calls += 1
        if not self._number:
            return int(ctypes.CDLL(None, use_errno=True).linkat(*arguments))
        ctypes.set_errno(self._number)
        return -1


@pytest.fixture(params=["unnamed", "through /proc", "named"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Temporary files without a name, linked in either way, and those of file systems that refuse O_TMPFILE."""
    monkeypatch.setattr(files, "_tmpfile_refused", set())
    monkeypatch.setattr(Tmpfile, "_by_descriptor", True)
    if request.param == "through /proc":
        monkeypatch.setattr(files, "_libc", _Linkat(errno.ENOENT))
    if request.param == "named":
        monkeypatch.setattr(os, "open", _refusing(errno.EOPNOTSUPP))
    kind: str = request.param
    return kind


def filled(directory: int, content: bytes = b"content", mode: int = 0o644) -> Tmpfile:
    tmpfile = Tmpfile.create(".", mode, dir_fd=directory)
    files.write_all(tmpfile.fd, content)
    return tmpfile


def contents(path: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in path.iterdir()}


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# -- temporary files ---------------------------------------------------------------------------


def test_temporary_file_has_a_name_only_where_it_must(kind: str, directory: int, tmp_path: Path) -> None:
    tmpfile = filled(directory)
    found = os.listdir(tmp_path)
    assert len(found) == (kind == "named")
    assert all(name.startswith(TMPFILE_PREFIX) for name in found)
    assert os.get_inheritable(tmpfile.fd) is False
    tmpfile.discard()


def test_linked_file_has_only_its_name(kind: str, directory: int, tmp_path: Path) -> None:
    tmpfile = filled(directory)
    tmpfile.link("name", dir_fd=directory)
    tmpfile.discard()
    assert contents(tmp_path) == {"name": b"content"}
    assert not is_open(tmpfile.fd)


def test_file_is_linked_in_another_directory(kind: str, directory: int, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    tmpfile = filled(directory)
    tmpfile.link("sub/name", dir_fd=directory)
    tmpfile.discard()
    assert os.listdir(tmp_path) == ["sub"]
    assert contents(tmp_path / "sub") == {"name": b"content"}


def test_link_does_not_overwrite_and_can_be_tried_again(kind: str, directory: int, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"first")
    tmpfile = filled(directory)
    with pytest.raises(FileExistsError):
        tmpfile.link("taken", dir_fd=directory)
    tmpfile.link("free", dir_fd=directory)
    tmpfile.discard()
    assert contents(tmp_path) == {"taken": b"first", "free": b"content"}


@pytest.mark.parametrize("before", [None, b"old"])
def test_replace_puts_the_file_in_place(kind: str, directory: int, tmp_path: Path, before: bytes | None) -> None:
    if before is not None:
        (tmp_path / "name").write_bytes(before)
    tmpfile = filled(directory)
    tmpfile.replace("name", dir_fd=directory)
    tmpfile.discard()
    assert contents(tmp_path) == {"name": b"content"}


def test_replace_keeps_what_an_open_descriptor_sees(kind: str, directory: int, tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"old")
    with (tmp_path / "name").open("rb") as old:
        tmpfile = filled(directory)
        tmpfile.replace("name", dir_fd=directory)
        tmpfile.discard()
        assert old.read() == b"old"


def test_replace_of_a_directory_fails_and_leaves_nothing(kind: str, directory: int, tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    tmpfile = filled(directory)
    with pytest.raises(IsADirectoryError):
        tmpfile.replace("name", dir_fd=directory)
    tmpfile.discard()
    assert os.listdir(tmp_path) == ["name"]
    assert (tmp_path / "name").is_dir()


def test_discarded_file_leaves_nothing(kind: str, directory: int, tmp_path: Path) -> None:
    tmpfile = filled(directory)
    tmpfile.discard()
    assert os.listdir(tmp_path) == []
    assert not is_open(tmpfile.fd)


def test_mode_is_set(kind: str, directory: int, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        tmpfile = filled(directory, mode=0o640)
    finally:
        os.umask(before)
    tmpfile.link("name", dir_fd=directory)
    tmpfile.discard()
    assert (tmp_path / "name").stat().st_mode & 0o7777 == 0o640


def test_read_only_descriptor_keeps_its_number_and_the_content(kind: str, directory: int, tmp_path: Path) -> None:
    tmpfile = filled(directory)
    number = tmpfile.fd
    tmpfile.make_read_only()
    assert tmpfile.fd == number
    assert os.get_inheritable(number) is False
    assert fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert os.pread(number, 100, 0) == b"content"
    tmpfile.link("name", dir_fd=directory)
    tmpfile.discard()
    assert contents(tmp_path) == {"name": b"content"}


def test_adopted_file_is_linked(kind: str, directory: int, tmp_path: Path) -> None:
    tmpfile = Tmpfile.adopt(filled(directory).fd)
    tmpfile.link("name", dir_fd=directory)
    tmpfile.discard()
    assert contents(tmp_path) == {"name": b"content"}


def test_adopted_file_is_discarded(kind: str, directory: int, tmp_path: Path) -> None:
    tmpfile = Tmpfile.adopt(filled(directory).fd)
    tmpfile.discard()
    assert os.listdir(tmp_path) == []
    assert not is_open(tmpfile.fd)


def test_adopted_file_of_somebody_else_is_not_removed(directory: int, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"theirs")
    Tmpfile.adopt(os.open(tmp_path / "precious", os.O_RDWR)).discard()
    assert contents(tmp_path) == {"precious": b"theirs"}


@pytest.mark.parametrize(
    "number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EISDIR, errno.EINVAL], ids=errno.errorcode.get
)
def test_every_way_to_refuse_gives_a_named_file(
    number: int, directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_tmpfile_refused", set())
    monkeypatch.setattr(os, "open", _refusing(number))
    tmpfile = filled(directory)
    assert [name.startswith(TMPFILE_PREFIX) for name in os.listdir(tmp_path)] == [True]
    tmpfile.discard()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EMFILE], ids=errno.errorcode.get)
def test_other_errors_pass_through(
    number: int, directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_tmpfile_refused", set())
    monkeypatch.setattr(os, "open", _refusing(number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        Tmpfile.create(".", 0o600, dir_fd=directory)
    assert caught.value.errno == number
    assert os.listdir(tmp_path) == []
    assert files._tmpfile_refused == set()


def test_device_that_refused_is_not_asked_again(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    refuse = _refusing(errno.EOPNOTSUPP)

    def watching(path: str, flags: int, *arguments: object, **options: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            asked.append(path)
        return refuse(path, flags, *arguments, **options)

    monkeypatch.setattr(files, "_tmpfile_refused", set())
    monkeypatch.setattr(os, "open", watching)
    for _ in range(3):
        filled(directory).discard()
    assert asked == ["."]


def test_error_of_a_missing_directory_does_not_count_as_refusal(directory: int) -> None:
    with pytest.raises(FileNotFoundError):
        Tmpfile.create("missing", 0o600, dir_fd=directory)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EPERM, errno.EINVAL], ids=errno.errorcode.get)
def test_whoever_may_not_link_by_descriptor_does_not_try_again(
    number: int, directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linkat = _Linkat(number)
    monkeypatch.setattr(files, "_libc", linkat)
    monkeypatch.setattr(Tmpfile, "_by_descriptor", True)
    for name in ("one", "two"):
        tmpfile = filled(directory)
        tmpfile.link(name, dir_fd=directory)
        tmpfile.discard()
    assert linkat.calls == 1
    assert contents(tmp_path) == {"one": b"content", "two": b"content"}


def test_link_into_a_missing_directory_does_not_count_as_refusal(
    directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    linkat = _Linkat(0)
    monkeypatch.setattr(files, "_libc", linkat)
    monkeypatch.setattr(Tmpfile, "_by_descriptor", True)
    tmpfile = filled(directory)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            tmpfile.link("missing/name", dir_fd=directory)
    tmpfile.discard()
    assert (linkat.calls, Tmpfile._by_descriptor) == (0, True)  # the directory is opened before


def test_other_errors_of_a_link_by_descriptor_name_the_path(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_libc", _Linkat(errno.ENOSPC))
    monkeypatch.setattr(Tmpfile, "_by_descriptor", True)
    tmpfile = filled(directory)
    with pytest.raises(OSError, match="No space left on device: 'name'"):
        tmpfile.link("name", dir_fd=directory)
    tmpfile.discard()


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_all_is_written_however_little_a_call_takes(
    size: int, form: Callable[[bytes], bytes], directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: real(fd, view[:700_001]))
    tmpfile = filled(directory, form(data))
    assert os.pread(tmpfile.fd, size + 1, 0) == data
    tmpfile.discard()


# -- directories and symbolic links ------------------------------------------------------------


def test_directory_is_made_once(directory: int, tmp_path: Path) -> None:
    files.make_directory("sub", 0o700, dir_fd=directory)
    files.make_directory("sub", 0o755, dir_fd=directory)
    assert (tmp_path / "sub").stat().st_mode & 0o7777 == 0o700
    with pytest.raises(FileNotFoundError):
        files.make_directory("missing/sub", 0o700, dir_fd=directory)


@pytest.mark.parametrize("before", [None, "target", "elsewhere", "missing/target"])
def test_symlink_is_put_in_place(before: str | None, directory: int, tmp_path: Path) -> None:
    if before is not None:
        (tmp_path / "link").symlink_to(before)
    for _ in range(2):
        files.replace_symlink("target", "link", dir_fd=directory)
        assert {found.name: os.readlink(found) for found in tmp_path.iterdir()} == {"link": "target"}


def test_symlink_is_put_below_a_directory(directory: int, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link").symlink_to("../old")
    files.replace_symlink("../target", "sub/link", dir_fd=directory)
    assert os.listdir(tmp_path) == ["sub"]
    assert {found.name: os.readlink(found) for found in (tmp_path / "sub").iterdir()} == {"link": "../target"}


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir], ids=["file", "directory"])
def test_what_is_no_symlink_is_not_replaced(make: Callable[[Path], None], directory: int, tmp_path: Path) -> None:
    make(tmp_path / "link")
    with pytest.raises(OSError, match="link"):
        files.replace_symlink("target", "link", dir_fd=directory)
    assert os.listdir(tmp_path) == ["link"]
    assert not (tmp_path / "link").is_symlink()


def test_failing_rename_leaves_no_temporary_link(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    (tmp_path / "link").symlink_to("old")
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="quota"):
        files.replace_symlink("target", "link", dir_fd=directory)
    assert {found.name: os.readlink(found) for found in tmp_path.iterdir()} == {"link": "old"}


def test_symlink_is_never_missing_or_half_while_many_replace_it(directory: int, tmp_path: Path) -> None:
    targets = [f"target-{number}" for number in range(4)]
    files.replace_symlink(targets[0], "link", dir_fd=directory)
    errors: list[BaseException] = []

    def replace(target: str) -> None:
        try:
            for _ in range(200):
                files.replace_symlink(target, "link", dir_fd=directory)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=replace, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    seen: set[str] = set()
    while any(thread.is_alive() for thread in threads):
        seen.add(os.readlink("link", dir_fd=directory))
    for thread in threads:
        thread.join()
    assert errors == []
    assert seen <= set(targets)
    assert os.listdir(tmp_path) == ["link"]


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "second", "expected"),
    [
        (None, None, "R/dir"),
        (".", None, "R/dir"),
        ("file", None, "R/dir/file"),
        ("target", "link", "R/dir/link"),
        ("/proc/self/fd/3", "link", "R/dir/link"),
        ("/elsewhere", None, "/elsewhere"),
        ("R/dir", None, "R/dir"),
        ("R/dir/file", None, "R/dir/file"),
        ("R/directory", None, "R/dir/R/directory"),
        (7, None, "R/dir"),
    ],
)
def test_error_is_placed_below_a_directory(name: Any, second: Any, expected: str) -> None:
    with pytest.raises(OSError, match="out of") as caught, files.naming("R/dir"):
        raise OSError(errno.ENOSPC, "out of space", name, None, second)
    assert (caught.value.filename, caught.value.filename2) == (expected, None)


def test_failing_write_names_the_file_or_where_it_will_be(tmp_path: Path, directory: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    named = os.open(tmp_path / "named", os.O_CREAT | os.O_WRONLY)
    unnamed = files.Tmpfile.create(".", 0o644, dir_fd=directory)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        for fd, place in ((named, tmp_path / "named"), (unnamed.fd, tmp_path)):
            with pytest.raises(OSError, match="File too large") as caught:
                files.write_all(fd, bytes(11))
            assert caught.value.filename == str(place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.close(named)
        unnamed.discard()


# -- flushes -----------------------------------------------------------------------------------


def test_directories_are_flushed(directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    flushed: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    files.syncfs(directory)
    files.fsync_directory("sub", dir_fd=directory)
    files.fsync_directory(".", dir_fd=directory)
    assert flushed == [str(tmp_path / "sub"), str(tmp_path)]


@pytest.mark.parametrize(("name", "kind"), [("missing", FileNotFoundError), ("file", NotADirectoryError)])
def test_flush_of_no_directory_names_it(name: str, kind: type[OSError], directory: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(kind) as caught:
        files.fsync_directory(name, dir_fd=directory)
    assert caught.value.filename == name


def test_failing_syncfs_tells_which_file_system(tmp_path: Path) -> None:
    # A descriptor made with O_PATH is refused, and has a path all the same.
    with files.opened(str(tmp_path), os.O_PATH) as fd, pytest.raises(OSError, match="Bad file descriptor") as caught:
        files.syncfs(fd)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, str(tmp_path))


# -- descriptors -------------------------------------------------------------------------------


def test_opened_closes_also_after_an_error(tmp_path: Path) -> None:
    seen: list[int] = []

    def fail() -> None:
        with files.opened(str(tmp_path), os.O_RDONLY) as fd:
            seen.append(fd)
            assert os.get_inheritable(fd) is False
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [is_open(fd) for fd in seen] == [False]
