"""Imports cancelled at every await of every task: nothing is left, and the next import succeeds."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import random
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio

from composefs_async._aio import to_thread
from composefs_async.digest import Algorithm
from composefs_async.oci.importing.layers import import_layer
from composefs_async.oci.importing.pull import pull
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.repository import Repository

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]


def archive(seed: int, *sizes: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"f{number}")
            info.size = size
            made.addfile(info, io.BytesIO(random.Random(seed * 100 + number).randbytes(size)))
    return out.getvalue()


LARGE = archive(1, 3000, 700_000, (2 << 20) + 5, 100)
SMALL = archive(2, 3000, 60)
DIFF_ID = f"sha256:{hashlib.sha256(LARGE).hexdigest()}"


class Checkpoints:
    """Counts the awaits that wait, in all tasks that begin in its block, and acts at the n-th: when it waits there."""

    def __init__(self) -> None:
        self.count = 0
        self.at = 0
        self.act: Callable[[], object] = self.start

    def start(self, at: int = 0, act: Callable[[], object] | None = None) -> None:
        self.count, self.at, self.act = 0, at, act or self.start

    def pass_one(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.act()

    @contextmanager
    def counting(self, backend: str) -> Iterator[None]:
        if backend == "trio":
            trio.lowlevel.add_instrument(instrument := _AfterSteps(self))
        else:
            asyncio.get_running_loop().set_task_factory(partial(Task, self))
        try:
            yield
        finally:
            if backend == "trio":
                trio.lowlevel.remove_instrument(instrument)
            else:
                asyncio.get_running_loop().set_task_factory(None)

    async def pieces(self, data: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(data), 200_000):
            await anyio.lowlevel.checkpoint()
            yield data[at : at + 200_000]


class _AfterSteps(trio.abc.Instrument):
    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._checkpoints.pass_one()


class Task(asyncio.tasks._PyTask):  # type: ignore[name-defined,misc]  # the one that is written in Python
    """Has the name of asyncio's, so that the private method has it, too.  uvloop lets asyncio make its tasks."""

    def __init__(self, checkpoints: Checkpoints, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> None:
        self._checkpoints = checkpoints
        super().__init__(coro, loop=loop, **options)

    def __step(self, exc: BaseException | None = None) -> None:
        super().__step(exc)
        self._checkpoints.pass_one()


@pytest.fixture
def checkpoints() -> Checkpoints:
    return Checkpoints()


Import = Callable[[Repository], Awaitable[object]]


@pytest.fixture(params=["import_layer", "pull"])
def run(request: pytest.FixtureRequest, tmp_path: Path, checkpoints: Checkpoints) -> Import:
    if request.param == "import_layer":
        packed = gzip.compress(LARGE, 1)

        async def layer(repo: Repository) -> object:
            source = checkpoints.pieces(packed)
            try:
                return await import_layer(repo, DIFF_ID, source, reference="mine")
            finally:
                await source.aclose()  # type: ignore[attr-defined]

        return layer
    writer = OciLayoutWriter(tmp_path / "image")
    writer.add_image([writer.add_layer(LARGE, "zstd"), writer.add_layer(SMALL, "none"), writer.add_layer(b"")])

    async def image(repo: Repository) -> object:
        return await pull(repo, f"oci:{tmp_path}/image", tag="t")

    return image


LEASES = ".composefs-async/leases/sha256:"
REMEMBERED = ".composefs-async/reach"


def without_objects(path: Path) -> list[str]:
    """All names but those of whole objects and their directory; temporary ones begin with a dot; empty directories."""
    entries = [entry for entry in path.rglob("*") if not entry.is_dir() or not list(entry.iterdir())]
    names = [str(entry.relative_to(path)) for entry in entries]
    return sorted(name for name in names if name != "objects" and (not name.startswith("objects/") or "/." in name))


def objects_are_whole(path: Path) -> bool:
    known = {
        entry.name: entry.stat().st_size for entry in (path.parent / "whole/objects").rglob("*") if entry.is_file()
    }
    found = {entry.name: entry.stat().st_size for entry in (path / "objects").rglob("*") if entry.is_file()}
    return found.items() <= known.items()


def init(path: Path) -> Repository:
    return Repository.init(path, algorithm=Algorithm.SHA256, insecure=True)


async def cancelled_by_scope(run: Import, repo: Repository, at: int, checkpoints: Checkpoints) -> bool:
    """Whether the import was cancelled; it may also have ended before it noticed."""
    with anyio.CancelScope() as scope:
        checkpoints.start(at, scope.cancel)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, repo)
    return scope.cancelled_caught


