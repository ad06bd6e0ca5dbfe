"""Directories are scanned with the descriptors that are left, however few."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from composefs_async._repo import batch
from composefs_async._repo.scan import ScanOptions, scan_and_store, scan_directory
from composefs_async.digest import Algorithm
from composefs_async.repository import Repository, state_of
from composefs_async.tree import Directory
from composefs_async.tree.walk import walk

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(autouse=True, params=["native", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "native" and not batch.NATIVE:
        pytest.skip("the native module is not built, or switched off")
    monkeypatch.setattr(batch, "NATIVE", request.param == "native")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide and deep, with files that are inline, small and large, hard links and symbolic links."""
    top = tmp_path_factory.mktemp("source")
    places = [top / str(number) for number in range(120)] + [
        top.joinpath(*"abcdefghijkl"[:depth]) for depth in range(12)
    ]
    for number, place in enumerate(places):
        place.mkdir(exist_ok=True)
        (place / "inline").write_text(str(number))
        (place / "small").write_text(str(number) * 100)
        (place / "link").symlink_to("small")
        os.link(place / "small", place / "same")
        if number % 10 == 0:
            (place / "large").write_bytes(str(number).encode() * (1 << 20))
    return top


@contextlib.contextmanager
def only(free: int, limit: int = 100) -> Iterator[None]:
    """Leave *free* descriptors of the *limit* that the process may have; all others are in use."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(free):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken:
            os.close(fd)


def seen(root: Directory) -> list[tuple[bytes, object]]:
    return sorted((path, getattr(inode, "digest", getattr(inode, "content", None))) for path, inode in walk(root))


@pytest.mark.parametrize(("threads", "free"), [(1, 8), (2, 8), (2, 12), (2, 30), (8, 20), (8, 50)])
def test_tree_is_the_same_with_few_descriptors(source: Path, threads: int, free: int) -> None:
    options = ScanOptions(threads=threads)
    wanted = seen(scan_directory(source, Algorithm.SHA256, options))
    with only(free):
        found = scan_directory(source, Algorithm.SHA256, options)
    assert seen(found) == wanted


@pytest.mark.parametrize("free", [14, 30])
def test_objects_are_stored_with_few_descriptors(source: Path, repo: Repository, free: int) -> None:
    options = ScanOptions(threads=2)
    wanted = seen(scan_directory(source, repo.algorithm, options))
    with only(free):
        found = scan_and_store(state_of(repo), source, options)
    assert seen(found) == wanted
    assert repo.fsck().ok


def test_without_a_descriptor_the_error_names_what_was_to_be_opened(source: Path) -> None:
    with only(1), pytest.raises(OSError, match="Too many open files") as caught:
        scan_directory(source, Algorithm.SHA256, ScanOptions(threads=1))
    assert caught.value.errno == errno.EMFILE
    assert str(caught.value.filename).startswith(str(source))
