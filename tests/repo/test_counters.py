"""Counters of an open repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from composefs_async import Counters, Repository
from composefs_async._repo import batch


def counters(**values: int) -> Counters:
    names = ("objects_stored", "objects_present", "objects_replaced", "bytes_written", "flushes", "flush_requests")
    return Counters(**{name: values.get(name, 0) for name in names})


def by_tmpfile(repo: Repository, data: bytes) -> None:
    fd = repo.create_object_tmpfile()
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    repo.finalize_object_tmpfile(fd, len(data))


def by_call(repo: Repository, data: bytes) -> None:
    repo.ensure_object(data)


@pytest.mark.parametrize("store", [by_call, by_tmpfile])
@pytest.mark.parametrize("native", [True, False])
def test_each_outcome_is_counted(
    store: Callable[[Repository, bytes], None], native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(batch, "NATIVE", False)
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        assert repo.counters() == counters()
        store(repo, b"x" * 100)
        assert repo.counters() == counters(objects_stored=1, bytes_written=100)
        store(repo, b"x" * 100)
        assert repo.counters() == counters(objects_stored=1, objects_present=1, bytes_written=100)
        (path,) = (path for path in (tmp_path / "repo/objects").rglob("*") if path.is_file())
        path.write_bytes(b"other size")
        store(repo, b"x" * 100)
        assert repo.counters() == counters(objects_stored=1, objects_present=1, objects_replaced=1, bytes_written=200)
        repo.sync()
        assert (repo.counters().flushes, repo.counters().flush_requests) == (1, 1)


@pytest.mark.anyio
async def test_concurrent_calls_and_flushes_are_counted(tmp_path: Path) -> None:
    async with Repository.init_async(tmp_path / "repo", insecure=True) as repo:
        async with anyio.create_task_group() as tasks:
            for number in range(500):
                tasks.start_soon(repo.ensure_object_async, b"%06d" % (number % 400))
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(repo.sync_async)
        found = repo.counters()
    assert (found.objects_stored + found.objects_present, found.bytes_written) == (500, found.objects_stored * 6)
    assert found.objects_stored == 400
    assert (found.flush_requests, 1 <= found.flushes <= 20) == (20, True)
