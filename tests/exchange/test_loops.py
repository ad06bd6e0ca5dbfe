"""Publishing and fetching on each event loop: nothing blocks it, and a cancellation leaves no thread and no name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from composefs_async.exchange import fetch, open_store, publish
from composefs_async.exchange.backends.memory import MemoryStore
from composefs_async.exchange.store import Store
from composefs_async.oci import Platform, pull
from composefs_async.repository import Repository

from .conftest import snapshot

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

LAYOUT = Path(__file__).parent.parent / "vectors/layouts/basic"


async def imported(path: Path) -> Repository:
    repo = await Repository.init_async(path, insecure=True)
    await pull(repo, f"oci:{LAYOUT}", tag="basic", platform=Platform("linux", "amd64"))
    return repo


@pytest.mark.usefixtures("no_blocking")
async def test_an_image_goes_through_a_directory(tmp_path: Path) -> None:
    async with (
        await imported(tmp_path / "a") as repo,
        await Repository.init_async(tmp_path / "b", insecure=True) as target,
        open_store(f"file://{tmp_path}/store") as store,
    ):
        await store.init()
        sent = await publish(repo, "basic", store, name="x/basic")
        got = await fetch(target, [store, repo], "x/basic", tag="basic")
        assert got.manifest_digest == sent.manifest_digest
        assert [ref.name async for ref in store.refs()] == ["x/basic"]
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


class Waiting(MemoryStore):
    """Packs come when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = threading.Event(), threading.Event()

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        pieces = super().get(key, start, length)
        return self._late(pieces) if length is not None else pieces

    def _late(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        self.asked.set()
        self.go.wait(30)
        yield from pieces


async def test_a_fetch_that_is_cancelled_leaves_no_name(tmp_path: Path) -> None:
    backend = Waiting()
    async with (
        await imported(tmp_path / "a") as repo,
        await Repository.init_async(tmp_path / "b", insecure=True) as target,
        Store(backend) as store,
    ):
        await store.init()
        await publish(repo, "basic", store)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fetch, target, store, "basic")
            await anyio.to_thread.run_sync(backend.asked.wait, 30)
            tasks.cancel_scope.cancel()
            backend.go.set()
        assert [name for name in snapshot(tmp_path / "b") if not name.startswith("objects")] == []
        await fetch(target, store, "basic")
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


async def test_a_rate_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("composefs_async.exchange.pacing.pause", waited.append)
    async with await imported(tmp_path / "a") as repo, Store(MemoryStore(), limit_rate=1000) as store:
        await store.init()
        sent = await publish(repo, "basic", store)
    # What was sent takes so many seconds, however the pieces were cut.
    assert max(waited) == pytest.approx(sent.bytes_sent / 1000, rel=0.1)
