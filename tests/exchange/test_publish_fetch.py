"""Images from one repository to another over a store: what arrives, what is moved, what is reported, what is proven."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import (
    AlgorithmMismatchError,
    ConditionalWritesError,
    DigestMismatchError,
    FetchDamagedError,
    FetchError,
    ImageNotFoundError,
    InvalidNameError,
    RefConflictError,
    StoreError,
    StoreFormatError,
)
from composefs_async.exchange import fetch, publish, publish_layer
from composefs_async.exchange.backends.base import PreconditionError, Version
from composefs_async.exchange.backends.memory import MemoryStore
from composefs_async.exchange.documents import parse_ref
from composefs_async.exchange.store import Store
from composefs_async.oci.catalogue import open_image
from composefs_async.progress import BytesMoved, PackSent, ProgressEvent, RefWritten, TransferStarted
from composefs_async.repository import Repository

from .conftest import FILES, MORE, Images, Journal, memory_store, noise, snapshot, text

pytestmark = pytest.mark.usefixtures("no_leaks")


def run(function: Any, *arguments: Any, **options: Any) -> Any:
    async def work() -> Any:
        return await function(*arguments, **options)

    return anyio.run(work)


@pytest.mark.parametrize("images", list(Algorithm), indirect=True)
def test_a_fetched_repository_is_that_of_the_publisher(images: Images) -> None:
    source, target = images.repository("source"), images.repository("target")
    images.add(source, "image", FILES, MORE, {"large/x": noise(9_000_000, 1), "large/y": text(6_000_000, 2)})
    store = memory_store() if source.algorithm is Algorithm.SHA512 else Store(MemoryStore())
    run(store.init, algorithm=source.algorithm)
    sent = run(publish, source, "image", store, pack_size=4 << 20)
    got = run(fetch, target, store, "image")
    assert snapshot(Path(target.path)) == snapshot(Path(source.path))
    assert (got.manifest_digest, got.root, got.objects_fetched) == (sent.manifest_digest, sent.root, sent.objects_sent)
    assert target.fsck().ok
    assert open_image(target, "image") == open_image(source, "image")
    assert target.leases() == []


def test_what_is_published_again_costs_two_requests_and_the_description(images: Images) -> None:
    repo, backend = images.repository(), MemoryStore(before=Journal())
    images.add(repo, "image", FILES)
    store = memory_store(backend)
    first = run(publish, repo, "image", store)
    assert (first.objects_shared, first.unchanged) == (0, False)
    again = run(publish, repo, "image", memory_store(backend))
    assert (again.requests, again.bytes_sent, again.unchanged, again.objects_sent) == (3, 0, True, 0)
    assert again.manifest_digest == first.manifest_digest


def test_what_is_fetched_again_costs_two_requests(images: Images) -> None:
    repo, target, store = images.repository(), images.repository(), memory_store()
    images.add(repo, "image", FILES)
    run(publish, repo, "image", store)
    run(fetch, target, store, "image")
    again = run(fetch, target, memory_store(store.backend._backend), "image")
    assert (again.requests, again.objects_fetched) == (2, 0)


def test_an_update_moves_what_has_changed_in_few_requests(images: Images) -> None:
    repo, target, store = images.repository(), images.repository(), memory_store()
    base = {f"lib/{at}": noise(30_000, at) for at in range(60)}
    images.add(repo, "v1", base, FILES)
    images.add(repo, "v2", base, MORE)
    run(publish, repo, "v1", store, name="image")
    run(fetch, target, store, "image", tag="image")
    sent = run(publish, repo, "v2", store, name="image")
    assert (sent.objects_sent, sent.bytes_sent < 30_000) == (9, True)
    got = run(fetch, target, store, "image", tag="image")
    assert (got.objects_fetched, got.requests, got.bytes_received < 30_000) == (9, 4, True)
    assert open_image(target, "image").manifest.digest == open_image(repo, "v2").manifest.digest


def test_bases_share_their_packs(images: Images) -> None:
    repo, target, store = images.repository(), images.repository(), memory_store()
    base = {f"lib/{at}": noise(20_000, at) for at in range(60)}
    images.add(repo, "a", base)
    images.add(repo, "b", base, MORE)
    run(publish, repo, "a", store, name="one")
    sent = run(publish, repo, "b", store, name="another", bases=["one"])
    assert (sent.objects_shared >= 60, sent.bytes_sent < 30_000) == (True, True)
    beside = run(publish, repo, "b", store, name="one:beside")
    assert beside.objects_shared >= 60
    run(fetch, target, store, "another")
    assert target.fsck().ok


def test_repacking_sends_everything(images: Images) -> None:
    repo, store = images.repository(), memory_store()
    images.add(repo, "image", FILES)
    first = run(publish, repo, "image", store)
    again = run(publish, repo, "image", store, repack=True)
    assert (again.objects_sent, again.manifest_digest) == (first.objects_sent, first.manifest_digest)


def test_the_same_image_makes_the_same_artifact_anywhere(images: Images) -> None:
    digests = set()
    for _ in range(2):
        repo, store = images.repository(), memory_store()
        images.add(repo, "image", FILES, MORE)
        digests.add(run(publish, repo, "image", store).manifest_digest)
    assert len(digests) == 1


def test_an_erofs_image_alone_travels_by_its_id(images: Images) -> None:
    repo, target, store = images.repository(), images.repository(), memory_store()
    images.add(repo, "image", FILES)
    image_id = open_image(repo, "image").image(1)
    assert image_id is not None
    run(publish, repo, image_id.hex(), store, name="bare")
    got = run(fetch, target, store, "bare", expect=image_id.text, tag="mine")
    assert got.root == image_id.hex()
    assert target.has_image("mine") == image_id
    assert target.fsck().ok


def test_a_layer_is_published_once_and_is_no_image(images: Images) -> None:
    repo, target, store = images.repository(), images.repository(), memory_store()
    images.add(repo, "image", FILES)
    [diff_id] = open_image(repo, "image").layers
    first = run(publish_layer, repo, diff_id, store, name=f"layers/{diff_id}")
    assert run(publish_layer, repo, diff_id, store, name=f"layers/{diff_id}").manifest_digest == first.manifest_digest
    with pytest.raises(StoreFormatError, match="layer"):
        run(fetch, target, store, f"layers/{diff_id}", tag="x")


def test_events_tell_the_totals_before_the_first_byte(images: Images) -> None:
    repo, target, store = images.repository(), images.repository(), memory_store()
    images.add(repo, "image", FILES)
    sent: list[ProgressEvent] = []
    result = run(publish, repo, "image", store, progress=sent.append)
    assert sent[0] == TransferStarted(
        "image", result.objects_sent, sum(e.total for e in sent if isinstance(e, BytesMoved)), 0
    )
    assert [type(event) for event in sent] == [TransferStarted, PackSent, BytesMoved, RefWritten]
    got: list[ProgressEvent] = []
    fetched = run(fetch, target, store, "image", progress=got.append)
    started, *moved, written = got
    assert isinstance(started, TransferStarted)
    assert (started.objects, started.present) == (fetched.objects_fetched, 0)
    assert moved[-1] == BytesMoved(started.bytes, started.bytes, started.objects)
    assert written == RefWritten("image", result.manifest_digest)


# -- what is expected --------------------------------------------------------------------------


def test_images_are_proven_by_one_id(images: Images) -> None:
    repo, store = images.repository(), memory_store()
    manifest = images.add(repo, "image", FILES)
    sent = run(publish, repo, "image", store)
    image_id = ObjectId.from_hex(sent.image_id)
    for expect in (manifest, image_id.text, image_id.hex(), sent.manifest_digest):
        target = images.repository()
        assert run(fetch, target, store, "image", expect=expect).image_id == image_id
        assert run(fetch, target, store, f"image@{sent.manifest_digest}", expect=expect).tag == "image"


@pytest.mark.parametrize("expect", ["sha256:" + "0" * 64, "sha512:" + "0" * 128])
def test_another_image_is_refused_before_anything_is_fetched(images: Images, expect: str) -> None:
    repo, target, store = images.repository(), images.repository(), memory_store()
    images.add(repo, "image", FILES)
    run(publish, repo, "image", store)
    with pytest.raises(DigestMismatchError):
        run(fetch, target, store, "image", expect=expect)
    assert snapshot(Path(target.path)) == {}
    with pytest.raises(InvalidNameError):
        run(fetch, target, store, "image", expect="latest")


def test_an_image_that_is_not_what_its_layers_make_is_refused(images: Images) -> None:
    """A store that has replaced the EROFS image in the stream of the config, with everything else as it was."""
    evil, target, store = images.repository(), images.repository(), memory_store()
    images.add(evil, "other", MORE)
    other = open_image(evil, "other").image(1)
    manifest = images.add(evil, "image", FILES)
    forge_image(evil, "image", other)
    run(publish, evil, "image", store)
    with pytest.raises(DigestMismatchError, match="the image of"):
        run(fetch, target, store, "image", expect=manifest)
    assert target.named_streams() == []


def forge_image(repo: Repository, tag: str, image_id: ObjectId | None) -> None:
    """Let the config of an image refer to another EROFS image."""
    from composefs_async.oci.erofs_images import Documents, publish_image
    from composefs_async.repository import state_of

    image = open_image(repo, tag)
    assert image_id is not None
    documents = Documents(
        image.manifest.digest,
        image.manifest.raw,
        image.manifest.config.digest,
        image.config_raw,
        tuple(image.layers.items()),
    )
    publish_image(state_of(repo), documents, {"composefs.image.v1": image_id}, tag)


def test_a_layer_that_is_not_what_its_name_says_gets_no_name(images: Images) -> None:
    """A store whose config stream says that some other stream is the layer."""
    evil, target, store = images.repository(), images.repository(), memory_store()
    images.add(evil, "other", MORE)
    images.add(evil, "image", FILES)
    forge_layer(evil, "image", next(iter(open_image(evil, "other").layers.values())))
    run(publish, evil, "image", store)
    with pytest.raises(DigestMismatchError, match="oci-layer-sha256"):
        run(fetch, target, store, "image")
    assert target.named_streams() == []
    assert [name for name in snapshot(Path(target.path)) if name.startswith(("streams", "images"))] == []


def forge_layer(repo: Repository, tag: str, layer: ObjectId) -> None:
    from composefs_async.oci.erofs_images import Documents, publish_image
    from composefs_async.repository import state_of

    image = open_image(repo, tag)
    layers = tuple((diff_id, layer) for diff_id in image.layers)
    documents = Documents(
        image.manifest.digest, image.manifest.raw, image.manifest.config.digest, image.config_raw, layers
    )
    publish_image(state_of(repo), documents, dict(image.images), tag)


# -- what cannot be ----------------------------------------------------------------------------


def test_names_that_are_not_there(images: Images) -> None:
    repo, store = images.repository(), memory_store()
    with pytest.raises(ImageNotFoundError, match="nothing"):
        run(publish, repo, "nothing", store)
    with pytest.raises(ImageNotFoundError, match="nothing"):
        run(fetch, repo, store, "nothing")
    with pytest.raises(FetchError, match="manifest"):
        run(fetch, repo, store, "x@sha256:" + "0" * 64)
    with pytest.raises(StoreError, match="there is no store"):
        run(Store(MemoryStore()).describe)


def test_another_algorithm_is_refused(images: Images, tmp_path: Path) -> None:
    repo, store = images.repository(), memory_store()
    images.add(repo, "image", FILES)
    run(publish, repo, "image", store)
    other = Repository.init(tmp_path / "other", algorithm=Algorithm.SHA256, insecure=True)
    with other, pytest.raises(AlgorithmMismatchError):
        run(fetch, other, store, "image")
    sha256 = Store(MemoryStore())
    run(sha256.init, algorithm=Algorithm.SHA256)
    with pytest.raises(AlgorithmMismatchError):
        run(publish, repo, "image", sha256)


def test_another_writer_is_not_overwritten_unless_that_is_wanted(images: Images) -> None:
    repo = images.repository()
    images.add(repo, "a", FILES)
    images.add(repo, "b", MORE)
    journal = Journal()
    backend = MemoryStore(before=journal)
    store = memory_store(backend)

    def interfere(operation: str, key: str) -> None:
        if operation == "swap" and key == "refs/name":
            journal.fail = lambda operation, key: None
            run_in_thread(publish, repo, "b", memory_store(backend), name="name")

    journal.fail = interfere
    with pytest.raises(RefConflictError, match="name was absent and now is sha256"):
        run(publish, repo, "a", store, name="name")
    journal.fail = interfere
    backend.objects.pop("refs/name")
    run(publish, repo, "a", store, name="name", force=True)
    assert parse_ref(backend.objects["refs/name"].data, "name").previous != ""


def run_in_thread(function: Any, *arguments: Any, **options: Any) -> None:
    import threading

    thread = threading.Thread(target=lambda: run(function, *arguments, **options))
    thread.start()
    thread.join()


@pytest.mark.parametrize("written", [True, False])
def test_a_lost_answer_of_the_name_is_found_out(images: Images, written: bool) -> None:
    """The connection breaks as the name is written: before the store has done it, or after."""
    from composefs_async.errors import UnknownOutcomeError

    repo, target = images.repository(), images.repository()
    images.add(repo, "image", FILES)

    class Cutting(MemoryStore):
        cut = True

        def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
            if key.startswith("refs/") and self.cut:
                self.cut = False
                if written:
                    super().swap(key, data, expected)
                raise UnknownOutcomeError(self.url, key, "cut")
            return super().swap(key, data, expected)

    backend = Cutting()
    store = memory_store(backend)
    sent = run(publish, repo, "image", store)
    assert parse_ref(backend.objects["refs/image"].data, "image").digest == sent.manifest_digest
    run(fetch, target, store, "image")


def test_a_conflict_that_nobody_won_is_tried_again(images: Images) -> None:
    """Some stores answer 409 to both of two writers."""
    repo = images.repository()
    images.add(repo, "image", FILES)

    class Refusing(MemoryStore):
        left = 2

        def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
            if key.startswith("refs/") and self.left:
                self.left -= 1
                raise PreconditionError(self.url, "409")
            return super().swap(key, data, expected)

    assert run(publish, repo, "image", memory_store(Refusing())).manifest_digest


# -- making stores -----------------------------------------------------------------------------


class Careless(MemoryStore):
    """Writes whatever the condition is."""

    creates = True
    replaces = True

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        try:
            return super().swap(key, data, expected)
        except PreconditionError:
            if self.creates if expected is None else self.replaces:
                self.put(key, data)
                return self.objects[key].version
            raise


@pytest.mark.parametrize(("creates", "replaces", "what"), [(True, False, "creates"), (False, True, "replaces")])
def test_a_store_that_ignores_conditions_is_refused(creates: bool, replaces: bool, what: str) -> None:
    backend = Careless()
    backend.creates, backend.replaces = creates, replaces
    with pytest.raises(ConditionalWritesError, match=what):
        run(Store(backend).init)
    assert backend.objects == {}


class Unable(MemoryStore):
    """Knows no conditional writes."""

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        raise ConditionalWritesError(self.url, "501 Not Implemented")


def test_a_store_without_conditions_serves_one_writer_who_says_so(images: Images) -> None:
    repo, target, backend = images.repository(), images.repository(), Unable()
    images.add(repo, "image", FILES)
    images.add(repo, "other", MORE)
    with pytest.raises(ConditionalWritesError):
        run(Store(backend).init)
    store = Store(backend)
    description, created = run(store.init, single_writer=True)
    assert (description.cas, created) == ("none", True)
    run(publish, repo, "image", store, name="x")
    run(publish, repo, "other", store, name="x")
    run(fetch, target, store, "x")
    assert target.fsck().ok


def test_a_store_is_made_once(images: Images) -> None:
    backend = MemoryStore()
    first, created = run(Store(backend).init)
    second, again = run(Store(backend).init, grace=100)
    assert (created, again, first, second.grace) == (True, False, second, 86400)
    with pytest.raises(StoreError, match="fsverity-sha512-12"):
        run(Store(backend).init, algorithm=Algorithm.SHA256)
    assert sorted(backend.objects) == ["composefs-store.json", "oci-layout"]
    assert json.loads(backend.objects["oci-layout"].data) == {"imageLayoutVersion": "1.0.0"}


def test_errors_of_fetching_say_what_each_source_said() -> None:
    error = FetchDamagedError("name", ("ab", "cd"), {"s3://x": "it is bad", "file:///y": "it is not there"})
    assert str(error) == "name: cannot fetch object ab and 1 more: s3://x: it is bad; file:///y: it is not there"
