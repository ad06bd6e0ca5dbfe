"""The contract of every backend: one suite over all places that can be written."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from composefs_async.errors import BlobMissingError, StoreError
from composefs_async.exchange.backends.base import BlobStore, PreconditionError
from composefs_async.exchange.backends.directory import DirectoryStore
from composefs_async.exchange.backends.memory import MemoryStore
from composefs_async.exchange.backends.objectstore import ObjectStoreBackend

from .conftest import Server

CONTENT = bytes(range(256)) * 5000  # more than a piece


@pytest.fixture(params=["memory", "directory", "gofakes3", "versitygw"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    make: dict[str, Callable[[], BlobStore]] = {
        "memory": MemoryStore,
        "directory": lambda: DirectoryStore(tmp_path / "store"),
    }
    if request.param in make:
        made = make[request.param]()
    else:
        server: Server = request.getfixturevalue(request.param)
        made = ObjectStoreBackend(server.url(f"{uuid.uuid4()}/prefix"), server.endpoint)
    yield made
    made.close()


def test_what_is_put_comes_back_whole_and_in_parts(backend: BlobStore) -> None:
    backend.put("blobs/sha256/a", CONTENT)
    assert b"".join(backend.get("blobs/sha256/a")) == CONTENT
    assert b"".join(backend.get("blobs/sha256/a", 5, 10)) == CONTENT[5:15]
    assert b"".join(backend.get("blobs/sha256/a", 1, len(CONTENT) - 1)) == CONTENT[1:]
    backend.put("blobs/sha256/a", b"other")
    assert b"".join(backend.get("blobs/sha256/a")) == b"other"


def test_files_are_put_from_their_path(backend: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    backend.put("blobs/sha256/f", tmp_path / "file")
    assert b"".join(backend.get("blobs/sha256/f")) == CONTENT


def test_memory_and_arrays_are_put_as_bytes_are(backend: BlobStore) -> None:
    backend.put("x/a", bytearray(b"abc"))
    backend.put("x/b", memoryview(b"xabcx")[1:4])
    assert [b"".join(backend.get(key)) for key in ("x/a", "x/b")] == [b"abc", b"abc"]


def test_what_is_not_there_is_missing(backend: BlobStore) -> None:
    with pytest.raises(BlobMissingError, match="blobs/sha256/b is not there"):
        b"".join(backend.get("blobs/sha256/b"))
    assert backend.read("refs/b", 100) is None
    assert backend.head("refs/b") is None
    assert list(backend.list("refs/")) == []
    backend.delete(["refs/b"])


def test_heads_and_lists_tell_sizes(backend: BlobStore) -> None:
    for name, size in (("b", 2), ("a", 1), ("c%2Fd", 3)):
        backend.put(f"refs/{name}", bytes(size))
    backend.put("blobs/sha256/x", b"")
    info = backend.head("refs/b")
    assert info is not None
    assert (info.key, info.size) == ("refs/b", 2)
    listed = list(backend.list("refs/"))
    assert [(each.key, each.size) for each in listed] == [("refs/a", 1), ("refs/b", 2), ("refs/c%2Fd", 3)]
    assert [each.key for each in backend.list("refs/", after="refs/a")] == ["refs/b", "refs/c%2Fd"]
    assert [each.key for each in backend.list("refs/c")] == ["refs/c%2Fd"]
    assert int(info.modified) == int(listed[1].modified)  # S3 tells milliseconds in lists alone


def test_small_keys_are_read_with_a_limit(backend: BlobStore) -> None:
    backend.put("refs/a", b"12345")
    found = backend.read("refs/a", 5)
    assert found is not None
    assert found.data == b"12345"
    with pytest.raises(StoreError, match="more than 4 bytes"):
        backend.read("refs/a", 4)


def test_what_is_deleted_is_gone(backend: BlobStore) -> None:
    for name in "abc":
        backend.put(f"x/{name}", b"1")
    backend.delete(["x/a", "x/nothing", "x/c"])
    assert [each.key for each in backend.list("x/")] == ["x/b"]


def test_create_only_and_replace_if_unchanged(backend: BlobStore) -> None:
    first = backend.swap("refs/a", b"1", None)
    with pytest.raises(PreconditionError):
        backend.swap("refs/a", b"2", None)
    second = backend.swap("refs/a", b"2", first)
    with pytest.raises(PreconditionError):
        backend.swap("refs/a", b"3", first)
    with pytest.raises(PreconditionError):
        backend.swap("refs/nothing", b"3", first)
    found = backend.read("refs/a", 10)
    assert found is not None
    assert (found.data, found.version) == (b"2", second)
    backend.put("refs/a", b"4")
    with pytest.raises(PreconditionError):
        backend.swap("refs/a", b"5", second)


def test_one_of_many_creators_wins(backend: BlobStore) -> None:
    won: list[int] = []
    start = threading.Barrier(6)

    def create(number: int) -> None:
        start.wait()
        try:
            backend.swap("refs/race", b"%d" % number, None)
        except PreconditionError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = backend.read("refs/race", 10)
    assert found is not None
    assert [b"%d" % number for number in won] == [found.data]


def test_no_swap_of_many_is_lost(backend: BlobStore) -> None:
    backend.swap("refs/count", b"0", None)

    def add() -> None:
        for _ in range(5):
            while True:
                found = backend.read("refs/count", 10)
                assert found is not None
                try:
                    backend.swap("refs/count", b"%d" % (int(found.data) + 1), found.version)
                except PreconditionError:
                    continue
                break

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = backend.read("refs/count", 10)
    assert found is not None
    assert found.data == b"20"


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", "a\0b", ""])
def test_no_key_leaves_a_directory(tmp_path: Path, key: str) -> None:
    backend = DirectoryStore(tmp_path / "store")
    for work in (
        lambda: backend.put(key, b""),
        lambda: backend.read(key, 1),
        lambda: list(backend.get(key)),
        lambda: backend.delete([key]),
    ):
        with pytest.raises(StoreError, match="no key"):
            work()


def test_temporary_files_of_a_crash_are_not_listed(tmp_path: Path) -> None:
    backend = DirectoryStore(tmp_path)
    backend.put("blobs/sha256/a", b"")
    (tmp_path / "blobs/sha256/.tmp-object-left").write_bytes(b"x")
    assert [each.key for each in backend.list("blobs/")] == ["blobs/sha256/a"]
