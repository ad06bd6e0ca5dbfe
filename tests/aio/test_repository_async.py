from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from composefs_async import fsverity
from composefs_async._repo import images, objects, streams
from composefs_async.digest import ObjectId
from composefs_async.errors import IntegrityError, StreamNotFoundError
from composefs_async.oci import image_repair, repair_sources
from composefs_async.oci.limits import Limits
from composefs_async.oci.platforms import Platform
from composefs_async.oci.sources import OciLayoutSource, layout
from composefs_async.repository import Repository, state_of
from composefs_async.results import StoreOutcome
from composefs_async.splitstream import OCI_LAYER, SplitstreamWriter

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"


@pytest.fixture
async def repo(tmp_path: Path) -> AsyncIterator[Repository]:
    repository = await Repository.init_async(tmp_path / "repo", insecure=True)
    async with repository:
        yield repository


CONTENTS = [b"%d" % number * 50 for number in range(700)]


@pytest.mark.usefixtures("no_blocking")
async def test_concurrent_single_objects_are_all_stored(tmp_path: Path) -> None:
    repo = await Repository.init_async(tmp_path / "repo", insecure=True)
    got = {}

    async def store(data: bytes) -> None:
        got[data] = await repo.ensure_object_async(data)

    async with repo:
        async with anyio.create_task_group() as tasks:
            for data in CONTENTS:
                tasks.start_soon(store, data)
        for data in CONTENTS[::100]:
            assert await repo.read_object_async(got[data].id) == data
    assert {data: stored.id for data, stored in got.items()} == {
        data: fsverity.digest(data, repo.algorithm) for data in CONTENTS
    }
    assert {stored.outcome for stored in got.values()} == {StoreOutcome.STORED}


async def lazily(contents: list[bytes]) -> AsyncIterator[bytes]:
    for data in contents:
        await anyio.lowlevel.checkpoint()
        yield data


@pytest.mark.usefixtures("no_blocking")
@pytest.mark.parametrize("source", [list, iter, lazily], ids=["list", "iterator", "async iterator"])
async def test_bulk_objects_keep_their_order(tmp_path: Path, source: object) -> None:
    repo = await Repository.init_async(tmp_path / "repo", insecure=True)
    async with repo:
        stored = await repo.ensure_objects_async(source(CONTENTS))  # type: ignore[operator]
        assert await repo.ensure_objects_async([]) == []
    assert [found.id for found in stored] == [fsverity.digest(data, repo.algorithm) for data in CONTENTS]


async def test_an_error_of_the_iterable_leaves_as_itself(repo: Repository) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        await repo.ensure_objects_async(broken())


async def test_the_write_semaphore_has_a_token_per_processor_and_is_free_again(repo: Repository) -> None:
    limiter = repo.write_semaphore()
    assert limiter is repo.write_semaphore()
    assert limiter.total_tokens == os.cpu_count()
    await repo.ensure_objects_async(CONTENTS)
    assert limiter.borrowed_tokens == 0


def test_one_repository_works_on_one_loop_after_another(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "repo", insecure=True)
    for backend in ("asyncio", "trio", "asyncio"):
        assert anyio.run(repo.ensure_object_async, b"x", backend=backend).size == 1
    repo.close()


# -- handles -----------------------------------------------------------------------------------


def tmpfile(repo: Repository, data: bytes) -> int:
    fd = repo.create_object_tmpfile()
    os.write(fd, data)
    return fd


async def test_spawned_objects_are_finalized_in_the_background(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "repo", insecure=True)
    async with repo:
        handles = [repo.spawn_finalize_object_tmpfile(tmpfile(repo, data), len(data)) for data in CONTENTS[:40]]
        stored = [await handle for handle in handles]
        assert await handles[0] == stored[0]
    assert [found.id for found in stored] == [fsverity.digest(data, repo.algorithm) for data in CONTENTS[:40]]


async def test_handles_that_nobody_awaits_are_finished_at_the_end_of_the_block(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "repo", insecure=True)
    async with repo:
        handle = repo.spawn_finalize_object_tmpfile(tmpfile(repo, b"abc"), 3)
        assert not handle.done
    assert handle.done
    assert (await handle).id == fsverity.digest(b"abc", repo.algorithm)


async def test_a_failed_handle_raises_where_it_is_awaited_and_spares_its_siblings(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "repo", insecure=True)
    async with repo:
        bad = repo.spawn_finalize_object_tmpfile(tmpfile(repo, b"abc"), 4)
        good = repo.spawn_finalize_object_tmpfile(tmpfile(repo, b"abc"), 3)
        with pytest.raises(IntegrityError):
            await bad
        assert (await good).size == 3


async def test_errors_that_nobody_awaited_leave_the_block_as_one_group(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "repo", insecure=True)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with repo:
            for _ in range(2):
                repo.spawn_finalize_object_tmpfile(tmpfile(repo, b"abc"), 4)
    assert [type(error) for error in caught.value.exceptions] == [IntegrityError] * 2


