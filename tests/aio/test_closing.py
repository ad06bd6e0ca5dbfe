"""The end of a handle: it waits for what runs, and no operation ever uses a descriptor that has become another's."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import pickle
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from composefs_async.digest import ObjectId
from composefs_async.errors import ComposefsError, RepositoryClosedError
from composefs_async.oci import Platform, import_layer, pull
from composefs_async.repository import Repository, state_of
from composefs_async.splitstream import OCI_LAYER

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
PLATFORM = Platform("linux", "amd64")
NOTHING = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def create(path: Path) -> Repository:
    return Repository.init(path, insecure=True)


def contents(path: Path) -> set[bytes]:
    return {each.read_bytes() for each in (path / "objects").glob("??/*")}


class Gate:
    """Holds up whoever calls it until it is opened; the second and later ones pass."""

    def __init__(self) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.reached.set()
        assert self._opened.wait(10)

    def open(self) -> None:
        self._opened.set()


def closes_soon(repo: Repository) -> threading.Thread:
    """A thread that closes the repository, and has begun to wait."""
    thread = threading.Thread(target=repo.close)
    thread.start()
    while not state_of(repo).closed:
        pass
    return thread


# -- threads -----------------------------------------------------------------------------------


def collect(repo: Repository, gate: Gate) -> object:
    return repo.gc(progress=gate)


def check(repo: Repository, gate: Gate) -> object:
    return repo.fsck(progress=gate)


def fill_stream(repo: Repository, gate: Gate) -> object:
    return repo.ensure_stream("late", OCI_LAYER, lambda writer: gate() or writer.write_external(b"late" * 99))


def import_it(repo: Repository, gate: Gate) -> object:
    from composefs_async.erofs.writer import build_image
    from composefs_async.tree.dumpfile import parse_dump

    image = build_image(parse_dump(b"/ 0 40755 2 0 0 0 0.0 - - -\n"), repo.algorithm, 1)

    def pieces() -> Any:
        gate()
        yield image

    return repo.import_image("late", pieces())


def hold_alone(repo: Repository, gate: Gate) -> object:
    with repo.exclusive("a test"):
        gate()
        repo.ensure_object(b"late" * 99)
    return None


RUNNING = [collect, check, fill_stream, import_it, hold_alone]


@pytest.mark.parametrize("run", RUNNING, ids=lambda run: run.__name__)
def test_close_waits_for_the_operation_of_another_thread(
    run: Callable[[Repository, Gate], object], tmp_path: Path
) -> None:
    repo, gate, results = create(tmp_path / "repo"), Gate(), list[object]()
    repo.write_stream(repo.create_stream(OCI_LAYER), "garbage")
    worker = threading.Thread(target=lambda: results.append(run(repo, gate)))
    worker.start()
    assert gate.reached.wait(10)
    closer = closes_soon(repo)
    with pytest.raises(RepositoryClosedError):
        repo.ensure_object(b"after")
    closer.join(0.05)
    assert closer.is_alive()
    gate.open()
    worker.join(10)
    closer.join(10)
    assert len(results) == 1
    assert not closer.is_alive()
    with Repository.reset_metadata(tmp_path / "repo", insecure=True, timeout=0):
        pass  # the lock is free


def test_close_from_inside_an_operation_is_done_at_its_end(tmp_path: Path) -> None:
    repo = create(tmp_path / "repo")
    repo.ensure_object(b"garbage")
    assert repo.gc(progress=lambda _: repo.close()).objects_removed == 1
    with pytest.raises(RepositoryClosedError):
        repo.gc()
    with create(tmp_path / "other"), Repository.open_path(tmp_path / "repo") as again:
        with again.exclusive("a test", 0):
            again.close()
            again.ensure_object(b"still open")
        with pytest.raises(RepositoryClosedError):
            again.sync()
    assert contents(tmp_path / "repo") == {b"still open"}


def test_an_iterator_that_was_left_holds_nobody_up(tmp_path: Path) -> None:
    repo = create(tmp_path / "repo")
    writer = repo.create_stream(OCI_LAYER)
    writer.write_external(b"a" * 1000)
    writer.write_external(b"b" * 1000)
    repo.write_stream(writer, "s")
    pieces = repo.merge_splitstream("s")
    next(pieces)
    repo.close()
    with pytest.raises(RepositoryClosedError):
        list(pieces)


def test_the_end_of_the_block_closes_once_and_close_may_come_again(tmp_path: Path) -> None:
    with create(tmp_path / "repo") as repo:
        repo.close()
        repo.close()
    repo.close()
    with pytest.raises(RepositoryClosedError):
        repo.ensure_object(b"x")


def test_a_descriptor_in_hand_is_never_another_file(tmp_path: Path) -> None:
    repo = create(tmp_path / "repo")
    repo.ensure_object(b"x")
    directory, root = repo.objects_dir(), state_of(repo).fd
    repo.close()
    others = [os.open("/", os.O_PATH) for _ in range(8)]
    try:
        assert not {directory, root} & {*others}
    finally:
        for each in others:
            os.close(each)
    number = int(directory)
    del directory, root
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def public_calls() -> list[str]:
    return [
        name
        for name in dir(Repository)
        if not name.startswith("_")
        and name not in ("close", "aclose", "unmount", "unmount_async", "upgrade", "upgrade_async")
        and inspect.isfunction(inspect.getattr_static(Repository, name))
    ]


ARGUMENTS: dict[str, Any] = {
    "data": b"x", "contents": [b"x"], "tmpfile": None, "size": 1, "object_id": ObjectId(bytes(64)), "path": "/",
    "content_type": 1, "name": "x", "reference": "x", "fill": print, "writer": None, "mountpoint": "/mnt",
    "pieces": [b""], "category": "streams", "new": "y", "operation": "x", "version": 1, "manifest_digest": NOTHING,
}  # fmt: skip


def arguments(function: Callable[..., object]) -> dict[str, Any]:
    required = [each for each in inspect.signature(function).parameters.values() if each.default is each.empty]
    return {each.name: ARGUMENTS.get(each.name) for each in required if each.kind is each.POSITIONAL_OR_KEYWORD}


async def call(repo: Repository, name: str, given: dict[str, Any]) -> None:
    """Call a method, and begin with whatever it gives."""
    result = getattr(repo, name)(**given)
    if inspect.isawaitable(result):
        await result
    for special in ("__aiter__", "__aenter__", "__enter__"):
        if hasattr(result, special):
            begun = getattr(result, special)()
            if special == "__aiter__":
                await anext(begun)
            elif special == "__aenter__":
                await begun
    if hasattr(result, "__next__"):
        next(result)


@pytest.mark.anyio
async def test_every_operation_of_a_closed_repository_raises(tmp_path: Path) -> None:
    repo = create(tmp_path / "repo")
    writer = repo.create_stream(OCI_LAYER)
    calls = {name: arguments(getattr(repo, name)) for name in public_calls()}
    for given in calls.values():
        if "tmpfile" in given:
            given["tmpfile"] = repo.create_object_tmpfile()
            os.write(given["tmpfile"], b"x")
        if "writer" in given:
            given["writer"] = writer
    repo.close()
    for name, given in calls.items():
        expected = RuntimeError if name.startswith("spawn") else RepositoryClosedError
        with pytest.raises(expected):
            await call(repo, name, given)
    assert len(calls) > 60


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda make: make.__name__)
def test_a_repository_is_neither_copied_nor_sent(make: Callable[[object], object], tmp_path: Path) -> None:
    with create(tmp_path / "repo") as repo:
        with pytest.raises(TypeError, match="open its path there"):
            make(repo)
        with pytest.raises(TypeError, match="open its path there"):
            make(state_of(repo))


# -- event loops -------------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("no_leaks")


class Slow:
    """A blob that never ends."""

    def __init__(self) -> None:
        self.asked = anyio.Event()

    async def read(self, size: int, /) -> bytes:
        self.asked.set()
        await anyio.sleep_forever()
        return b""


async def outcome(work: Callable[[], Any], outcomes: list[object], begun: anyio.Event | None = None) -> None:
    try:
        if begun is not None:
            begun.set()
        outcomes.append(await work())
    except ComposefsError as error:
        outcomes.append(type(error))


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["block", "aclose", "close"])
async def test_what_runs_is_cancelled(way: str, tmp_path: Path) -> None:
    outcomes: list[object] = []
    slow, gate = Slow(), Gate()
    repo = create(tmp_path / "repo")
    repo.ensure_object(b"garbage")
    async with anyio.create_task_group() as tasks:
        async with repo if way == "block" else anyio.create_task_group():
            tasks.start_soon(outcome, lambda: import_layer(repo, NOTHING, slow, limits=None), outcomes)
            tasks.start_soon(outcome, lambda: to_thread.run_sync(repo.ensure_stream, "s", OCI_LAYER, gate), outcomes)
            await slow.asked.wait()
            await to_thread.run_sync(gate.reached.wait)
            gate.open()
            if way == "close":
                repo.close()
            elif way == "aclose":
                await repo.aclose()
        if way != "close":
            assert RepositoryClosedError in outcomes
            assert state_of(repo).lifetime.unused
        with pytest.raises(RepositoryClosedError):
            await repo.ensure_object_async(b"after")
    assert len(outcomes) == 2
    assert state_of(repo).lifetime.unused
    with Repository.reset_metadata(tmp_path / "repo", insecure=True, timeout=0):
        pass


@pytest.mark.anyio
async def test_leaving_the_block_ends_a_pull_without_a_trace(tmp_path: Path) -> None:
    outcomes: list[object] = []
    for steps in range(0, 60, 7):
        repo = create(tmp_path / f"repo{steps}")
        async with anyio.create_task_group() as tasks, repo:
            source = f"oci:{LAYOUTS}/basic"
            tasks.start_soon(outcome, lambda repo=repo, s=source: pull(repo, s, platform=PLATFORM), outcomes)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
        with Repository.open_path(tmp_path / f"repo{steps}") as again:
            assert again.fsck().ok
    assert RepositoryClosedError in outcomes


@pytest.mark.anyio
async def test_a_cancelled_close_waits_all_the_same(anyio_backend_name: str, tmp_path: Path) -> None:
    repo, gate = create(tmp_path / "repo"), Gate()
    done: list[str] = []

    async def close() -> None:
        try:
            await repo.aclose()
        finally:
            done.append("closed")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, repo.ensure_stream, "s", OCI_LAYER, gate)
        await to_thread.run_sync(gate.reached.wait)
        async with anyio.create_task_group() as closing:
            closing.start_soon(close)
            while not state_of(repo).closed:
                await anyio.lowlevel.checkpoint()
            closing.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert done == []
                done.append("opened")
                gate.open()
    assert done == ["opened", "closed"]
    assert state_of(repo).lifetime.unused


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["block", "aclose", "close"])
async def test_nothing_lands_in_the_next_repository(way: str, tmp_path: Path) -> None:
    """Stores under way at the end of a handle, again and again, and descriptors of the same numbers right after."""
    for turn in range(12):
        old, new = create(tmp_path / f"old{turn}"), create(tmp_path / f"new{turn}")
        new.close()
        outcomes: list[object] = []
        async with anyio.create_task_group() as tasks:
            async with old if way == "block" else anyio.create_task_group():
                for number in range(30):
                    tasks.start_soon(outcome, partial(old.ensure_object_async, b"old %d" % number * 999), outcomes)
                many = partial(old.ensure_objects_async, [b"many %d" % number for number in range(900)])
                tasks.start_soon(outcome, many, outcomes)
                tasks.start_soon(outcome, old.gc_async, outcomes)
                for _ in range(turn):
                    await anyio.lowlevel.checkpoint()
                if way == "aclose":
                    await old.aclose()
                elif way == "close":
                    old.close()
            async with Repository.open_path(tmp_path / f"new{turn}") as repo:
                await repo.ensure_object_async(b"new")
        assert len(outcomes) == 32
        assert contents(tmp_path / f"new{turn}") == {b"new"}
        old.close()


@pytest.mark.parametrize("turns", [4, pytest.param(200, marks=pytest.mark.stress)])
def test_two_repositories_in_threads_never_meet(turns: int, tmp_path: Path) -> None:
    """Each thread stores, collects and flushes in what another one opens and closes under it."""
    stop, wrong = threading.Event(), list[BaseException]()
    places = [tmp_path / "zero", tmp_path / "one"]
    current = [create(place) for place in places]
    for place, repo in zip(places, current, strict=True):
        repo.write_stream(_stream(repo, place.name), "kept", "kept")

    def work(which: int, kind: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            repo = current[which]
            try:
                if kind == 0:
                    repo.ensure_object(f"{places[which].name} {number}".encode() * 20)
                elif kind == 1:
                    repo.gc(timeout=0.05)
                else:
                    repo.sync()
                    list(repo.merge_splitstream("kept"))
            except ComposefsError:
                pass
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=work, args=(which, kind)) for which in (0, 1) for kind in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for turn in range(turns):
        old = current[turn % 2]
        old.close()
        current[turn % 2] = Repository.open_path(places[turn % 2])
    stop.set()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    for place, repo in zip(places, current, strict=True):
        repo.close()
        other = next(each.name for each in places if each != place)
        assert not [content for content in contents(place) if other.encode() in content]
        with Repository.open_path(place) as again:
            assert again.fsck().ok
            assert again.has_stream("kept")


def _stream(repo: Repository, name: str) -> Any:
    writer = repo.create_stream(OCI_LAYER)
    for number in range(50):
        writer.write_external(f"{name} {number}".encode() * 30)
    return writer
