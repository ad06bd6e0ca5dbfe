"""Our fs-verity digests and calls against those of the kernel."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from composefs_async import fsverity
from composefs_async._sys import verity
from composefs_async.digest import Algorithm
from composefs_async.errors import AlgorithmMismatchError, VerityMissingError, VerityNotSupportedError

# Around one block, and around one block of hashes: 128 of sha256, 64 of sha512.
SIZES = [0, 1, 4095, 4096, 4097, 64 * 4096, 64 * 4096 + 1, 128 * 4096, 128 * 4096 + 1]
CONTENT = b"".join(n.to_bytes(4, "little") for n in range(132_000))


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("size", SIZES)
def test_digest_is_what_the_kernel_measures(data_dir: Path, kernel: Any, algorithm: Algorithm, size: int) -> None:
    content = CONTENT[:size]
    assert len(content) == size
    path = data_dir / "file"
    path.write_bytes(content)
    kernel.enable(path, algorithm)
    assert kernel.measure(path) == (algorithm.number, fsverity.digest(content, algorithm).hex())


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_enable_protects_and_measure_reads_back(data_dir: Path, kernel: Any, algorithm: Algorithm) -> None:
    path = data_dir / "file"
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(VerityMissingError):
            verity.measure(fd, algorithm, "file")
        verity.enable(fd, algorithm, "file")
        verity.enable(fd, algorithm, "file")  # already protected is fine
        measured = verity.measure(fd, algorithm, "file")
        other = next(each for each in Algorithm if each is not algorithm)
        with pytest.raises(AlgorithmMismatchError):
            verity.measure(fd, other, "file")
    finally:
        os.close(fd)
    assert measured == fsverity.digest(b"content", algorithm)
    assert kernel.measure(path) == (algorithm.number, measured.hex())
    with pytest.raises(PermissionError) as refused:
        os.open(path, os.O_WRONLY)
    assert refused.value.errno == errno.EPERM


def test_file_system_without_verity_is_named(data_dir: Path) -> None:
    """/dev/shm is a tmpfs, which has no fs-verity."""
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    try:
        with pytest.raises(VerityNotSupportedError):
            verity.enable(fd, Algorithm.SHA256, "file on tmpfs")
    finally:
        os.close(fd)
