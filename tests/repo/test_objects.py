from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async import fsverity
from composefs_async._repo import batch
from composefs_async._sys import files
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import AlgorithmMismatchError, DigestMismatchError, IntegrityError, ObjectNotFoundError
from composefs_async.repository import Repository, state_of
from composefs_async.results import StoredObject, StoreOutcome

SIZES = [0, 1, 64, 65, 4095, 4096, 4097, 300_000]

Store = Callable[[Repository, bytes], StoredObject]


def by_tmpfile(repo: Repository, data: bytes) -> StoredObject:
    fd = repo.create_object_tmpfile()
    os.write(fd, data)
    return repo.finalize_object_tmpfile(fd, len(data))


def by_batch(repo: Repository, data: bytes) -> StoredObject:
    return repo.ensure_objects([data])[0]


def by_python_batch(repo: Repository, data: bytes) -> StoredObject:
    (object_id,), (outcome,), failures = batch._store_python(state_of(repo), [data])
    assert not failures
    return StoredObject(object_id, len(data), StoreOutcome(outcome))


WAYS = {"one": Repository.ensure_object, "tmpfile": by_tmpfile, "batch": by_batch, "python batch": by_python_batch}
ways = pytest.mark.parametrize("store", WAYS.values(), ids=WAYS)


def path_of(repo: Repository, object_id: ObjectId) -> Path:
    return Path(repo.path) / "objects" / object_id.path


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def leftovers(repo: Repository) -> list[str]:
    return [str(path) for path in Path(repo.path).rglob("*") if path.name.startswith(".")]


@ways
@pytest.mark.parametrize("size", SIZES)
def test_an_object_is_stored_once_under_its_digest(repo: Repository, store: Store, size: int) -> None:
    data = pattern(size)
    object_id = fsverity.digest(data, repo.algorithm)
    assert store(repo, data) == StoredObject(object_id, size, StoreOutcome.STORED)
    assert store(repo, data) == StoredObject(object_id, size, StoreOutcome.PRESENT)
    assert path_of(repo, object_id).read_bytes() == data
    assert path_of(repo, object_id).stat().st_mode & 0o777 == 0o644
    assert path_of(repo, object_id).stat().st_nlink == 1
    assert repo.read_object(object_id) == data
    assert leftovers(repo) == []


@ways
def test_an_object_of_the_wrong_size_is_replaced(repo: Repository, store: Store) -> None:
    stored = store(repo, b"right")
    path_of(repo, stored.id).write_bytes(b"")
    assert store(repo, b"right").outcome is StoreOutcome.REPLACED
    assert path_of(repo, stored.id).read_bytes() == b"right"
    assert leftovers(repo) == []


@ways
def test_a_link_in_the_place_of_an_object_is_replaced_and_not_followed(
    repo: Repository, store: Store, tmp_path: Path
) -> None:
    stored = store(repo, b"right")
    path_of(repo, stored.id).unlink()
    (tmp_path / "other").write_bytes(b"other")
    path_of(repo, stored.id).symlink_to(tmp_path / "other")
    assert store(repo, b"right").outcome is StoreOutcome.REPLACED
    assert not path_of(repo, stored.id).is_symlink()
    assert (tmp_path / "other").read_bytes() == b"other"


