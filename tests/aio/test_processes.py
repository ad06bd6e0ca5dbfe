"""A handle is of use in the process that opened it; others open the repository themselves."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async.errors import RepositoryClosedError, WrongProcessError
from composefs_async.repository import Repository, state_of
from composefs_async.splitstream import OCI_LAYER

no_leaks = pytest.mark.usefixtures("no_leaks")


def create(path: Path) -> Repository:
    return Repository.init(path, insecure=True)


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a forked process that does *work*, which is killed after ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: that is what is tested
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(10)
            work()
            status = 0
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refuses(repo: Repository) -> None:
    """Every way in raises, and closing does nothing."""
    calls: list[Callable[[], object]] = [
        partial(repo.ensure_object, b"x"),
        partial(repo.ensure_objects, [b"x"]),
        repo.gc,
        repo.fsck,
        repo.repair,
        repo.sync,
        repo.usage,
        repo.objects_dir,
        repo.create_object_tmpfile,
        partial(repo.has_stream, "s"),
        partial(repo.open_stream, "s"),
        partial(repo.name_stream, "s", "r"),
        lambda: list(repo.merge_splitstream("s")),
        lambda: repo.exclusive("x").__enter__(),
        state_of(repo).require_writable,
        state_of(repo).syncs.sync,
        lambda: state_of(repo).shared().__enter__(),
    ]
    for call in calls:
        with contextlib.suppress(WrongProcessError):
            call()
            raise AssertionError(f"{call} works")
    for work in (repo.gc_async, partial(repo.ensure_object_async, b"x"), repo.sync_async):
        with contextlib.suppress(WrongProcessError):
            anyio.run(work)
            raise AssertionError(f"{work} works")
    repo.close()
    with repo:
        pass
    anyio.run(repo.aclose)


@no_leaks
def test_a_forked_process_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with create(tmp_path / "repo") as repo:
        stored = repo.ensure_object(b"of the parent, and without a name")
        assert in_child(lambda: refuses(repo)) == 0
        assert repo.read_object(stored.id) == b"of the parent, and without a name"
        repo.write_stream(repo.create_stream(OCI_LAYER), "s", "r")
        assert repo.fsck().ok


@no_leaks
def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    repo = create(tmp_path / "repo")
    ready, go = os.pipe()

    def child() -> None:
        os.close(go)
        os.read(ready, 1)

    done = threading.Thread(target=lambda: statuses.append(in_child(child)))
    statuses: list[int] = []
    done.start()
    repo.close()
    Repository.reset_metadata(tmp_path / "repo", insecure=True, timeout=1).close()
    os.close(go)
    os.close(ready)
    done.join()
    assert statuses == [0]


@no_leaks
def test_the_parent_keeps_its_lock_when_the_child_ends(tmp_path: Path) -> None:
    with create(tmp_path / "repo") as repo:
        kept = repo.ensure_object(b"kept by the lock")
        assert in_child(repo.close) == 0

        def collect() -> None:
            with Repository.open_path(tmp_path / "repo") as own:
                own.gc(timeout=0)

        assert in_child(collect) == 1  # in use
        assert repo.read_object(kept.id) == b"kept by the lock"


@no_leaks
def test_a_child_that_opens_the_repository_itself_can_work(tmp_path: Path) -> None:
    with create(tmp_path / "repo") as repo:

        def work() -> None:
            with Repository.open_path(tmp_path / "repo") as own:
                own.write_stream(own.create_stream(OCI_LAYER), "child", "child")

            async def more() -> None:
                async with await Repository.open_path_async(tmp_path / "repo") as own:
                    await own.ensure_objects_async([b"%d" % number for number in range(300)])

            anyio.run(more)

        assert in_child(work) == 0
        assert repo.has_named_stream("child")


@contextlib.contextmanager
def at_work(repo: Repository) -> Iterator[None]:
    """Threads that store, flush and exclude, so that a fork comes while locks are held."""
    stop = threading.Event()

    def work(call: Callable[[int], object]) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            call(number)

    def alone(number: int) -> None:
        with repo.exclusive("a test"):
            pass

    calls: list[Callable[[int], object]] = [
        lambda number: repo.ensure_objects([b"%d %d" % (number, each) for each in range(40)]),
        lambda number: repo.ensure_object(b"%d" % number * 50),
        lambda number: repo.sync(),
        alone,
    ]
    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


@no_leaks
def test_a_child_does_not_hang_on_a_lock_of_a_thread_that_is_not_there(tmp_path: Path) -> None:
    with create(tmp_path / "repo") as repo, create(tmp_path / "other") as other, at_work(repo):
        for _ in range(8):

            def work() -> None:
                refuses(repo)
                with create(tmp_path / f"child{os.getpid()}") as own:
                    own.ensure_objects([b"%d" % number for number in range(50)])
                    own.gc(timeout=5)

            assert in_child(work) == 0
        other.ensure_object(b"x")
    with Repository.open_path(tmp_path / "repo") as again:
        assert again.fsck().ok


def _try_it(path: str, repo: Repository | None) -> str:
    if repo is not None:
        try:
            repo.gc()
        except WrongProcessError as error:
            return f"{type(error).__name__} {error.pid == os.getpid()}"
        return "collected"
    with Repository.open_path(path) as own:
        return own.ensure_object(b"from a child").id.hex()


_inherited: Repository | None = None


def _use_inherited(path: str) -> str:
    return _try_it(path, _inherited)


@no_leaks
def test_processes_of_multiprocessing_that_fork(tmp_path: Path) -> None:
    global _inherited  # noqa: PLW0603
    with create(tmp_path / "repo") as repo, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        stored = repo.ensure_object(b"without a name")
        _inherited = repo
        try:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                assert pool.apply_async(_use_inherited, ("",)).get(20) == "WrongProcessError False"
                assert pool.apply_async(_try_it, (repo.path, None)).get(20)
        finally:
            _inherited = None
        pool.join()
        assert repo.read_object(stored.id) == b"without a name"


@pytest.mark.usefixtures("installed_first")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])  # their helpers stay
def test_processes_that_begin_anew_cannot_be_given_a_handle(method: str, tmp_path: Path) -> None:
    with create(tmp_path / "repo") as repo:
        context = multiprocessing.get_context(method)
        with context.Pool(1) as pool:
            with pytest.raises(TypeError, match="open its path there"):
                pool.apply_async(_try_it, ("", repo)).get(20)
            expected = pool.apply_async(_try_it, (repo.path, None)).get(30)
        pool.join()
        assert repo.read_object(type(repo.ensure_object(b"").id).from_hex(expected)) == b"from a child"


@no_leaks
@pytest.mark.anyio
async def test_a_fork_from_inside_an_event_loop(tmp_path: Path) -> None:
    async with create(tmp_path / "repo") as repo:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(repo.ensure_objects_async, [b"%d" % number for number in range(2000)])
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
                assert in_child(lambda: _refuses_plainly(repo)) == 0
        assert (await repo.fsck_async()).ok
    with pytest.raises(RepositoryClosedError):
        repo.sync()


def _refuses_plainly(repo: Repository) -> None:
    with pytest.raises(WrongProcessError):
        repo.gc()
    with pytest.raises(WrongProcessError):
        repo.ensure_object(b"x")
    repo.close()
