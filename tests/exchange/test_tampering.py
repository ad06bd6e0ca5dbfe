"""Stores that are damaged, lie or lack something: an error that names it, or content from the next source; no names."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async._zstd import zstd
from composefs_async.cli.exit_codes import exit_code
from composefs_async.digest import ObjectId
from composefs_async.errors import ComposefsError, FetchDamagedError, FetchError
from composefs_async.exchange import fetch, publish
from composefs_async.exchange.backends.base import RangeIgnoredError, ThrottledError, TransientError
from composefs_async.exchange.backends.memory import MemoryStore
from composefs_async.exchange.documents import (
    TABLE_TYPE,
    Descriptor,
    Manifest,
    blob_key,
    build_manifest,
    digest_of,
    encode_ref,
    parse_config,
    parse_manifest,
    parse_ref,
    ref_key,
)
from composefs_async.exchange.store import Store
from composefs_async.exchange.table import Entry, decode_table, encode_table
from composefs_async.exchange.transfers import Source
from composefs_async.progress import ProgressEvent, SourceFailed
from composefs_async.repository import Repository

from .conftest import FILES, MORE, Images, Journal, memory_store, noise, snapshot, text

pytestmark = pytest.mark.usefixtures("no_leaks")

SMALL = {"etc/a": text(300, 1), "usr/c": noise(100, 3)}
EVERYTHING = os.environ.get("COMPOSEFS_ASYNC_STRESS") == "1"


def run(function: Any, *arguments: Any, **options: Any) -> Any:
    async def work() -> Any:
        return await function(*arguments, **options)

    return anyio.run(work)


def copy_of(backend: MemoryStore, url: str = "memory:copy") -> MemoryStore:
    made = MemoryStore(url)
    made.objects.update(backend.objects)
    return made


def published(images: Images, *layers: dict[str, bytes]) -> tuple[Repository, MemoryStore, Manifest]:
    repo, backend = images.repository(), MemoryStore("memory:good")
    images.add(repo, "image", *layers)
    run(publish, repo, "image", memory_store(backend))
    ref = parse_ref(backend.objects[ref_key("image")].data, "image")
    return repo, backend, parse_manifest(ref.manifest or b"", ref.digest)


def names(repo: Repository) -> list[str]:
    return [name for name in snapshot(Path(repo.path)) if name.startswith(("streams", "images"))]


def changed(backend: MemoryStore, key: str, data: bytes) -> MemoryStore:
    spoilt = copy_of(backend, "memory:spoilt")
    spoilt.put(key, data)
    return spoilt


def flips(data: bytes) -> Iterator[bytes]:
    positions = (
        range(len(data)) if EVERYTHING else random.Random(len(data)).sample(range(len(data)), min(len(data), 24))
    )
    for at in positions:
        yield data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


KINDS: dict[str, Callable[[Manifest], str]] = {
    "pack": lambda manifest: blob_key(manifest.blobs[0].digest),
    "table": lambda manifest: blob_key(manifest.table.digest),
    "reference": lambda manifest: ref_key("image"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_is_found_and_healed_from_the_next_source(images: Images, kind: str) -> None:
    """Where a change means nothing (a bit that zstd does not use, the name in a reference) the image is right."""
    repo, backend, manifest = published(images, SMALL)
    key, right = KINDS[kind](manifest), snapshot(Path(repo.path))
    for data in flips(backend.objects[key].data):
        spoilt = changed(backend, key, data)
        target = images.repository()
        failed = outcome(target, spoilt)
        assert failed in {"pack": (0, 4), "table": (4,), "reference": (0, 3, 4, 9)}[kind]
        healed = run(fetch, target, [memory_store(spoilt), memory_store(copy_of(backend))], "image")
        assert set(healed.failed_sources) <= {"memory:spoilt"}
        # What was damaged is an object of its own, which has no name and which gc removes.
        assert right.items() <= snapshot(Path(target.path)).items()
        assert target.fsck().ok
        target.close()


def outcome(target: Repository, backend: MemoryStore) -> int:
    """The exit code of a fetch; nothing has a name if it fails."""
    try:
        run(fetch, target, memory_store(backend), "image")
    except ComposefsError as error:
        code = exit_code(error)
    else:
        return 0
    assert names(target) == []
    return code


MISSING = {**KINDS, "manifest": lambda manifest: blob_key(manifest.digest)}


@pytest.mark.parametrize("change", ["gone", "empty", "cut", "longer"])
@pytest.mark.parametrize("kind", ["pack", "table"])
def test_blobs_that_are_not_whole(images: Images, kind: str, change: str) -> None:
    repo, backend, manifest = published(images, FILES)
    key = KINDS[kind](manifest)
    data = backend.objects[key].data
    spoilt = changed(
        backend, key, {"empty": b"", "cut": data[: len(data) // 2], "longer": data + b"x"}.get(change, b"")
    )
    if change == "gone":
        del spoilt.objects[key]
    target = images.repository()
    if (kind, change) == ("pack", "longer"):
        run(fetch, target, memory_store(spoilt), "image")  # no entry covers what is behind
        return
    with pytest.raises(FetchError) as caught:
        run(fetch, target, memory_store(spoilt), "image")
    assert exit_code(caught.value) == (9 if change == "gone" else 4)
    assert isinstance(caught.value, FetchDamagedError) == (change != "gone")
    assert "memory:spoilt" in str(caught.value)
    assert names(target) == []
    events: list[ProgressEvent] = []
    sources = [memory_store(spoilt), memory_store(copy_of(backend))]
    got = run(fetch, target, sources, "image", progress=events.append)
    assert list(got.failed_sources) == ["memory:spoilt"]
    assert {event.source for event in events if isinstance(event, SourceFailed)} == {"memory:spoilt"}
    assert snapshot(Path(target.path)) == snapshot(Path(repo.path))


def test_the_error_names_the_object_that_is_damaged(images: Images) -> None:
    _, backend, manifest = published(images, {"f": noise(5000, 1)})
    key = blob_key(manifest.blobs[0].digest)
    data = backend.objects[key].data
    at = data.index(noise(5000, 1)[:64]) + 100
    spoilt = changed(backend, key, data[:at] + b"?" + data[at + 1 :])
    with pytest.raises(FetchDamagedError) as caught:
        run(fetch, images.repository(), memory_store(spoilt), "image")
    [missing] = caught.value.missing
    assert f"object {missing}" in str(caught.value)
    table = read_table(backend, manifest)
    assert bytes.fromhex(missing)[:16] in {table.key(at) for at in range(len(table)) if table.sizes[at] == 5000}


def test_a_manifest_that_is_missing_comes_from_the_next_store(images: Images) -> None:
    """The reference of the first store counts, also where it does not hold the manifest itself."""
    repo, backend, manifest = published(images, FILES)
    spoilt = copy_of(backend, "memory:spoilt")
    del spoilt.objects[blob_key(manifest.digest)]
    target, name = images.repository(), f"image@{manifest.digest}"
    with pytest.raises(FetchError) as caught:
        run(fetch, target, memory_store(spoilt), name)
    assert exit_code(caught.value) == 9
    run(fetch, target, [memory_store(spoilt), memory_store(backend)], name)
    assert snapshot(Path(target.path))["streams/refs/oci/image"] == snapshot(Path(repo.path))["streams/refs/oci/image"]


def test_each_object_comes_from_whoever_has_it(images: Images) -> None:
    """Two stores of which each has lost other packs, and a repository that has some of the files."""
    repo, backend = images.repository(), MemoryStore("memory:0")
    files = [{f"{at}/{number}": noise(70_000, at * 10 + number) for number in range(4)} for at in range(3)]
    images.add(repo, "image", *files)
    run(publish, repo, "image", memory_store(backend), pack_size=100_000)
    first, second = copy_of(backend, "memory:1"), copy_of(backend, "memory:2")
    ref = parse_ref(backend.objects[ref_key("image")].data, "image")
    packs = [blob_key(blob.digest) for blob in parse_manifest(ref.manifest or b"", ref.digest).blobs]
    assert len(packs) > 4
    for at, key in enumerate(packs):
        if at % 2:
            del first.objects[key]
        else:
            second.put(key, bytes(len(backend.objects[key].data)))
    local, target = images.repository(), images.repository()
    images.add(local, "part", files[0])
    got = run(fetch, target, [memory_store(first), memory_store(second), local], "image")
    assert snapshot(Path(repo.path)).items() <= snapshot(Path(target.path)).items()
    assert set(got.failed_sources) <= {"memory:1", "memory:2"}


def test_a_source_that_lies_twice_is_not_asked_any_more(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "learn", lambda self, size, seconds: None)  # so that the order given decides
    repo, backend = images.repository(), MemoryStore("memory:good")
    images.add(repo, "image", {f"{at}": noise(80_000, at) for at in range(9)})
    run(publish, repo, "image", memory_store(backend), pack_size=70_000)
    large = {key for key, stored in backend.objects.items() if len(stored.data) == 80_000}
    assert len(large) == 9
    journal = Journal()
    liar = copy_of(backend, "memory:liar")
    for key in large:
        liar.put(key, bytes(80_000))
    liar._before = journal
    target = images.repository()
    got = run(fetch, target, [memory_store(liar, transfers=1), memory_store(backend, transfers=1)], "image")
    assert len([key for operation, key in journal.calls if operation == "get" and key in large]) == 2
    assert list(got.failed_sources) == ["memory:liar"]
    assert snapshot(Path(repo.path)).items() <= snapshot(Path(target.path)).items()


# -- what may pass -----------------------------------------------------------------------------


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries wait no time; the delays that they would have waited."""
    waited: list[float] = []
    monkeypatch.setattr("composefs_async.exchange.pacing.pause", waited.append)
    monkeypatch.setattr("composefs_async.exchange.transfers.pause", waited.append)
    monkeypatch.setattr("composefs_async.exchange.pacing.retrying.__kwdefaults__", {"wait": waited.append})
    return waited