async def cancelled_by_asyncio(run: Import, repo: Repository, at: int, checkpoints: Checkpoints) -> bool:
    """As ``asyncio.timeout`` does it: AnyIO's shields are no protection from that."""
    task = asyncio.ensure_future(run(repo))
    # The thread is at work by the time the task is cancelled.
    checkpoints.start(at, lambda: asyncio.get_running_loop().call_soon(task.cancel))
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


async def check_all(
    cancel: Callable[[Import, Repository, int, Checkpoints], Awaitable[bool]],
    run: Import,
    tmp_path: Path,
    checkpoints: Checkpoints,
) -> None:
    with init(tmp_path / "whole") as repo:
        await cancel(run, repo, 0, checkpoints)
    total, complete = checkpoints.count, without_objects(tmp_path / "whole")
    assert total > 10
    interrupted, at = 0, 0
    while checkpoints.count >= at:  # the last round comes to its end before it is cancelled
        at += 1
        path = tmp_path / f"repo{at}"
        tasks = {task.id for task in anyio.get_running_tasks()}
        with init(path) as repo:
            was_cancelled = await cancel(run, repo, at, checkpoints)
            interrupted += was_cancelled
            reached = checkpoints.count
            left = without_objects(path)
            if was_cancelled:  # what a pull has stored is leased
                left = [name for name in left if not name.startswith(LEASES)]
            assert left in (["meta.json"], complete)
            assert was_cancelled or left == complete
            assert objects_are_whole(path)
            assert {task.id for task in anyio.get_running_tasks()} == tasks
            with repo.exclusive("a test", timeout=0):  # nothing is at work any more
                pass
            if at % 8 == 0:
                await goes_on_after_a_collection(run, repo)
                assert [name for name in without_objects(path) if not name.startswith(REMEMBERED)] == complete
                assert objects_are_whole(path)
        checkpoints.count = reached
    assert interrupted >= total // 2


async def goes_on_after_a_collection(run: Import, repo: Repository) -> None:
    """Nobody remembers to have stored what is gone again."""
    for lease in repo.leases():
        repo.drop_lease(lease.manifest_digest)
    repo.gc(timeout=0)
    await run(repo)
    assert repo.fsck().ok


async def test_cancelled_import_leaves_nothing_behind(
    run: Import, tmp_path: Path, checkpoints: Checkpoints, anyio_backend_name: str
) -> None:
    with checkpoints.counting(anyio_backend_name):
        await check_all(cancelled_by_scope, run, tmp_path, checkpoints)


async def test_import_cancelled_by_asyncio_leaves_nothing_behind(
    run: Import, tmp_path: Path, checkpoints: Checkpoints, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("there is no other way on trio than a cancel scope")
    with checkpoints.counting(anyio_backend_name):
        await check_all(cancelled_by_asyncio, run, tmp_path, checkpoints)


async def test_cancelled_caller_waits_for_the_thread_also_if_cancelled_again(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("Task.cancel is asyncio's")
    import threading

    begun, go, ended = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go.wait(60)
        ended.append(True)

    task = asyncio.ensure_future(to_thread.in_thread(work))
    await anyio.to_thread.run_sync(begun.wait)
    for _ in range(3):
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
