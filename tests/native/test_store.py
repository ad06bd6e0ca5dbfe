"""The batch store on a file system without fs-verity."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.fsverity import _python

STORED, PRESENT, REPLACED, FAILED = 0, 1, 2, 255
CONTENTS = [b"", b"hello world", bytes(4096), bytes(range(256)) * 100, b"x" * 1_100_000]


def identify(contents: list[bytes], algorithm: Algorithm) -> list[ObjectId]:
    return [_python.digest(content, algorithm) for content in contents]


def files_below(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if not path.is_dir()}


def path_of(tmp_path: Path, content: bytes, algorithm: Algorithm = Algorithm.SHA256) -> Path:
    return tmp_path / "objects" / _python.digest(content, algorithm).path


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("tmpfile", [True, False])
@pytest.mark.parametrize("verity", [0, 1])
@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_batch_is_stored_under_its_digests(
    core: ModuleType, objects: int, tmp_path: Path, algorithm: Algorithm, verity: int, tmpfile: bool
) -> None:
    ids = identify(CONTENTS, algorithm)
    found, outcomes, failures, _ = core.store(objects, CONTENTS, algorithm.number, verity, tmpfile)
    assert (found, list(outcomes), failures) == (b"".join(ids), [STORED] * len(CONTENTS), [])
    assert files_below(tmp_path / "objects") == {
        each.path: content for each, content in zip(ids, CONTENTS, strict=True)
    }
    found, outcomes, failures, supported = core.store(objects, CONTENTS, algorithm.number, verity, tmpfile)
    assert (found, list(outcomes), failures) == (b"".join(ids), [PRESENT] * len(CONTENTS), [])
    assert supported == -1  # nothing was written, so nothing called for it


@pytest.mark.parametrize("tmpfile", [True, False])
def test_modes_follow_the_umask(core: ModuleType, objects: int, tmp_path: Path, tmpfile: bool) -> None:
    before = os.umask(0o027)
    try:
        core.store(objects, [b"hello world"], 1, 0, tmpfile)
    finally:
        os.umask(before)
    path = path_of(tmp_path, b"hello world")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent)] == [0o640, 0o750]


def test_equal_items_of_a_batch_are_stored_once(core: ModuleType, objects: int) -> None:
    _, outcomes, failures, _ = core.store(objects, [b"a", b"b", b"a", b"a"], 2, 0)
    assert (list(outcomes), failures) == ([STORED, STORED, PRESENT, PRESENT], [])


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("tmpfile", [True, False])
@pytest.mark.parametrize("size", [10, 64 << 10, (64 << 10) + 1])
def test_what_is_there_is_met_behind_a_row_of_new_objects(
    core: ModuleType, objects: int, tmp_path: Path, size: int, tmpfile: bool
) -> None:
    present, damaged = b"p" * size, b"d" * size
    core.store(objects, [present, damaged], 1, 0)
    path_of(tmp_path, damaged).write_bytes(b"cut")
    inode = path_of(tmp_path, present).stat().st_ino
    new = [b"new %d" % number for number in range(60)]
    batch = [*new[:30], present, *new[30:45], damaged, *new[45:], present]
    _, outcomes, failures, _ = core.store(objects, batch, 1, 0, tmpfile)
    expected = {present: PRESENT, damaged: REPLACED}
    assert (list(outcomes), failures) == ([expected.get(content, STORED) for content in batch], [])
    assert path_of(tmp_path, damaged).read_bytes() == damaged
    assert path_of(tmp_path, present).stat().st_ino == inode
    assert len(files_below(tmp_path / "objects")) == 62


def test_empty_batch(core: ModuleType, objects: int) -> None:
    assert core.store(objects, [], 2, 1) == (b"", b"", [], -1)


def test_slices_of_a_larger_buffer(core: ModuleType, objects: int, tmp_path: Path) -> None:
    view = memoryview(bytearray(b"head" + bytes(5000) + b"tail"))
    core.store(objects, [view[4:5004], view[5004:]], 1, 0)
    assert sorted(files_below(tmp_path / "objects").values()) == [bytes(5000), b"tail"]


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("tmpfile", [True, False])
@pytest.mark.parametrize("verity", [0, 1])
@pytest.mark.parametrize("intruder", ["shorter", "longer", "symbolic link", "dangling link", "fifo"])
def test_what_cannot_be_the_object_is_replaced(
    core: ModuleType, objects: int, tmp_path: Path, intruder: str, verity: int, tmpfile: bool
) -> None:
    path = path_of(tmp_path, b"hello world")
    path.parent.mkdir()
    match intruder:
        case "shorter":
            path.write_bytes(b"hello")
        case "longer":
            path.write_bytes(b"hello world, and all the others")
        case "symbolic link":
            (tmp_path / "elsewhere").write_bytes(b"hello world")
            path.symlink_to(tmp_path / "elsewhere")
        case "dangling link":
            path.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(path)
    _, outcomes, failures, _ = core.store(objects, [b"hello world"], 1, verity, tmpfile)
    assert (list(outcomes), failures) == ([REPLACED], [])
    assert path.is_file()
    assert not path.is_symlink()
    assert files_below(tmp_path / "objects") == {str(path.relative_to(tmp_path / "objects")): b"hello world"}


@pytest.mark.parametrize("tmpfile", [True, False])
def test_directory_in_the_way_fails_and_leaves_nothing(
    core: ModuleType, objects: int, tmp_path: Path, tmpfile: bool
) -> None:
    path_of(tmp_path, b"hello world").mkdir(parents=True)
    _, outcomes, failures, _ = core.store(objects, [b"a", b"hello world", b"b"], 1, 0, tmpfile)
    assert (list(outcomes), failures) == ([STORED, FAILED, STORED], [(1, errno.EISDIR, "replace")])
    assert sorted(files_below(tmp_path / "objects").values()) == [b"a", b"b"]


@pytest.mark.parametrize("tmpfile", [True, False])
def test_file_instead_of_the_directory_fails_for_its_objects_only(
    core: ModuleType, objects: int, tmp_path: Path, tmpfile: bool
) -> None:
    path_of(tmp_path, b"hello world").parent.write_bytes(b"not a directory")
    _, outcomes, failures, _ = core.store(objects, [b"a", b"hello world", b"b"], 1, 0, tmpfile)
    assert (list(outcomes), failures) == ([STORED, FAILED, STORED], [(1, errno.ENOTDIR, "stat")])


@pytest.mark.parametrize("tmpfile", [True, False])
def test_secure_store_fails_without_fsverity_and_leaves_nothing(
    core: ModuleType, objects: int, tmp_path: Path, tmpfile: bool
) -> None:
    found, outcomes, failures, supported = core.store(objects, CONTENTS, 2, 2, tmpfile)
    if supported:
        pytest.skip("this file system has fs-verity")
    assert found == b"".join(identify(CONTENTS, Algorithm.SHA512))
    assert set(outcomes) == {FAILED}
    assert {(number, step) for _, number, step in failures} <= {
        (errno.EOPNOTSUPP, "verity"),
        (errno.ENOTTY, "verity"),
    }
    assert [index for index, _, _ in failures] == list(range(len(CONTENTS)))
    assert files_below(tmp_path / "objects") == {}


def test_whether_fsverity_is_supported_is_found_out_once(core: ModuleType, objects: int) -> None:
    assert core.store(objects, [b"a"], 1, 0)[3] == -1
    assert core.store(objects, [b"b", b"c"], 1, 1)[3] in (0, 1)


@pytest.mark.parametrize("tmpfile", [True, False])
@pytest.mark.parametrize("verity", [0, 1])
def test_closed_descriptor_is_a_failure_of_each_item(core: ModuleType, verity: int, tmpfile: bool) -> None:
    _, outcomes, failures, _ = core.store(-1, [b"a", b"b"], 1, verity, tmpfile)
    assert (list(outcomes), failures) == ([FAILED] * 2, [(0, errno.EBADF, "stat"), (1, errno.EBADF, "stat")])


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Root may write everywhere, so become somebody else for the test."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("tmpfile", [True, False])
@pytest.mark.parametrize("verity", [0, 1])
def test_read_only_directory(
    core: ModuleType, objects: int, verity: int, tmpfile: bool, request: pytest.FixtureRequest
) -> None:
    os.fchmod(objects, 0o555)
    request.getfixturevalue("unprivileged")
    _, outcomes, failures, _ = core.store(objects, [b"a", b"b"], 1, verity, tmpfile)
    assert (list(outcomes), failures) == ([FAILED] * 2, [(0, errno.EACCES, "mkdir"), (1, errno.EACCES, "mkdir")])


@pytest.mark.parametrize("tmpfile", [True, False])
@pytest.mark.parametrize("verity", [0, 1])
def test_unprivileged_users_can_store(
    core: ModuleType, objects: int, tmp_path: Path, verity: int, tmpfile: bool, request: pytest.FixtureRequest
) -> None:
    os.fchmod(objects, 0o777)
    request.getfixturevalue("unprivileged")
    _, outcomes, failures, _ = core.store(objects, CONTENTS, 1, verity, tmpfile)
    assert (list(outcomes), failures) == ([STORED] * len(CONTENTS), [])


@pytest.mark.parametrize("tmpfile", [True, False])
@pytest.mark.parametrize("verity", [0, 1])
def test_error_that_all_would_meet_ends_the_batch(
    core: ModuleType, objects: int, tmp_path: Path, verity: int, tmpfile: bool
) -> None:
    core.store(objects, [b"there"], 1, 0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # descriptors 0 to 2 are in use
    try:
        found, outcomes, failures, _ = core.store(objects, [b"there", b"new", b"other", b"there"], 1, verity, tmpfile)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found == b"".join(identify([b"there", b"new", b"other", b"there"], Algorithm.SHA256))
    assert list(outcomes) == [PRESENT, FAILED, FAILED, FAILED]
    assert failures == [(index, errno.EMFILE, "create") for index in (1, 2, 3)]
    assert list(files_below(tmp_path / "objects").values()) == [b"there"]


@pytest.mark.parametrize("tmpfile", [True, False])
def test_content_that_cannot_be_written_leaves_nothing(
    core: ModuleType, objects: int, tmp_path: Path, tmpfile: bool
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        _, outcomes, failures, _ = core.store(objects, [b"a", bytes(200_000), b"b"], 1, 1, tmpfile)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (list(outcomes), failures) == ([STORED, FAILED, STORED], [(1, errno.EFBIG, "write")])
    assert sorted(files_below(tmp_path / "objects").values()) == [b"a", b"b"]


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("tmpfile", [True, False])
def test_racing_threads_store_every_object_once(core: ModuleType, objects: int, tmp_path: Path, tmpfile: bool) -> None:
    contents = [bytes([index % 256, index // 256]) * 50 for index in range(300)]
    results: list[bytes] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        results.append(core.store(objects, contents, 2, 0, tmpfile)[1])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(b"".join(results))) == [STORED, PRESENT]
    assert [sorted(each).count(STORED) for each in zip(*results, strict=True)] == [1] * len(contents)
    assert sorted(files_below(tmp_path / "objects").values()) == sorted(contents)


@pytest.mark.parametrize("verity", [-1, 3])
def test_unknown_verity_is_refused(core: ModuleType, objects: int, verity: int) -> None:
    with pytest.raises(ValueError, match="verity is 0, 1 or 2"):
        core.store(objects, [], 1, verity)
