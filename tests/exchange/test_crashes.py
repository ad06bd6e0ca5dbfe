"""Publishers and fetchers that are stopped at any request: what is left, and what the next try does again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.errors import ComposefsError
from composefs_async.exchange import fetch, publish
from composefs_async.exchange.backends.memory import MemoryStore
from composefs_async.exchange.documents import blob_key, parse_manifest, parse_ref

from .conftest import Images, Journal, memory_store, noise, snapshot

pytestmark = pytest.mark.usefixtures("no_leaks")

FILES = {f"{at}": noise(40_000, at) for at in range(6)}


class StoppedError(BaseException):
    """What happens when the process ends here."""


def run(function: Any, *arguments: Any, **options: Any) -> Any:
    async def work() -> Any:
        return await function(*arguments, **options)

    return anyio.run(work)


def stopped(function: Any, *arguments: Any, **options: Any) -> bool:
    """Whether the work ended by that, alone or in a group."""
    ended = False
    try:
        run(function, *arguments, **options)
    except* StoppedError:
        ended = True
    return ended


def stop_at(journal: Journal, number: int) -> None:
    """From the request *number* on nothing reaches the store."""
    left = [number]

    def fail(operation: str, key: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError

    journal.fail = fail


def check_store(backend: MemoryStore) -> None:
    """Every name means an artifact that is complete."""
    for key, stored in backend.objects.items():
        if key.startswith("refs/"):
            ref = parse_ref(stored.data, key)
            manifest = parse_manifest(backend.objects[blob_key(ref.digest)].data, ref.digest)
            assert [digest for digest in manifest.needed if blob_key(digest) not in backend.objects] == []


def test_a_publisher_that_is_stopped_anywhere_goes_on(images: Images) -> None:
    repo, whole = images.repository(), Journal()
    images.add(repo, "image", FILES)
    backend = MemoryStore(before=whole)
    store = memory_store(backend)
    whole.calls.clear()
    expected = run(publish, repo, "image", store, pack_size=50_000)
    packs = [key for operation, key in whole.calls if operation == "put"]
    for number in range(len(whole.calls)):
        journal = Journal()
        backend = MemoryStore(before=journal)
        store = memory_store(backend)
        stop_at(journal, number)
        assert stopped(publish, repo, "image", store, pack_size=50_000)
        check_store(backend)
        before = [key for operation, key in journal.calls if operation == "put" and key in backend.objects]
        journal.fail = lambda operation, key: None
        journal.calls.clear()
        again = run(publish, repo, "image", memory_store(backend), pack_size=50_000)
        assert again.manifest_digest == expected.manifest_digest
        after = [key for operation, key in journal.calls if operation == "put"]
        sent_twice = [key for key in after if key in before and len(backend.objects[key].data) >= 40_000]
        # At most what was under way when it stopped: it had been put, and that had not been noted yet.
        assert len(sent_twice) <= 3
        assert len(after) <= len(packs)
        check_store(backend)


def test_a_fetcher_that_is_stopped_anywhere_goes_on(images: Images) -> None:
    repo, journal = images.repository(), Journal()
    images.add(repo, "image", FILES)
    backend = MemoryStore(before=journal)
    run(publish, repo, "image", memory_store(backend), pack_size=50_000)
    journal.calls.clear()
    run(fetch, images.repository(), memory_store(backend), "image")
    total = len(journal.calls)
    assert total >= 7
    for number in range(total):
        target = images.repository()
        stop_at(journal, number)
        assert stopped(fetch, target, memory_store(backend), "image")
        found = snapshot(Path(target.path))
        assert [name for name in found if name.startswith(("streams", "images"))] == []
        journal.fail = lambda operation, key: None
        got = run(fetch, target, memory_store(backend), "image")
        assert got.objects_fetched + sum(name.startswith("objects/") for name in found) == len(
            [name for name in snapshot(Path(repo.path)) if name.startswith("objects/")]
        )
        assert snapshot(Path(target.path)) == snapshot(Path(repo.path))
        assert target.leases() == []
        target.close()


def test_a_fetch_that_was_stopped_half_way_moves_the_other_half(images: Images) -> None:
    files = {f"{at}": noise(60_000, at) for at in range(40)}
    repo, journal = images.repository(), Journal()
    images.add(repo, "image", files)
    backend = MemoryStore(before=journal)
    run(publish, repo, "image", memory_store(backend), pack_size=60_000)
    target = images.repository()
    moved = [0]

    def fail(operation: str, key: str) -> None:
        moved[0] += len(backend.objects[key].data) if operation == "get" else 0
        if moved[0] > 1_200_000:
            raise StoppedError

    journal.fail = fail
    assert stopped(fetch, target, memory_store(backend, transfers=1), "image")
    journal.fail = lambda operation, key: None
    [lease] = target.leases()
    assert lease.reference.endswith("image")
    assert target.gc().objects_removed == 0
    got = run(fetch, target, memory_store(backend), "image")
    assert got.bytes_received < 0.55 * 2_400_000 + 100_000
    assert target.leases() == []


def test_a_full_disk_is_an_error_of_this_machine(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository cannot be written: no source is blamed for that."""
    repo, target, backend = images.repository(), images.repository(), MemoryStore()
    images.add(repo, "image", FILES)
    run(publish, repo, "image", memory_store(backend))

    def full(state: object, items: list[bytes]) -> list[Exception]:
        return [OSError(28, "No space left on device") for _ in items]

    monkeypatch.setattr("composefs_async.exchange.receiving.store_batch", full)
    with pytest.raises(OSError, match="No space left"):
        run(fetch, target, memory_store(backend), "image")
    assert not issubclass(OSError, ComposefsError)
