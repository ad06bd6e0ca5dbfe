"""Every implementation of the digest that this processor can run, against hashlib."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from types import ModuleType

import pytest

from composefs_async import _native
from composefs_async.digest import Algorithm
from composefs_async.fsverity import _python

PAIRS = [
    pytest.param(algorithm, name, id=f"{algorithm.value}-{name}")
    for algorithm in Algorithm
    for name in _native.FEATURES[algorithm.value]
]
SIZES = [
    *(0, 1, 63, 64, 65, 4095, 4096, 4097, 8192),
    *(64 * 4096 + extra for extra in (-1, 0, 1)),
    *(128 * 4096 + extra for extra in (-1, 0, 1)),
    64 * 64 * 4096 + 1,
    128 * 128 * 4096 + 1,
]
CONTENT = random.Random(4096).randbytes(max(SIZES))


@pytest.mark.parametrize(("algorithm", "name"), PAIRS)
def test_sizes_in_one_batch_and_one_by_one(core: ModuleType, algorithm: Algorithm, name: str) -> None:
    items = [memoryview(CONTENT)[:size] for size in SIZES]
    expected = b"".join(_python.digest(item, algorithm) for item in items)
    assert core.digest_many(items, algorithm.number, name) == expected
    assert b"".join(core.digest_many([item], algorithm.number, name) for item in items) == expected


@pytest.mark.parametrize(("algorithm", "name"), PAIRS)
@pytest.mark.parametrize("count", range(35))
def test_every_number_of_blocks_for_the_lanes(core: ModuleType, algorithm: Algorithm, name: str, count: int) -> None:
    data = memoryview(CONTENT)[4096 * count : 4096 * 2 * count + 100]
    assert core.hash_blocks(data, algorithm.number, name) == _python.hash_blocks(data, algorithm)


@pytest.mark.parametrize(("algorithm", "name"), PAIRS)
def test_blocks_at_any_address(core: ModuleType, algorithm: Algorithm, name: str) -> None:
    for shift in (1, 3, 8, 33, 63):
        data = memoryview(CONTENT)[shift : shift + 17 * 4096]
        assert core.hash_blocks(data, algorithm.number, name) == _python.hash_blocks(data, algorithm)


@pytest.mark.parametrize(("algorithm", "name"), PAIRS)
def test_more_small_items_than_a_window_takes(core: ModuleType, algorithm: Algorithm, name: str) -> None:
    sizes = [random.Random(index).choice([0, 1, 100, 4096, 5000, 70_000, 600_000]) for index in range(700)]
    items = [memoryview(CONTENT)[index : index + size] for index, size in enumerate(sizes)]
    expected = b"".join(_python.digest(item, algorithm) for item in items)
    assert core.digest_many(items, algorithm.number, name) == expected


def test_threads_do_not_disturb_each_other(core: ModuleType) -> None:
    items = [memoryview(CONTENT)[index : index + 20_000] for index in range(50)]
    expected = {algorithm: core.digest_many(items, algorithm.number) for algorithm in Algorithm}
    found: list[bool] = []

    def work() -> None:
        found.extend(
            core.digest_many(items, algorithm.number) == expected[algorithm] for algorithm in [*Algorithm] * 20
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 160


def test_features_end_with_plain_c(core: ModuleType) -> None:
    for algorithm in Algorithm:
        names = core.implementations(algorithm.number)
        assert names == _native.FEATURES[algorithm.value]
        assert names[-1] == "c"
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 3), "there is no fs-verity hash algorithm with the number 3"),
        (([], 0), "there is no fs-verity hash algorithm with the number 0"),
        (([], 1, "mmx"), "this processor has no implementation named 'mmx'"),
    ],
)
def test_unknown_numbers_and_names_are_refused(core: ModuleType, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        core.digest_many(*arguments)


@pytest.mark.parametrize("wrong", [None, [None], ["text"], [b"good", memoryview(b"abcdef")[::2]], 5])
def test_items_that_are_not_buffers_are_refused(core: ModuleType, objects: int, wrong: object) -> None:
    with pytest.raises((TypeError, BufferError)):
        core.digest_many(wrong, 1)
    with pytest.raises((TypeError, BufferError)):
        core.store(objects, wrong, 1, 0)


def test_buffers_are_let_go_after_use(core: ModuleType, objects: int) -> None:
    buffer = bytearray(b"content")
    core.hash_blocks(buffer, 1)
    core.digest_many([buffer, buffer], 1)
    core.store(objects, [buffer], 1, 0)
    with pytest.raises(TypeError):
        core.digest_many([buffer, None], 1)
    buffer += b"more"  # BufferError if anything still held it
    assert buffer == b"contentmore"


# -- files -----------------------------------------------------------------------------------------

FILE_SIZES = [*SIZES[:-1], 2**20 - 1, 2**20, 2**20 + 1, 2**21, 3 * 2**20 + 5, *[100] * 600, 900_000, 900_000]


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_files_of_all_sizes(core: ModuleType, tmp_path: Path, algorithm: Algorithm) -> None:
    fds = []
    for index, size in enumerate(FILE_SIZES):
        fd = os.open(tmp_path / str(index), os.O_RDWR | os.O_CREAT)
        os.write(fd, memoryview(CONTENT)[index : index + size])
        fds.append(fd)
    expected = [
        bytes(_python.digest(memoryview(CONTENT)[index : index + size], algorithm))
        for index, size in enumerate(FILE_SIZES)
    ]
    # The offsets are at the end of the files: neither looked at nor moved.
    assert core.digest_files(fds, algorithm.number) == expected
    assert [os.lseek(fd, 0, os.SEEK_CUR) for fd in fds] == FILE_SIZES
    for fd in fds:
        os.close(fd)


def test_files_that_cannot_be_read_do_not_spoil_the_others(core: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"hello world")
    good = os.open(tmp_path / "good", os.O_RDONLY)
    folder = os.open(tmp_path, os.O_RDONLY)
    reading, writing = os.pipe()
    expected = bytes(_python.digest(b"hello world", Algorithm.SHA256))
    found = core.digest_files([folder, good, reading, -1, 2**40, good], 1)
    # EISDIR, ESPIPE, EBADF
    assert found == [21, expected, 29, 9, 9, expected]
    for fd in (good, folder, reading, writing):
        os.close(fd)


def test_no_files(core: ModuleType) -> None:
    assert core.digest_files([], 2) == []