@ways
def test_without_o_tmpfile_objects_are_stored_by_a_named_temporary_file(
    repo: Repository, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(files, "_tmpfile_refused", set())
    monkeypatch.setattr(batch, "NATIVE", False)
    stored = store(repo, b"content")
    assert path_of(repo, stored.id).read_bytes() == b"content"
    assert files._tmpfile_refused == {os.stat(repo.path).st_dev}
    assert store(repo, b"content").outcome is StoreOutcome.PRESENT
    path_of(repo, stored.id).write_bytes(b"bad")
    assert store(repo, b"content").outcome is StoreOutcome.REPLACED
    assert leftovers(repo) == []


def test_a_batch_keeps_the_order_and_stores_equal_contents_once(repo: Repository) -> None:
    contents = [b"a", b"b", b"a", b"c" * 5000, b"b"]
    stored = repo.ensure_objects(contents)
    assert [found.id for found in stored] == [fsverity.digest(data, repo.algorithm) for data in contents]
    assert sorted(found.outcome for found in stored) == [StoreOutcome.STORED] * 3 + [StoreOutcome.PRESENT] * 2


def test_many_threads_that_store_the_same_objects_all_succeed(repo: Repository) -> None:
    contents = [pattern(size) for size in range(100, 300)]
    results: list[list[StoredObject]] = []
    threads = [threading.Thread(target=lambda: results.append(repo.ensure_objects(contents))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes = [sorted(found.outcome for found in column) for column in zip(*results, strict=True)]
    assert outcomes == [[StoreOutcome.STORED] + [StoreOutcome.PRESENT] * 3] * 200


def test_a_failed_object_of_a_batch_leaves_the_others_stored(repo: Repository) -> None:
    bad = fsverity.digest(b"bad", repo.algorithm)
    shard = Path(repo.path) / "objects" / bad.path[:2]
    good = next(data for data in (b"%d" % n for n in range(99)) if fsverity.digest(data, repo.algorithm)[0] != bad[0])
    repo.objects_dir()
    shard.touch()  # a file where a directory should be
    with pytest.raises(OSError, match=bad.path[3:13]):
        repo.ensure_objects([b"bad", good])
    assert repo.read_object(fsverity.digest(good, repo.algorithm)) == good


@pytest.mark.parametrize("size", [3, 8])
def test_a_tmpfile_of_another_size_than_announced_is_refused_and_closed(repo: Repository, size: int) -> None:
    fd = repo.create_object_tmpfile()
    os.write(fd, b"12345")
    with pytest.raises(IntegrityError, match="5 bytes"):
        repo.finalize_object_tmpfile(fd, size)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert list(Path(repo.path, "objects").iterdir()) == []


def test_a_missing_object_is_not_found(repo: Repository) -> None:
    object_id = fsverity.digest(b"never stored", repo.algorithm)
    with pytest.raises(ObjectNotFoundError, match=object_id.hex()):
        repo.open_object(object_id)


def test_an_id_of_the_other_algorithm_is_refused(repo: Repository) -> None:
    (other,) = set(Algorithm) - {repo.algorithm}
    with pytest.raises(AlgorithmMismatchError):
        repo.open_object(fsverity.digest(b"x", other))


def test_reading_a_changed_object_is_an_error(repo: Repository) -> None:
    stored = repo.ensure_object(b"right")
    path_of(repo, stored.id).write_bytes(b"wrong")
    with pytest.raises(DigestMismatchError) as caught:
        repo.read_object(stored.id)
    assert caught.value.expected == stored.id.hex()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_opened_for_an_object(repo: Repository, make: Callable[[str], None]) -> None:
    stored = repo.ensure_object(b"content")
    path = os.path.join(repo.path, "objects", stored.id.path)
    os.unlink(path)
    make(path)
    for read in (repo.open_object, repo.read_object):
        with pytest.raises(IntegrityError, match=f"{stored.id.hex()} is no regular file"):
            read(stored.id)


def test_reading_an_object_larger_than_allowed_is_an_error(repo: Repository) -> None:
    stored = repo.ensure_object(b"12345")
    assert repo.read_object(stored.id, max_size=5) == b"12345"
    with pytest.raises(IntegrityError, match="5 bytes"):
        repo.read_object(stored.id, max_size=4)


def test_descriptors_are_closed_on_exec(repo: Repository) -> None:
    stored = repo.ensure_object(b"x")
    for fd in (repo.objects_dir(), made := repo.open_object(stored.id)):
        assert not os.get_inheritable(fd)
    os.close(made)