def test_a_store_that_asks_for_patience_gets_it(images: Images, no_waiting: list[float]) -> None:
    _, backend, _ = published(images, FILES)
    failing, left = copy_of(backend), [0]

    def fail(operation: str, key: str) -> None:
        left[0] += 1
        if left[0] % 2:
            raise ThrottledError("memory:", "503 Slow Down", 7.0)

    failing._before = fail
    store = memory_store(failing, transfers=8)
    run(fetch, images.repository(), store, "image")
    assert store.backend.gate.limit == 1
    assert set(no_waiting) == {7.0}


def test_a_store_that_never_answers_is_given_up(images: Images, no_waiting: list[float]) -> None:
    _, backend, _ = published(images, FILES)
    failing = copy_of(backend, "memory:down")

    def fail(operation: str, key: str) -> None:
        raise TransientError("memory:down", "connection refused")

    failing._before = fail
    with pytest.raises(FetchError, match="memory:down: connection refused") as caught:
        run(fetch, images.repository(), memory_store(failing), "image")
    assert exit_code(caught.value) == 9
    assert len(no_waiting) == 4
    run(fetch, images.repository(), [memory_store(failing), memory_store(backend)], "image")


class Breaking(MemoryStore):
    """Answers break off after half of each range, as often as said."""

    breaks = 3

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        pieces = super().get(key, start, length)
        if key.startswith("blobs/") and self.breaks:
            self.breaks -= 1
            return self._half(b"".join(pieces))
        return pieces

    def _half(self, data: bytes) -> Iterator[bytes]:
        yield data[: len(data) // 2]
        raise TransientError(self.url, "connection reset")


def test_what_came_before_a_break_is_not_asked_for_again(images: Images, no_waiting: list[float]) -> None:
    repo, backend, _ = published(images, {f"{at}": noise(1000, at) for at in range(100)})
    broken = Breaking("memory:broken")
    broken.objects.update(backend.objects)
    target, store = images.repository(), memory_store(broken)
    got = run(fetch, target, store, "image")
    assert snapshot(Path(target.path)) == snapshot(Path(repo.path))
    whole = sum(len(stored.data) for key, stored in backend.objects.items() if key.startswith("blobs/"))
    assert got.bytes_received < 1.2 * whole


def test_a_store_that_cannot_give_ranges_gives_the_whole(images: Images) -> None:
    repo, backend, _ = published(images, FILES, MORE)

    class Whole(MemoryStore):
        asked = 0

        def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            if length is not None:
                self.asked += 1
                raise RangeIgnoredError(self.url, "200")
            return super().get(key)

    whole = Whole()
    whole.objects.update(backend.objects)
    target = images.repository()
    run(fetch, target, memory_store(whole, transfers=1), "image")
    assert whole.asked == 1
    assert snapshot(Path(target.path)) == snapshot(Path(repo.path))


# -- tables that lie ---------------------------------------------------------------------------


def read_table(backend: MemoryStore, manifest: Manifest) -> Any:
    config = parse_config(manifest.config.data or b"", manifest.config.digest)
    raw = backend.objects[blob_key(manifest.table.digest)].data
    sizes = [blob.size for blob in manifest.blobs]
    return decode_table(raw, "t", algorithm=config.algorithm, blob_sizes=sizes)


def with_table(backend: MemoryStore, manifest: Manifest, entries: list[Entry]) -> MemoryStore:
    """The same store with another table, under a manifest whose digests are all right."""
    config = parse_config(manifest.config.data or b"", manifest.config.digest)
    raw = encode_table(config.algorithm, len(manifest.blobs), entries)
    other = build_manifest(config, Descriptor(TABLE_TYPE, digest_of(raw), len(raw)), manifest.blobs)
    lying = copy_of(backend, "memory:lying")
    lying.put(blob_key(digest_of(raw)), raw)
    lying.put(ref_key("image"), encode_ref("image", other))
    return lying


def test_tables_that_lie_bring_an_error_or_the_right_repository(images: Images) -> None:
    repo, backend, manifest = published(images, FILES, MORE)
    right = snapshot(Path(repo.path))
    table = read_table(backend, manifest)
    entries = [table.entry(at) for at in range(len(table))]
    size = manifest.blobs[0].size
    rnd = random.Random(5)
    for _ in range(60 if not EVERYTHING else 3000):
        lies = list(entries)
        for _ in range(rnd.randint(1, 3)):
            at = rnd.randrange(len(lies))
            column = rnd.choice(["key", "offset", "stored", "size", "kind", "coding", "drop"])
            if column == "drop" and len(lies) > 1:
                del lies[at]
            elif column == "key":
                lies[at] = lies[at]._replace(key=rnd.randbytes(16))
            elif column in ("kind", "coding"):
                lies[at] = lies[at]._replace(**{column: rnd.randrange(4 if column == "kind" else 2)})
            elif column != "drop":
                value = rnd.choice([0, 1, size, rnd.randrange(size), 1 << 40])
                lies[at] = lies[at]._replace(**{column: value})
        target = images.repository()
        if outcome(target, with_table(backend, manifest, lies)) == 0:
            found = snapshot(Path(target.path))
            assert {name: found.get(name) for name in right} == right
        target.close()


def test_a_member_that_unpacks_to_much_more_is_cut(images: Images) -> None:
    """A frame of a few bytes that would unpack to 100 MiB, in the place of an object."""
    _, backend, manifest = published(images, SMALL)
    bomb = zstd.compress(bytes(100 << 20))
    spoilt = copy_of(backend, "memory:spoilt")
    key = blob_key(manifest.blobs[0].digest)
    table = read_table(backend, manifest)
    entries = [table.entry(at)._replace(coding=1) for at in range(len(table))]
    target = images.repository()
    assert len(bomb) < 20_000
    entries = [entries[0]._replace(offset=0, stored=min(len(bomb), entries[0].size + 64))]
    spoilt.put(key, bomb.ljust(len(backend.objects[key].data), b"\0")[: len(backend.objects[key].data)])
    spoilt = with_table(spoilt, manifest, entries)
    with pytest.raises(FetchError):
        run(fetch, target, memory_store(spoilt), "image")


def test_a_config_that_names_what_nothing_leads_to_is_refused(images: Images) -> None:
    repo, backend, manifest = published(images, SMALL)
    config = parse_config(manifest.config.data or b"", manifest.config.digest)
    streams = {**config.streams, "oci-layer-sha256:" + "0" * 64: ObjectId(bytes(64))}
    from dataclasses import replace

    other = build_manifest(replace(config, streams=streams), manifest.table, manifest.blobs)
    lying = changed(backend, ref_key("image"), encode_ref("image", other))
    target = images.repository()
    with pytest.raises(FetchDamagedError, match="nothing leads to"):
        run(fetch, target, memory_store(lying), "image")
    assert names(target) == []
    assert isinstance(memory_store(lying), Store)
    repo.close()
