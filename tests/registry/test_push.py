"""Pushing from a repository: where each layer's bytes come from, and what a registry may do to an upload."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from composefs_async import Repository, oci
from composefs_async.errors import DigestMismatchError, OciError, RegistryError, RepositoryInUseError
from composefs_async.oci import catalogue
from composefs_async.oci.kept_blobs import keep_blob, kept_blob, opened_blob, prune
from composefs_async.oci.push import push
from composefs_async.registry.access import Access
from composefs_async.registry.client import RegistryClient
from composefs_async.registry.upload import _CHUNK
from composefs_async.repository import state_of
from composefs_async.testing.registry import OCI_MANIFEST, FakeRegistry, Fault, digest_of

from .conftest import QUICK, SmallImage, make_tar

pytestmark = pytest.mark.anyio

KEEPING = replace(QUICK, keep_blobs=True)


@pytest.fixture
async def pulled(repo: Repository, image: SmallImage) -> Repository:
    """The image is in the repository, from an image directory, and its layers were kept."""
    await oci.pull(repo, f"oci:{image.directory}", tag="x", transfer=KEEPING)
    return repo


def _same(registry: FakeRegistry, image: SmallImage, name: str = "c/d") -> None:
    repository = registry.repository(name)
    assert repository.manifests[image.digest] == (OCI_MANIFEST, image.manifest)
    assert {digest: registry.content[digest] for digest in repository.blobs} == image.blobs


async def test_kept_and_plain_layers_are_pushed_bit_for_bit(
    pulled: Repository, image: SmallImage, access: Access, no_blocking: object
) -> None:
    registry = FakeRegistry()
    async with registry.serving() as host:
        result = await push(pulled, "x", f"docker://{host}/c/d:1", access=access, transfer=QUICK, tags=["2", "3"])
        assert [layer.how for layer in result.layers] == ["kept", "kept", "plain"]
        assert result.manifest_digest == result.original_digest == image.digest
        _same(registry, image)
        assert registry.repository("c/d").tags == dict.fromkeys("123", image.digest)
        registry.seen.clear()
        again = await push(pulled, "x", f"docker://{host}/c/d:1", access=access, transfer=QUICK)
    assert {layer.how for layer in again.layers} == {"present"}
    assert registry.count("POST|PATCH|PUT .*uploads") == 0


async def test_blobs_that_no_image_needs_are_let_go(pulled: Repository) -> None:
    assert prune(pulled) == 0
    assert len(list((Path(pulled.path) / "streams/refs/composefs-async/packed").iterdir())) == 2
    catalogue.untag(pulled, "x")
    assert prune(pulled) == 2
    pulled.gc()
    assert list((Path(pulled.path) / "streams").glob("oci-*")) == []


async def test_blobs_stay_while_something_may_need_them(pulled: Repository, image: SmallImage) -> None:
    manifest = f"oci-manifest-{image.digest}"
    pulled.name_stream(manifest, "mine")
    catalogue.untag(pulled, "x")
    assert prune(pulled) == 0  # another name leads to the image
    pulled.unname_stream("mine")
    assert prune(pulled, [manifest]) == 0
    async with pulled.lease("an import that runs"):
        assert prune(pulled) == 0
    assert prune(pulled, dry_run=True) == 2
    with Repository.open_path(pulled.path), pytest.raises(RepositoryInUseError):
        prune(pulled, timeout=0)
    assert prune(pulled) == 2


async def test_a_blob_that_was_let_go_and_is_still_there_gets_its_name_again(pulled: Repository) -> None:
    state, references = state_of(pulled), Path(pulled.path) / "streams/refs/composefs-async/packed"
    names = sorted(os.listdir(references))
    catalogue.untag(pulled, "x")
    assert prune(pulled) == 2
    for name in names:
        found = kept_blob(state, name)
        assert found is not None
        with opened_blob(state, found) as fd:
            keep_blob(state, name, fd, os.fstat(fd).st_size)
    assert sorted(os.listdir(references)) == names


async def test_layers_come_from_where_the_image_came_from(repo: Repository, image: SmallImage, access: Access) -> None:
    origin, target = FakeRegistry(), FakeRegistry()
    image.put(origin)
    async with origin.serving() as host, target.serving() as other:
        await oci.pull(repo, f"docker://{host}/a/b:1", tag="x", access=access, transfer=QUICK)
        plan = await push(repo, "x", f"docker://{other}/c/d:1", access=access, transfer=QUICK, dry_run=True)
        assert [layer.how for layer in plan.layers] == ["origin", "origin", "plain"]
        assert target.count("POST|PUT|PATCH") == 0
        origin.faults = [Fault("GET .*/blobs/", cut=1000, times=2)]
        result = await push(repo, "x", f"docker://{other}/c/d:1", access=access, transfer=QUICK)
        assert [layer.how for layer in result.layers] == ["origin", "origin", "plain"]
        _same(target, image)
        mounted = await push(repo, "x", f"docker://{host}/m/n:1", access=access, transfer=QUICK)
    assert {layer.how for layer in mounted.layers} == {"mounted"}
    assert origin.count("PUT .*uploads") == 1  # the config


async def test_layers_that_cannot_be_had_are_listed_and_packed_anew_if_that_is_asked_for(
    repo: Repository, image: SmallImage, access: Access
) -> None:
    await oci.pull(repo, f"oci:{image.directory}", tag="x")
    registry = FakeRegistry()
    async with registry.serving() as host:
        with pytest.raises(OciError, match=rf"{image.layers[0]} \(\d+ bytes\).*--repack"):
            await push(repo, "x", f"docker://{host}/c/d:1", access=access, transfer=QUICK)
        assert registry.count("POST|PUT") == 0
        result = await push(repo, "x", f"docker://{host}/c/d:1", access=access, transfer=QUICK, repack="zstd")
        assert [layer.how for layer in result.layers] == ["repacked", "repacked", "plain"]
        assert result.original_digest == image.digest != result.manifest_digest
        before, after = (
            json.loads(image.manifest),
            json.loads(registry.repository("c/d").manifests[result.manifest_digest][1]),
        )
        assert list(before) == list(after)
        assert before["config"] == after["config"]
        assert [layer["mediaType"][-5:] for layer in after["layers"]] == ["+zstd", "+zstd", "1.tar"]
        with pytest.raises(OciError, match="--force"):
            await push(repo, "x", f"docker://{host}/c/d:1", access=access, transfer=QUICK, repack="gzip", level=1)
        await push(
            repo, "x", f"docker://{host}/c/d:1", access=access, transfer=QUICK, repack="gzip", level=1, force=True
        )
        pulled = await oci.pull(repo, f"docker://{host}/c/d:1", access=access, transfer=QUICK, tag="again")
    assert pulled.config_digest == before["config"]["digest"]


FAULTS = {
    "the session cannot begin at first": [Fault("POST", status=503, times=2)],
    "the upload breaks": [Fault("PUT .*uploads", before_head=True, times=2)],
    "the upload is refused at first": [Fault("PUT .*uploads", status=500, times=2)],
    "the manifest is refused at first": [Fault("PUT .*manifests", status=502, times=2)],
    "looking is not allowed": [Fault("HEAD .*blobs", status=403, times=-1)],
    "too many requests": [Fault("PUT .*uploads", status=429, headers={"Retry-After": "0"})],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
async def test_a_fault_that_passes_is_survived(
    faults: list[Fault], pulled: Repository, image: SmallImage, access: Access
) -> None:
    registry = FakeRegistry()
    registry.faults = [replace(fault) for fault in faults]
    async with registry.serving() as host:
        await push(pulled, "x", f"docker://{host}/c/d:1", access=access, transfer=QUICK)
    _same(registry, image)


LASTING = {
    "no session": (Fault("POST", status=202, headers={"location": ""}, times=-1), RegistryError, "where to send"),
    "another manifest": (
        Fault("PUT .*manifests", headers={"docker-content-digest": f"sha256:{64 * '0'}"}, times=-1),
        DigestMismatchError,
        "stored something else",
    ),
    "the manifest is not valid": (
        Fault("PUT .*manifests", status=400, body=b'{"errors":[{"code":"MANIFEST_INVALID","message":"no"}]}', times=-1),
        RegistryError,
        "MANIFEST_INVALID: no",
    ),
    "an upload somewhere private": (
        Fault("POST", headers={"location": "http://169.254.169.254/x"}, times=-1),
        RegistryError,
        "private place",
    ),
}


@pytest.mark.parametrize("name", LASTING)
async def test_a_fault_that_stays_is_one_error(name: str, pulled: Repository, access: Access) -> None:
    fault, kind, words = LASTING[name]
    registry = FakeRegistry()
    registry.faults = [replace(fault)]
    async with registry.serving() as host:
        with pytest.raises(kind, match=words):
            await push(pulled, "x", f"docker://{host}/c/d:1", access=access, transfer=replace(QUICK, retries=1))


async def test_a_large_blob_goes_in_chunks_where_one_piece_is_refused(access: Access) -> None:
    registry = FakeRegistry()
    content = make_tar(9, 1, _CHUNK + 100_000)
    registry.faults = [Fault("PUT .*uploads", status=413), Fault("PATCH", skip=1, status=202, body=b"", times=0)]
    async with registry.serving() as host, RegistryClient(access, QUICK) as client:
        assert await client.push_blob(f"docker://{host}/c/d", content) == "uploaded"
    assert registry.count("PATCH") == 2
    assert registry.content[digest_of(content)] == content


async def test_an_empty_blob_and_one_that_is_there(access: Access) -> None:
    registry = FakeRegistry()
    async with registry.serving() as host, RegistryClient(access, QUICK) as client:
        assert await client.push_blob(f"docker://{host}/c/d", b"") == "uploaded"
        assert await client.push_blob(f"docker://{host}/c/d", b"") == "present"
        registry.put_blob("e/f", b"here")
        assert await client.push_blob(f"docker://{host}/c/d", b"here", mount_from=["e/f"]) == "mounted"
        assert await client.push_blob(f"docker://{host}/c/d", b"else", mount_from=["e/f"]) == "uploaded"
    assert registry.repository("c/d").blobs == {digest_of(each) for each in (b"", b"here", b"else")}


@pytest.mark.parametrize("has_api", [True, False])
async def test_what_refers_to_an_image_is_found_afterwards(has_api: bool, access: Access) -> None:
    registry = FakeRegistry(referrers=has_api)
    async with registry.serving() as host, RegistryClient(access, QUICK) as client:
        name = f"docker://{host}/c/d"
        await client.push_blob(name, b"{}")
        empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
        subject = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": [empty]}
        ).encode()
        digest = await client.push_manifest(f"{name}:1", subject, OCI_MANIFEST)
        found = []
        for kind in ("a/x", "a/y"):
            document = {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "artifactType": kind,
                "config": empty,
                "layers": [empty],
                "subject": {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(subject)},
            }
            raw = json.dumps(document).encode()
            found.append(await client.push_manifest(f"{name}@{digest_of(raw)}", raw, OCI_MANIFEST))
            assert await client.push_manifest(f"{name}@{digest_of(raw)}", raw, OCI_MANIFEST) == found[-1]
        listed = [each async for each in client.referrers(f"{name}:1")]
        assert sorted((each.digest, each.artifact_type) for each in listed) == sorted(
            [(found[0], "a/x"), (found[1], "a/y")]
        )
        assert [each.digest async for each in client.referrers(f"{name}:1", "a/y")] == [found[1]]


async def test_copies_keep_every_digest(
    image: SmallImage, make_image: Callable[..., SmallImage], access: Access, tmp_path: Path
) -> None:
    other = make_image((make_tar(5, 2, 100), "zstd"))
    source, target = FakeRegistry(), FakeRegistry()
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {"mediaType": OCI_MANIFEST, "digest": each.digest, "size": len(each.manifest), "platform": platform}
            for each, platform in (
                (image, {"os": "linux", "architecture": "amd64"}),
                (other, {"os": "linux", "architecture": "arm64"}),
            )
        ],
    }
    for each in (image, other):
        each.put(source, tag="t")
    raw = json.dumps(index, indent=1).encode()
    top = source.put_manifest("a/b", "all", raw, index["mediaType"])  # type: ignore[arg-type]
    async with source.serving() as host, target.serving() as far, RegistryClient(access, QUICK) as client:
        plan = await client.copy(f"docker://{host}/a/b:all", f"docker://{far}/c/d:all", dry_run=True)
        assert target.seen == []
        assert (plan.digest, len(plan.documents), set(plan.blobs.values())) == (top, 3, {"missing"})
        done = await client.copy(f"docker://{host}/a/b:all", f"docker://{far}/c/d:all")
        assert (done.digest, done.size) == (top, plan.size)
        repository = target.repository("c/d")
        assert repository.manifests[top][1] == raw
        assert repository.tags == {"all": top}
        assert repository.blobs == {*image.blobs, *other.blobs}
        again = await client.copy(f"docker://{host}/a/b:all", f"docker://{far}/c/d:all")
        assert again.size == 0
        within = await client.copy(f"docker://{host}/a/b:all", f"docker://{host}/e/f:all")
        assert set(within.blobs.values()) == {"mounted"}


async def test_listings_of_several_pages(access: Access) -> None:
    registry = FakeRegistry()
    registry.page_size = 3
    for number in range(8):
        registry.put_manifest("a/b", f"t{number}", b"{}")
    async with registry.serving() as host, RegistryClient(access, QUICK) as client:
        assert [tag async for tag in client.tags(f"docker://{host}/a/b")] == [f"t{number}" for number in range(8)]
        assert [name async for name in client.catalog(host)] == ["a/b"]
        registry.faults = [Fault("tags", headers={"link": '</v2/a/b/tags/list?n=1000>; rel="next"'}, times=-1)]
        with pytest.raises(RegistryError, match="no end"):
            [tag async for tag in client.tags(f"docker://{host}/a/b")]
        registry.faults = [Fault("catalog", status=401, headers={"www-authenticate": "Basic"}, times=-1)]
        with pytest.raises(RegistryError, match="as many do not"):
            [name async for name in client.catalog(host)]
        registry.faults = [Fault("/v2/$", status=200, body=b"<html>", times=1), Fault("/v2/$", status=418)]
        await client.ping(host)
        with pytest.raises(RegistryError, match="not a registry"):
            await client.ping(host)
