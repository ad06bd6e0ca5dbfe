"""Publishers and collections of one store, interleaved at every request in random orders, by a clock that jumps.

The programs are the real ones (`commit.commit`, `gc.collect`), run one request at a time over a store in memory.  After
each request every name must be complete.  With any of the safeguards switched off this fails, or it would be no test.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import RefConflictError, StoreBusyError, StoreError
from composefs_async.exchange import commit as commit_module
from composefs_async.exchange import gc as gc_module
from composefs_async.exchange.backends.memory import MemoryStore
from composefs_async.exchange.commit import Uploads, commit, read_condemned, read_ref, remove_ref
from composefs_async.exchange.condemned import Condemned
from composefs_async.exchange.documents import (
    PACK_TYPE,
    TABLE_TYPE,
    Config,
    Descriptor,
    Manifest,
    blob_key,
    build_manifest,
    digest_of,
    parse_manifest,
    parse_ref,
)
from composefs_async.exchange.protocol import Delete, Head, Many, Put, Request, Swap, perform

G = 90.0
SCHEDULES = 100_000 if os.environ.get("COMPOSEFS_ASYNC_STRESS") == "1" else 400
ROOT = ObjectId(bytes(32))
NAMES = ("a", "b")


class ViolationError(AssertionError):
    """A name means something that is not there."""


@functools.lru_cache(10_000)
def named_manifest(raw: bytes) -> Manifest | None:
    ref = parse_ref(raw, "name")
    return None if ref.deleted else parse_manifest(ref.manifest or b"", ref.digest)


@dataclass
class World:
    """A store, its clock, and what its names need."""

    rnd: random.Random
    now: float = 1000.0
    salts: int = 0
    commits: int = 0
    deletions: int = 0

    def __post_init__(self) -> None:
        self.backend = MemoryStore(clock=lambda: self.now)

    def salt(self) -> bytes:
        self.salts += 1
        return b"s%d" % self.salts

    def named(self) -> Iterator[Manifest]:
        for name in NAMES:
            stored = self.backend.objects.get(f"refs/{name}")
            manifest = named_manifest(stored.data) if stored else None
            if manifest is not None:
                yield manifest

    def check(self) -> None:
        """Every name means something complete."""
        for manifest in self.named():
            for digest in manifest.needed:
                if blob_key(digest) not in self.backend.objects:
                    raise ViolationError(digest)


@dataclass
class Assembled:
    manifest: Manifest
    documents: dict[str, bytes]


@dataclass
class Draft:
    """An artifact of packs that are a few bytes each."""

    world: World
    uploads: Uploads
    packs: dict[str, bytes]
    """Content by digest, or as many zeros of a blob that another has put."""
    salts: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def assemble(self) -> Assembled:
        table = (
            b"table of " + b",".join(sorted(digest.encode() for digest in self.packs)) + self.salts.get("table", b"")
        )
        salt = self.salts.get("config", b"").hex()
        config = Config("image", Algorithm.SHA256, 0, 0, ROOT.hex(), {}, {ROOT.hex(): 0}, salt)
        blobs = [Descriptor(PACK_TYPE, digest, len(content)) for digest, content in sorted(self.packs.items())]
        descriptor = Descriptor(TABLE_TYPE, digest_of(table), len(table))
        notes = {"salt": self.salts["manifest"].decode()} if "manifest" in self.salts else None
        manifest = build_manifest(config, descriptor, blobs, annotations=notes)
        documents = {descriptor.digest: table, manifest.config.digest: config.encode(), manifest.digest: manifest.raw}
        return Assembled(manifest, documents)

    def renew(self, digests: Collection[str]) -> None:
        manifest = self.assemble().manifest
        documents = {"table": manifest.table.digest, "config": manifest.config.digest, "manifest": manifest.digest}
        self.salts.update({kind: self.world.salt() for kind, digest in documents.items() if digest in digests})
        for digest in sorted(set(digests) & self.packs.keys()):
            content = self.packs.pop(digest) + self.world.salt()
            self.packs[digest_of(content)] = content
            self.uploads.note(digest_of(content), self.world.now)
            perform(self.world.backend, Put(blob_key(digest_of(content)), content))


def drive(world: World, program: Any) -> Any:
    """Run a program one request at a time; yields after each."""
    answer: object = None
    while True:
        try:
            request = program.send(answer)
        except StopIteration as end:
            return end.value
        answer = yield from answered(world, request)


def answered(world: World, request: Request) -> Any:
    match request:
        case Many(requests):
            answers: list[Any] = [None] * len(requests)
            order = list(range(len(requests)))
            world.rnd.shuffle(order)
            for at in order:
                answers[at] = yield from answered(world, requests[at])
            return answers
        case _:
            before = len(world.backend.objects)
            found = perform(world.backend, request)
            world.deletions += max(0, before - len(world.backend.objects))
            if isinstance(request, Delete | Swap):
                world.check()
            yield None
            return found


def publisher(world: World, name: str) -> Iterator[None]:
    rnd = world.rnd
    for _ in range(rnd.randint(1, 3)):
        current, _version = yield from drive(world, read_ref(name, "url"))
        condemned: Condemned = yield from drive(world, read_condemned("url"))
        uploads = Uploads(lambda: world.now)
        packs: dict[str, bytes] = {}
        for manifest in list(world.named()):  # as bases
            yield
            for blob in manifest.blobs:
                if blob.digest not in condemned and rnd.random() < 0.6:
                    packs[blob.digest] = bytes(blob.size)
        for number in rnd.sample(range(6), rnd.randint(0 if packs else 1, 2)):
            content = b"n%d" % number
            packs[digest_of(content)] = content
            uploads.note(digest_of(content), world.now)
            perform(world.backend, Put(blob_key(digest_of(content)), content))
            yield
        draft = Draft(world, uploads, packs)
        expected = current.digest if current and not current.deleted else ""
        try:
            yield from drive(world, commit(draft, name, expected, url="url", grace=G, uploads=uploads))
            world.commits += 1
        except (RefConflictError, StoreError):
            continue
        if rnd.random() < 0.4:
            yield from drive(world, remove_ref(name, url="url"))


def collector(world: World, number: int) -> Iterator[None]:
    for at in range(world.rnd.randint(2, 5)):
        try:
            yield from drive(world, gc_module.collect("url", G, clock=lambda: world.now, owner=f"{number}.{at}"))
        except StoreBusyError:
            yield


def schedule(seed: int) -> World:
    """One random interleaving."""
    world = World(random.Random(seed))
    programs = [
        publisher(world, "a"),
        publisher(world, "b"),
        publisher(world, "a"),
        collector(world, 1),
        collector(world, 2),
    ]
    while programs:
        program = world.rnd.choice(programs)
        world.now += world.rnd.choice([0, 0, 1, 1, 2, 5, 20, world.rnd.choice([40, 100])])
        try:
            next(program)
        except StopIteration:
            programs.remove(program)
    return world


def test_no_name_is_ever_without_its_content() -> None:
    worlds = [schedule(seed) for seed in range(SCHEDULES)]
    # The schedules must do what they are for.
    assert sum(world.commits for world in worlds) > SCHEDULES
    assert sum(world.deletions for world in worlds) > SCHEDULES / 4
    assert sum(world.salts for world in worlds) > SCHEDULES / 4


def without_check(patch: pytest.MonkeyPatch) -> None:
    """The list is not looked at before the commit."""

    def empty(url: str) -> Any:
        yield Head("gc/condemned.json")
        return Condemned()

    patch.setattr(commit_module, "read_condemned", empty)


def without_window(patch: pytest.MonkeyPatch) -> None:
    """A commit may take any time after it has read the list."""
    patch.setattr(commit_module.Window, "is_over", False)


def without_head(patch: pytest.MonkeyPatch) -> None:
    """Re-used blobs are not looked for before the commit."""

    def none(manifest: Manifest, uploads: Uploads, grace: float) -> Any:
        yield Head("gc/condemned.json")
        return set()

    patch.setattr(commit_module, "_missing", none)


def without_grace(patch: pytest.MonkeyPatch) -> None:
    """What is on the list is deleted at once."""
    real = gc_module._Run.sweep

    def sweep(self: Any, now: float) -> Any:
        return real(self, now + 10 * self.grace)

    patch.setattr(gc_module._Run, "sweep", sweep)


SAFEGUARDS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the list is read": without_check,
    "the window": without_window,
    "blobs are looked for": without_head,
    "the grace time": without_grace,
}


def search() -> None:
    """Print the first seed that finds each safeguard missing: python -m tests.exchange.test_interleaving."""
    import sys
    import time

    begun = time.time()
    for name, switch_off in SAFEGUARDS.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        with pytest.MonkeyPatch.context() as patch:
            switch_off(patch)
            for seed in range(200_000):
                try:
                    schedule(seed)
                except ViolationError:
                    print(name, seed, time.time() - begun, flush=True)
                    break


if __name__ == "__main__":
    search()
