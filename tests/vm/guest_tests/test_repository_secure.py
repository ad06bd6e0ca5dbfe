"""Our repository in secure mode: every object is protected by the kernel, and nothing else is believed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async import Algorithm, ObjectId, Repository, StoredObject, StoreOutcome, fsverity
from composefs_async._repo import batch
from composefs_async.errors import DigestMismatchError, VerityMissingError
from composefs_async.oci import pull
from composefs_async.repository import state_of
from composefs_async.splitstream import OCI_LAYER

SIZES = [0, 1, 4096, 4097, 600_000]


@pytest.fixture(params=list(Algorithm), ids=lambda algorithm: algorithm.value)
def repo(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[Repository]:
    repository = Repository.init(data_dir / "repo", algorithm=request.param)
    created = repository.is_new
    assert created
    with repository:
        yield repository


def path_of(repo: Repository, object_id: ObjectId) -> Path:
    return Path(repo.path) / "objects" / object_id.path


def by_tmpfile(repo: Repository, data: bytes) -> StoredObject:
    fd = repo.create_object_tmpfile()
    os.write(fd, data)
    return repo.finalize_object_tmpfile(fd, len(data))


def by_spawning(repo: Repository, data: bytes) -> StoredObject:
    async def main() -> StoredObject:
        async with await Repository.open_path_async(repo.path) as other:
            fd = await other.create_object_tmpfile_async()
            os.write(fd, data)
            return await other.spawn_finalize_object_tmpfile(fd, len(data))

    return anyio.run(main)


def by_python_batch(repo: Repository, data: bytes) -> StoredObject:
    (object_id,), (outcome,), failures = batch._store_python(state_of(repo), [data])
    assert not failures
    return StoredObject(object_id, len(data), StoreOutcome(outcome))


WAYS: dict[str, Callable[[Repository, bytes], StoredObject]] = {
    "ensure_object": Repository.ensure_object,
    "ensure_object_async": lambda repo, data: anyio.run(repo.ensure_object_async, data),
    "ensure_objects": lambda repo, data: repo.ensure_objects([data])[0],
    "ensure_objects_async": lambda repo, data: anyio.run(repo.ensure_objects_async, [data])[0],
    "tmpfile": by_tmpfile,
    "spawned tmpfile": by_spawning,
    "python batch": by_python_batch,
}
ways = pytest.mark.parametrize("store", WAYS.values(), ids=WAYS)


def test_a_new_repository_is_secure_and_its_metadata_protected(repo: Repository, kernel: Any) -> None:
    number, digest = kernel.measure(Path(repo.path) / "meta.json")
    content = (Path(repo.path) / "meta.json").read_bytes()
    assert (number, digest) == (repo.algorithm.number, fsverity.digest(content, repo.algorithm).hex())
    assert repo.secure
    repo.require_verity()
    with Repository.open_path(repo.path) as again:
        assert again.secure


@ways
def test_every_way_to_store_protects_the_object(
    repo: Repository, kernel: Any, store: Callable[[Repository, bytes], StoredObject]
) -> None:
    for size in SIZES:
        data = bytes(range(251)) * (size // 251) + bytes(size % 251)
        stored = store(repo, data)
        assert stored == StoredObject(fsverity.digest(data, repo.algorithm), size, StoreOutcome.STORED)
        assert kernel.measure(path_of(repo, stored.id)) == (repo.algorithm.number, stored.id.hex())
        assert store(repo, data).outcome is StoreOutcome.PRESENT
        assert repo.read_object(stored.id) == data


def unprotect(repo: Repository, object_id: ObjectId, content: bytes) -> None:
    path_of(repo, object_id).unlink()
    path_of(repo, object_id).write_bytes(content)


@ways
def test_an_unprotected_object_is_refused_and_replaced_by_storing_it_again(
    repo: Repository, kernel: Any, store: Callable[[Repository, bytes], StoredObject]
) -> None:
    stored = store(repo, b"content")
    unprotect(repo, stored.id, b"content")
    with pytest.raises(VerityMissingError):
        repo.open_object(stored.id)
    assert store(repo, b"content").outcome is StoreOutcome.REPLACED
    assert kernel.measure(path_of(repo, stored.id)) == (repo.algorithm.number, stored.id.hex())


@ways
def test_an_object_that_measures_otherwise_is_refused_and_replaced(
    repo: Repository, kernel: Any, store: Callable[[Repository, bytes], StoredObject]
) -> None:
    stored = store(repo, b"content")
    unprotect(repo, stored.id, b"CONTENT")
    kernel.enable(path_of(repo, stored.id), repo.algorithm)
    with pytest.raises(DigestMismatchError):
        repo.read_object(stored.id)
    assert store(repo, b"content").outcome is StoreOutcome.REPLACED
    assert repo.read_object(stored.id) == b"content"


def test_streams_are_measured_also_when_they_are_opened_by_name(repo: Repository) -> None:
    writer = repo.create_stream(OCI_LAYER)
    writer.write_inline(b"x")
    object_id = repo.write_stream(writer, "name", "a")
    assert b"".join(repo.merge_splitstream("refs/a")) == b"x"
    unprotect(repo, object_id, path_of(repo, object_id).read_bytes())
    for name in ("name", "refs/a"):
        with pytest.raises(VerityMissingError):
            repo.open_stream(name)


def test_a_repository_made_insecure_for_a_handle_tolerates_what_is_unprotected(repo: Repository) -> None:
    stored = repo.ensure_object(b"content")
    unprotect(repo, stored.id, b"content")
    with Repository.open_path(repo.path) as other:
        other.set_insecure()
        assert other.read_object(stored.id) == b"content"


def test_an_insecure_repository_protects_objects_where_the_file_system_can(data_dir: Path, kernel: Any) -> None:
    with Repository.init(data_dir / "repo", insecure=True) as repo:
        assert not repo.secure
        for stored in (repo.ensure_object(b"one"), *repo.ensure_objects([b"two"]), by_tmpfile(repo, b"three")):
            assert kernel.measure(path_of(repo, stored.id)) == (2, stored.id.hex())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_pulled_image_is_protected_and_clean_for_cfsctl(
    repo: Repository, kernel: Any, cfsctl: Callable[..., str], oci_layout: Path, backend: str
) -> None:
    async def main() -> str:
        result = await pull(repo, f"oci:{oci_layout}:latest", tag="test")
        return result.layers[0].diff_id

    diff_id = anyio.run(main, backend=backend)
    for path in (Path(repo.path) / "objects").glob("*/*"):
        assert kernel.measure(path) == (repo.algorithm.number, path.parent.name + path.name)
    merged = b"".join(repo.merge_splitstream(f"oci-layer-{diff_id}"))
    assert f"sha256:{hashlib.sha256(merged).hexdigest()}" == diff_id
    assert json.loads(cfsctl(Path(repo.path), "fsck", "--json"))["ok"]
    assert "status: ok" in cfsctl(Path(repo.path), "oci", "fsck")


def test_what_cfsctl_stored_is_opened_and_measured(
    data_dir: Path, cfsctl: Callable[..., str], oci_layout: Path, layer_files: dict[str, bytes]
) -> None:
    cfsctl(data_dir / "theirs", "init")
    cfsctl(data_dir / "theirs", "oci", "pull", f"oci:{oci_layout}:latest", "test")
    with Repository.open_path(data_dir / "theirs") as repo:
        assert repo.secure
        for path in (data_dir / "theirs/objects").glob("*/*"):
            object_id = ObjectId.from_path(str(path))
            assert repo.read_object(object_id) == path.read_bytes()
        large = fsverity.digest(layer_files["usr/lib/large"], repo.algorithm)
        unprotect(repo, large, layer_files["usr/lib/large"])
        with pytest.raises(VerityMissingError):
            repo.open_object(large)
        (layer,) = [name for name in os.listdir(data_dir / "theirs/streams") if name.startswith("oci-layer-")]
        with pytest.raises(VerityMissingError):
            list(repo.merge_splitstream(layer))
