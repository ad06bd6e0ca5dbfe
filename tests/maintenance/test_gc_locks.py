"""gc and everybody else: other processes, other handles, other tasks of the same handle, and cancellation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async._maintenance.gc import collect
from composefs_async._sys import files, locks
from composefs_async.errors import RepositoryInUseError
from composefs_async.repository import Repository, state_of

from ..maintenance.garbage import everything, objects, store

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", insecure=True) as repository:
        store(repository, "garbage")
        yield repository


@contextmanager
def other_process(repo: Repository) -> Iterator[subprocess.Popen[bytes]]:
    """One that has the repository open until its input ends."""
    program = "import sys, composefs_async as c; r = c.Repository.open_path(sys.argv[1]); print(flush=True); input()"
    command = [sys.executable, "-c", program, repo.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def lock_is_shared(repo: Repository) -> bool:
    with files.opened(repo.path, 0) as fd:
        return locks.lock(fd, exclusive=False, timeout=0) and not locks.lock(fd, exclusive=True, timeout=0)


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_gc_does_not_wait_longer_for_another_process_than_it_may(repo: Repository, timeout: float) -> None:
    before = everything(repo)
    with other_process(repo):
        assert repo.gc(dry_run=True, timeout=0).objects_removed == 1
        with pytest.raises(RepositoryInUseError):
            repo.gc(timeout=timeout)
        assert everything(repo) == before
        assert lock_is_shared(repo)
    assert repo.gc(timeout=0).objects_removed == 1


def test_gc_waits_for_another_process(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    with other_process(repo) as process:
        waits: list[float] = []

        def end_it(seconds: float) -> None:
            waits.append(seconds)
            process.communicate()

        monkeypatch.setattr("composefs_async._repo.state.time.sleep", end_it)
        assert repo.gc().objects_removed == 1
    assert waits


def test_two_handles_of_one_process_do_not_deadlock(repo: Repository) -> None:
    with Repository.open_path(repo.path) as other:
        for each in (repo, other):
            with pytest.raises(RepositoryInUseError):
                each.gc(timeout=0.02)
        assert objects(repo) == {"garbage"}
    assert repo.gc(timeout=0).objects_removed == 1


def test_nothing_to_remove_needs_nobody_to_go_away(repo: Repository) -> None:
    repo.gc()
    with Repository.open_path(repo.path):
        assert repo.gc(timeout=0).objects_removed == 0


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_operations_of_the_same_handle_go_on_while_gc_waits(repo: Repository) -> None:
    waiting = threading.Event()
    with Repository.open_path(repo.path) as other:

        def check() -> None:
            if state_of(repo)._exclusive is not None:  # it has looked, and waits for the other handle
                waiting.set()

        thread = in_thread(partial(collect.gc, state_of(repo), check=check))
        assert waiting.wait(10)
        for number in range(10):
            store(repo, f"while it waits {number}")
        assert lock_is_shared(other)
    thread.join(10)
    assert not thread.is_alive()
    assert objects(repo) == {f"while it waits {number}" for number in range(10)}


def test_gc_waits_for_operations_of_the_same_handle(repo: Repository) -> None:
    with state_of(repo).shared():
        failures: list[BaseException] = []

        def run() -> None:
            try:
                repo.gc(timeout=0.02)
            except RepositoryInUseError as error:
                failures.append(error)

        in_thread(run).join(10)
        assert len(failures) == 1
    assert repo.gc(timeout=0).objects_removed == 1


# -- cancellation ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_gc_that_waits_can_be_cancelled(repo: Repository) -> None:
    with Repository.open_path(repo.path):
        with anyio.move_on_after(0.05) as scope:
            await repo.gc_async()
        assert scope.cancelled_caught
        assert objects(repo) == {"garbage"}
    assert (await repo.gc_async(timeout=0)).objects_removed == 1


@pytest.mark.anyio
async def test_opening_what_somebody_has_alone_can_be_cancelled(repo: Repository) -> None:
    with repo.exclusive("a test"):
        with anyio.move_on_after(0.05) as scope:
            await Repository.open_path_async(repo.path)
        assert scope.cancelled_caught
    async with await Repository.open_path_async(repo.path, timeout=0) as other:
        assert other.algorithm is repo.algorithm


@pytest.mark.anyio
async def test_waits_hear_of_the_cancellation_of_asyncio(repo: Repository, anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("Task.cancel is asyncio's")
    with Repository.open_path(repo.path):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await repo.gc_async()
        assert lock_is_shared(repo)
    with repo.exclusive("a test"), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await Repository.open_path_async(repo.path)
    assert repo.gc(timeout=0).objects_removed == 1


@pytest.mark.anyio
async def test_a_repository_that_was_opened_too_late_is_closed(
    repo: Repository, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("Task.cancel is asyncio's")
    begun, go = threading.Event(), threading.Event()
    real = locks.lock

    def late(*args: object, **options: object) -> bool:
        begun.set()
        assert go.wait(10)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(locks, "lock", late)
    task = asyncio.ensure_future(Repository.open_path_async(repo.path))
    await anyio.to_thread.run_sync(begun.wait)
    task.cancel()
    await anyio.lowlevel.checkpoint()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert repo.gc(timeout=0).objects_removed == 1


def test_an_error_in_a_check_ends_the_sweep_and_leaves_all_whole(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(repo, *(f"more {number}" for number in range(20)))
    monkeypatch.setattr(collect, "_BATCH", 1)
    monkeypatch.setattr(collect.shards, "WORKERS", 1)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if len(objects(repo)) < 15:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        collect.gc(state_of(repo), check=check)
    assert len(objects(repo)) == 14
    assert lock_is_shared(repo)
    assert repo.gc(timeout=0).objects_removed == 14