async def test_an_error_of_the_block_leaves_as_itself_and_closes_the_repository(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "repo", insecure=True)
    with pytest.raises(KeyError):  # noqa: PT012
        async with repo:
            repo.spawn_finalize_object_tmpfile(tmpfile(repo, b"abc"), 3)
            raise KeyError
    with pytest.raises(ValueError, match="closed"):
        repo.ensure_object(b"x")


async def test_spawning_outside_a_block_is_refused_and_closes_the_file(tmp_path: Path) -> None:
    repo = Repository.init(tmp_path / "repo", insecure=True)
    with repo:
        fd = tmpfile(repo, b"abc")
        with pytest.raises(RuntimeError, match="async with"):
            repo.spawn_finalize_object_tmpfile(fd, 3)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


# -- streams -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_blocking")
async def test_a_stream_with_objects_stored_in_parallel_is_published(tmp_path: Path) -> None:
    repo = await Repository.init_async(tmp_path / "repo", insecure=True)
    async with repo:
        writer = repo.create_stream(OCI_LAYER)
        for data in CONTENTS:
            writer.write_inline(b"[")
            writer.write_external_parallel(data)
        object_id = await repo.write_stream_async(writer, "name", "a/b")
        assert await repo.has_stream_async("name") == object_id
        assert await repo.has_named_stream_async("a/b")
        merged = b"".join([piece async for piece in repo.merge_splitstream_async("name")])
        assert merged == b"".join(b"[" + data for data in CONTENTS)
        await repo.name_stream_async("name", "c")
        assert await repo.named_streams_async() == [("a/b", "name"), ("c", "name")]
        assert await repo.unname_stream_async("c")
        await repo.sync_async()
        with await repo.open_stream_async("name") as reader:
            assert len(reader.object_refs) == len(CONTENTS)


async def test_a_merge_that_is_left_early_closes_its_file(repo: Repository) -> None:
    await repo.ensure_stream_async("name", OCI_LAYER, lambda writer: writer.write_inline(bytes(10 << 20)))
    pieces = repo.merge_splitstream_async("name")
    assert await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]


async def opened_blob(repo: Repository) -> None:
    source = OciLayoutSource(LAYOUTS / "one")
    found = await source.resolve(platform=Platform("linux", "amd64"))
    async with source.open_blob(found.layers[0].descriptor):
        pass


async def opened_scratch(repo: Repository) -> None:
    async with repair_sources._scratch(state_of(repo), outside=False):
        pass


async def opened_source(repo: Repository) -> None:
    async with image_repair._opened(state_of(repo), repo.path, Limits(), outside=False):
        pass


OPENERS: dict[str, tuple[object, str, Callable[[Repository], Awaitable[object]]]] = {
    "object": (objects, "open_object", lambda repo: repo.open_object_async(stored(repo))),
    "tmpfile": (objects, "create_object_tmpfile", lambda repo: repo.create_object_tmpfile_async()),
    "stream": (streams, "open_stream", lambda repo: repo.open_stream_async("stream")),
    "image": (images, "open_image", lambda repo: repo.open_image_async(repo.named_images()[0][1])),
    "blob": (layout, "check_size", opened_blob),
    "scratch": (repair_sources, "_make_scratch", opened_scratch),
    "source": (image_repair, "open_source", opened_source),
}


def stored(repo: Repository) -> ObjectId:
    return repo.ensure_object(b"content").id


def scratches(repo: Repository) -> list[Path]:
    return list(Path(repo.path).glob(".composefs-async/scratch-*"))


@pytest.mark.parametrize("kind", OPENERS)
async def test_what_was_opened_for_a_task_that_was_cancelled_is_closed(
    kind: str, repo: Repository, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("Task.cancel is asyncio's: AnyIO's cancellation waits until the result has been delivered")
    repo.write_stream(repo.create_stream(OCI_LAYER), "stream")
    repo.write_image(b"image", "image")
    module, name, work = OPENERS[kind]
    begun, go, real = threading.Event(), threading.Event(), getattr(module, name)

    def late(*arguments: object, **options: object) -> object:
        result = real(*arguments, **options)
        begun.set()
        assert go.wait(60)
        return result

    monkeypatch.setattr(module, name, late)
    task = asyncio.ensure_future(work(repo))
    assert await anyio.to_thread.run_sync(begun.wait, 30), task
    task.cancel()
    await anyio.lowlevel.checkpoint()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scratches(repo) == []


async def test_async_forms_raise_the_same_errors(repo: Repository) -> None:
    with pytest.raises(StreamNotFoundError):
        await repo.open_stream_async("missing")
    with pytest.raises(StreamNotFoundError):
        async for _ in repo.merge_splitstream_async("missing"):
            pass


async def test_concurrent_flushes_share_few_syncfs_calls(repo: Repository) -> None:
    from composefs_async.repository import state_of

    async def register(number: int) -> None:
        writer = SplitstreamWriter(repo, OCI_LAYER)
        writer.write_inline(b"%d" % number)
        await repo.write_stream_async(writer, f"s{number}")

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(register, number)
    assert len(os.listdir(f"{repo.path}/streams")) == 30
    assert state_of(repo).syncs.count <= 30
