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
from composefs_async.exchange.protocol import Delete, Head, List, Many, Put, Read, Request, Swap, perform

G = 90.0
SCHEDULES = 10_000 if os.environ.get("COMPOSEFS_ASYNC_STRESS") == "1" else 60
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
    strict: bool = True
    """A name that is not complete is an error at once."""

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
            if lost := [digest for digest in manifest.needed if blob_key(digest) not in self.backend.objects]:
                raise ViolationError(lost[0])


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
            if world.strict and isinstance(request, Delete | Swap):
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


# -- one interleaving for each safeguard -------------------------------------------------------

OLD = b"a pack that no name needs"


class Steps:
    """A program that goes on only as far as it is told."""

    def __init__(self, world: World, program: Any) -> None:
        self._world, self._program = world, program
        self._request: Request | None = program.send(None)

    def until(self, kind: type[Any] | None = None, key: str = "", after: int = 0) -> Steps:
        """Run on up to the first such request (behind *after* others of the kind), which is not made; or to the end."""
        while self._request is not None:
            if kind is not None and isinstance(self._request, kind) and key in str(self._request):
                if not after:
                    return self
                after -= 1
            self.step()
        return self

    def step(self) -> Steps:
        """Make one request."""
        assert self._request is not None
        for _ in (answer := _Answer(self._world, self._request)):
            pass
        try:
            self._request = self._program.send(answer.value)
        except (StopIteration, StoreError):
            self._request = None
        return self

    def finish(self) -> Steps:
        return self.until()


class _Answer:
    def __init__(self, world: World, request: Request) -> None:
        self._world, self._request, self.value = world, request, None

    def __iter__(self) -> Iterator[None]:
        self.value = yield from answered(self._world, self._request)


@dataclass
class Scene:
    """A store with one old pack, which a publisher has chosen to use again."""

    world: World = field(default_factory=lambda: World(random.Random(0)))

    def __post_init__(self) -> None:
        self.put()
        self.world.now += 10 * G

    def put(self) -> None:
        perform(self.world.backend, Put(blob_key(digest_of(OLD)), OLD))

    def publisher(self, *, sent: bool = False) -> Steps:
        uploads = Uploads(lambda: self.world.now)
        if sent:
            uploads.note(digest_of(OLD), self.world.now)
        draft = Draft(self.world, uploads, {digest_of(OLD): OLD})
        return Steps(self.world, commit(draft, "a", "", url="url", grace=G, uploads=uploads))

    def collector(self, owner: str = "c") -> Steps:
        return Steps(self.world, gc_module.collect("url", G, clock=lambda: self.world.now, owner=owner))


def list_is_read(scene: Scene) -> None:
    """The collection is about to delete what the publisher has chosen before it was on the list."""
    publisher = scene.publisher()
    scene.collector().finish()
    scene.world.now += 2 * G
    collector = scene.collector().until(Delete)
    publisher.finish()
    collector.finish()


def window_ends(scene: Scene) -> None:
    """The publisher has looked at the list, and sleeps through two collections before it writes the name."""
    publisher = scene.publisher().until(Read, "refs/a")
    scene.collector().finish()
    scene.world.now += 2 * G
    collector = scene.collector().until(Delete)
    publisher.finish()
    collector.finish()


def blobs_are_looked_for(scene: Scene) -> None:
    """What the publisher has chosen is deleted, and off the list again, before it looks."""
    publisher = scene.publisher()
    scene.collector().finish()
    scene.world.now += 2 * G
    scene.collector().finish()
    publisher.finish()


def grace_passes(scene: Scene) -> None:
    """Between the publisher's look at the list and its name, a collection finds the pack without a name."""
    publisher = scene.publisher().until(Swap, "refs/a")
    collector = scene.collector().until(Delete)
    publisher.finish()
    collector.finish()


def heart_beats(scene: Scene) -> None:
    """A collection sleeps while another one deletes the pack, and a publisher sends the same again."""
    scene.collector().finish()
    scene.world.now += 2 * G
    sleeper = scene.collector("sleeper").until(List, "refs/", after=1)
    scene.world.now += 2 * G
    scene.collector("other").finish()
    scene.put()
    publisher = scene.publisher(sent=True)
    sleeper.until(Delete)
    publisher.finish()
    sleeper.finish()


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
        blobs = dict.fromkeys(self.condemned.blobs, 0.0)
        self.condemned = Condemned(self.condemned.owner, blobs)
        return (yield from real(self, now))

    patch.setattr(gc_module._Run, "sweep", sweep)


def without_heartbeat(patch: pytest.MonkeyPatch) -> None:
    """A collection deletes however long ago it has last written the list."""
    sweep, write = gc_module._Run.sweep, gc_module._Run._write_own

    def careless(self: Any, now: float) -> Any:
        if self.owner == "sleeper":
            self.clock = float  # for which no time passes
        return (yield from sweep(self, now))

    def silent(self: Any, condemned: Condemned) -> Any:
        if self.owner == "sleeper" and self.clock is float:
            yield Head("gc/condemned.json")
        else:
            yield from write(self, condemned)

    patch.setattr(gc_module._Run, "sweep", careless)
    patch.setattr(gc_module._Run, "_write_own", silent)


SAFEGUARDS: dict[str, tuple[Callable[[Scene], None], Callable[[pytest.MonkeyPatch], None]]] = {
    "the list is read": (list_is_read, without_check),
    "the window": (window_ends, without_window),
    "blobs are looked for": (blobs_are_looked_for, without_head),
    "the grace time": (grace_passes, without_grace),
    "the heartbeat and its time": (heart_beats, without_heartbeat),
}


def test_a_name_that_was_written_too_late_is_written_again() -> None:
    """The request itself was under way for longer than all grace: what is gone by then is sent again at once."""
    scene = Scene()
    publisher = scene.publisher().until(Swap, "refs/a")
    scene.collector().finish()
    scene.world.now += 2 * G
    scene.collector().finish()
    scene.world.strict = False
    publisher.step()
    with pytest.raises(ViolationError):
        scene.world.check()
    publisher.finish()
    scene.world.check()


@pytest.mark.parametrize("safeguard", SAFEGUARDS)
def test_each_safeguard_is_needed(safeguard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interleave, switch_off = SAFEGUARDS[safeguard]
    scene = Scene()
    interleave(scene)
    scene.world.check()
    assert list(scene.world.named()) != []
    switch_off(monkeypatch)
    unsafe = Scene()
    with pytest.raises(ViolationError):
        interleave(unsafe)
