"""Garbage collection of stores: what is kept, condemned and deleted, when; and what is told about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from composefs_async.errors import BlobMissingError, StoreBusyError, StoreFormatError
from composefs_async.exchange import collect, fetch, publish
from composefs_async.exchange.backends.memory import MemoryStore
from composefs_async.exchange.commit import remove_ref
from composefs_async.exchange.condemned import CONDEMNED_KEY, Condemned
from composefs_async.exchange.documents import blob_key, parse_ref, ref_key
from composefs_async.exchange.gc import CollectReport, RefCost
from composefs_async.exchange.gc import collect as program
from composefs_async.exchange.protocol import run as run_program

from .conftest import FILES, MORE, Images, Journal, memory_store

pytestmark = pytest.mark.usefixtures("no_leaks")

GRACE = 86400
DAY = GRACE + 10


@dataclass
class Clock:
    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def run(function: Any, *arguments: Any, **options: Any) -> Any:
    async def work() -> Any:
        return await function(*arguments, **options)

    return anyio.run(work)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backend(clock: Clock) -> MemoryStore:
    return MemoryStore(clock=clock)


def gc(backend: MemoryStore, **options: Any) -> CollectReport:
    report: CollectReport = run(collect, memory_store(backend), **options)
    return report


def remove(backend: MemoryStore, name: str) -> None:
    assert run_program(remove_ref(name, url=""), backend)


def blobs(backend: MemoryStore) -> set[str]:
    return {key for key in backend.objects if key.startswith("blobs/")}


def test_what_a_name_needs_is_kept_and_the_rest_goes_after_the_grace_time(
    images: Images, backend: MemoryStore, clock: Clock
) -> None:
    repo = images.repository()
    images.add(repo, "a", FILES)
    images.add(repo, "b", MORE)
    run(publish, repo, "a", memory_store(backend), name="a")
    kept = blobs(backend)
    run(publish, repo, "b", memory_store(backend), name="b")
    everything = blobs(backend)
    remove(backend, "b")
    clock.now += 100
    first = gc(backend)
    assert (first.live_blobs, first.young_blobs, first.condemned_blobs, first.deleted_blobs) == (len(kept), 4, 0, 0)
    clock.now += DAY
    second = gc(backend)
    assert (second.young_blobs, second.condemned_blobs, second.deleted_blobs) == (0, 4, 0)
    clock.now += DAY
    third = gc(backend)
    # Now the time of the list is known to be older than the grace time.
    assert (third.condemned_blobs, third.deleted_blobs, blobs(backend)) == (0, 4, kept)
    assert third.deleted_bytes > 0
    assert everything - kept != set()
    run(fetch, images.repository(), memory_store(backend), "a")
    assert Condemned.parse(backend.objects[CONDEMNED_KEY].data, "") == Condemned()


def test_what_is_on_the_list_and_needed_again_comes_off_it(images: Images, backend: MemoryStore, clock: Clock) -> None:
    repo = images.repository()
    images.add(repo, "a", FILES)
    run(publish, repo, "a", memory_store(backend), name="a")
    ref = backend.objects[ref_key("a")]
    remove(backend, "a")
    clock.now += DAY
    assert gc(backend).condemned_blobs == 4
    backend.objects[ref_key("a")] = ref  # a writer that has read the list before
    clock.now += DAY
    report = gc(backend)
    assert (report.condemned_blobs, report.deleted_blobs, report.live_blobs) == (0, 0, 4)


def test_a_publisher_that_meets_the_list_sends_what_it_needs_under_other_names(
    images: Images, backend: MemoryStore, clock: Clock
) -> None:
    repo, target = images.repository(), images.repository()
    images.add(repo, "a", FILES)
    first = run(publish, repo, "a", memory_store(backend), name="a")
    old = blobs(backend)
    remove(backend, "a")
    clock.now += DAY
    assert gc(backend).condemned_blobs == len(old)
    again = run(publish, repo, "a", memory_store(backend), name="a")
    assert again.manifest_digest != first.manifest_digest
    ref = parse_ref(backend.objects[ref_key("a")].data, "a")
    assert blob_key(ref.digest) not in old
    clock.now += DAY
    assert gc(backend).deleted_blobs == len(old)
    assert blobs(backend) & old == set()
    run(fetch, target, memory_store(backend), "a")
    assert target.fsck().ok


def test_a_reused_blob_that_is_gone_is_sent_again(images: Images, backend: MemoryStore) -> None:
    """Deleted after the base had been read: the look before the commit finds it."""
    repo, target = images.repository(), images.repository()
    images.add(repo, "a", FILES)
    images.add(repo, "b", FILES, MORE)
    run(publish, repo, "a", memory_store(backend), name="x")
    packs = {key for key in blobs(backend) if len(backend.objects[key].data) > 3000}
    journal = Journal()

    def lose(operation: str, key: str) -> None:
        if operation == "put":
            for pack in packs:
                backend.objects.pop(pack, None)
            packs.clear()

    journal.fail = lose
    backend._before = journal
    run(publish, repo, "b", memory_store(backend), name="x")
    run(fetch, target, memory_store(backend), "x")
    assert target.fsck().ok


def test_one_run_at_a_time_and_a_dead_one_is_taken_over(backend: MemoryStore, clock: Clock) -> None:
    memory_store(backend)
    dead = program("url", GRACE, clock=clock, owner="dead")
    answer: Any = None
    for _ in range(3):  # it reads the list, owns it, and is never heard of again
        request = dead.send(answer)
        answer = run_program(one(request), backend)
    with pytest.raises(StoreBusyError, match="garbage collection dead is at work") as caught:
        gc(backend)
    assert (caught.value.owner, caught.value.since) == ("dead", "2023-11-14T22:13:20Z")
    clock.now += DAY
    gc(backend)
    with pytest.raises(StoreBusyError, match="has taken over"):
        run_program(rest_of(dead, answer), backend)


def one(request: Any) -> Any:
    return (yield request)


def rest_of(program: Any, answer: Any) -> Any:
    try:
        while True:
            answer = yield program.send(answer)
    except StopIteration as end:
        return end.value


def test_a_dry_run_writes_nothing_and_tells_what_each_name_costs(images: Images, backend: MemoryStore) -> None:
    repo = images.repository()
    images.add(repo, "a", FILES)
    images.add(repo, "b", FILES, MORE)
    run(publish, repo, "a", memory_store(backend), name="one")
    run(publish, repo, "a", memory_store(backend), name="two")
    run(publish, repo, "b", memory_store(backend), name="three")
    before = dict(backend.objects)
    report = gc(backend, dry_run=True)
    assert backend.objects == before
    size = sum(len(stored.data) for key, stored in before.items() if key.startswith("blobs/"))
    costs = {cost.name: cost for cost in report.refs}
    assert sorted(costs) == ["one", "three", "two"]
    assert (costs["one"].exclusive, costs["two"].exclusive) == (0, 0)
    assert costs["three"] == RefCost("three", size - costs["one"].shared, 0)
    assert (report.live_bytes, report.condemned_blobs, report.dry_run) == (size, 0, True)


def test_nothing_is_deleted_while_a_name_cannot_be_understood(
    images: Images, backend: MemoryStore, clock: Clock
) -> None:
    repo = images.repository()
    images.add(repo, "a", FILES)
    run(publish, repo, "a", memory_store(backend), name="a")
    run(publish, repo, "a", memory_store(backend), name="b", repack=True)
    remove(backend, "a")
    clock.now += DAY
    backend.put(ref_key("c"), b"{")
    for error in (StoreFormatError, StoreFormatError):
        before = blobs(backend)
        with pytest.raises(error):
            gc(backend)
        assert blobs(backend) == before
        clock.now += 2 * DAY
    backend.objects.pop(ref_key("c"))
    ref = parse_ref(backend.objects[ref_key("b")].data, "b")
    assert ref.manifest is not None
    gc(backend)
    assert BlobMissingError is not None


def test_blobs_that_are_to_be_kept_are_kept(images: Images, backend: MemoryStore, clock: Clock) -> None:
    repo = images.repository()
    images.add(repo, "a", FILES)
    run(publish, repo, "a", memory_store(backend), name="a")
    remove(backend, "a")
    keep = [f"sha256:{key.rpartition('/')[2]}" for key in blobs(backend)][:1]
    for _ in range(3):
        clock.now += DAY
        gc(backend, keep=keep)
    assert [f"sha256:{key.rpartition('/')[2]}" for key in blobs(backend)] == keep
