"""Pulls from a registry that keeps to its specification: what is asked, how often, and with what result."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from composefs_async import Repository, oci
from composefs_async.errors import (
    DigestMismatchError,
    ImageNotFoundError,
    InvalidNameError,
    OciError,
    RegistryError,
    TransportError,
)
from composefs_async.oci import catalogue, stored_layers
from composefs_async.oci.platforms import Platform
from composefs_async.progress import BytesFetched, ProgressEvent, Retrying, SourceChosen
from composefs_async.registry.access import Access, Transfer
from composefs_async.registry.spool import Spool
from composefs_async.testing.registry import OCI_INDEX, FakeRegistry, Fault

from .conftest import QUICK, RANGES, SmallImage, make_tar

pytestmark = pytest.mark.anyio


async def test_an_image_is_pulled_over_few_requests_and_again_over_one(
    repo: Repository, image: SmallImage, access: Access, no_blocking: object
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    async with registry.serving() as host:
        result = await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK)
        assert result.manifest_digest == image.digest
        assert (result.source, result.bytes_fetched, result.bytes_resumed) == (host, image.size, 0)
        assert result.tag == f"docker://{host}/a/b:1"
        # HEAD and GET of the manifest, config, three layers.
        assert [seen.method for seen in registry.seen] == ["HEAD"] + 5 * ["GET"]
        registry.seen.clear()
        again = await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK)
        assert [(seen.method, seen.target) for seen in registry.seen] == [("HEAD", "/v2/a/b/manifests/1")]
    assert (again.manifest_digest, again.bytes_fetched) == (image.digest, 0)
    assert registry.authorizations == []
    assert all(seen.headers["accept-encoding"] == "identity" for seen in registry.seen)
    stored = await catalogue.open_image_async(repo, f"docker://{host}/a/b:1")
    for diff_id in stored.layers:
        assert b"".join([piece async for piece in stored_layers.layer_content_async(repo, diff_id)])


async def test_a_large_layer_comes_in_parts_over_several_connections(
    repo: Repository, image: SmallImage, access: Access, events: list[ProgressEvent]
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    registry.latency = 0.03
    async with registry.serving() as host:
        result = await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=RANGES, progress=events.append)
    parts = [seen.headers["range"] for seen in registry.seen if "range" in seen.headers]
    size = max(len(blob) for blob in image.blobs.values())
    assert len(parts) == len(set(parts)) == -(-size // RANGES.chunk_size)
    assert result.bytes_fetched == image.size
    fetched = [event for event in events if isinstance(event, BytesFetched)]
    assert registry.most_open > 3
    last = {event.digest: event.received for event in fetched}
    assert sum(last.values()) == image.size
    assert [event.host for event in events if isinstance(event, SourceChosen)] == [host]


FAULTS = {
    "cut in the middle": [Fault("GET .*/blobs/", cut=1000)],
    "cut everywhere": [Fault("GET .*/blobs/", cut=2000, times=3), Fault("GET .*/blobs/", cut=700_000, times=3)],
    "reset": [Fault("GET .*/blobs/", cut=5000, then="reset", times=3)],
    "stalled": [Fault("GET .*/blobs/", cut=5000, then="stall")],
    "no answer": [Fault("GET .*/blobs/", before_head=True)],
    "reset before the answer": [Fault("HEAD|GET", before_head=True, then="reset", times=3)],
    "no answer in time": [Fault("GET .*/manifests/", delay=5.0)],
    "overloaded": [Fault("GET", status=503, times=3)],
    "bad gateway for the head": [Fault("HEAD", status=502, times=2)],
    "too many requests": [Fault("GET .*/blobs/", status=429, headers={"Retry-After": "0"}, times=2)],
    "head is not allowed": [Fault("HEAD", status=405, times=-1)],
    "head without a digest": [Fault("HEAD", headers={"docker-content-digest": ""}, times=-1)],
    "head with a malformed digest": [Fault("HEAD", headers={"docker-content-digest": "sha256:../.."}, times=-1)],
    "a damaged byte, once": [Fault("GET .*/blobs/", flip=-100)],
    "a damaged manifest, once": [Fault("GET .*manifests", flip=9)],
    "slow": [Fault("GET .*/blobs/", rate=20e6, times=-1)],
    "chunked": [Fault("GET .*/blobs/", chunked=True, times=-1)],
    "chunked and cut": [Fault("GET .*/blobs/", chunked=True, cut=3000, times=3)],
    "content type with parameters": [
        Fault("manifests", headers={"content-type": "application/vnd.oci.image.manifest.v1+json; charset=utf-8"})
    ],
    "vague content type": [Fault("manifests", headers={"content-type": "text/plain"}, times=-1)],
    "an ignored range": [Fault("GET .*/blobs/", ignore_range=True, times=-1)],
    "a later range that is ignored": [Fault("GET .*/blobs/", ignore_range=True, only_with="range", skip=3, times=-1)],
    "a range that cannot be satisfied": [Fault("GET .*/blobs/", status=416, only_with="range", skip=2)],
    "a part of something else": [
        Fault("GET .*/blobs/", only_with="range", skip=1, headers={"content-range": "bytes 7-262150/999999999"})
    ],
    "a warning": [Fault("GET", headers={"warning": '299 - "the end is near"'}, times=-1)],
}


IN_PARTS = [
    "cut everywhere",
    "reset",
    "stalled",
    "overloaded",
    "too many requests",
    "a damaged byte, once",
    "chunked and cut",
    *(name for name in FAULTS if "range" in name or "part" in name),
]
BOTH = [*((name, QUICK) for name in FAULTS if "range" not in name), *((name, RANGES) for name in IN_PARTS)]


@pytest.mark.parametrize(("name", "transfer"), BOTH, ids=[f"{n}-{t.chunk_size >> 10}" for n, t in BOTH])
async def test_a_fault_that_passes_is_survived(
    name: str, transfer: Transfer, repo: Repository, image: SmallImage, access: Access
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    registry.faults = [replace(fault) for fault in FAULTS[name]]
    async with registry.serving() as host:
        result = await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=transfer)
    assert result.manifest_digest == image.digest
    assert result.bytes_fetched >= image.size


LASTING = {
    "no image": ([Fault("manifests", status=404, times=-1)], ImageNotFoundError, "has no such thing"),
    "no layer": ([Fault("GET .*/blobs/", skip=1, status=404, times=-1)], ImageNotFoundError, "blob sha256:"),
    "always overloaded": ([Fault("", status=503, times=-1)], RegistryError, "answered 503"),
    "always cut": (
        [Fault("GET .*/blobs/", cut=100, times=-1)],
        TransportError,
        r"blob sha256:.*the connection broke \(\d attempts in a row\)",
    ),
    "always damaged": ([Fault("GET .*/blobs/", skip=1, flip=50, times=-1)], DigestMismatchError, "fetched twice"),
    "a lying digest": (
        [Fault("manifests", headers={"docker-content-digest": "sha256:" + 64 * "0"}, times=-1)],
        DigestMismatchError,
        "expected digest sha256:0000",
    ),
    "a damaged manifest": ([Fault("GET .*manifests", flip=50, times=-1)], DigestMismatchError, "manifest docker://"),
    "a damaged config": ([Fault("GET .*/blobs/", flip=3, times=2)], DigestMismatchError, "blob sha256:"),
    "a manifest that never ends": ([Fault("GET .*manifests", endless=True, times=-1)], RegistryError, "larger than"),
    "a layer that never ends": (
        [Fault("GET .*/blobs/", skip=1, endless=True, times=-1)],
        (RegistryError, DigestMismatchError),
        "more comes than was asked for|fetched twice",
    ),
    "a config that never ends": ([Fault("GET .*/blobs/", endless=True, times=-1)], RegistryError, "larger than"),
    "an error that never ends": ([Fault("GET .*manifests", status=400, endless=True)], RegistryError, "answered 400"),
    "another size": ([Fault("GET .*/blobs/", skip=1, extra=5, times=-1)], RegistryError, "the manifest"),
    "another kind": (
        [Fault("GET .*manifests", headers={"content-type": OCI_INDEX}, times=-1)],
        OciError,
        "it calls itself",
    ),
    "an old image": (
        [Fault("manifests", headers={"content-type": "application/vnd.docker.distribution.manifest.v1+prettyjws"})] * 2,
        OciError,
        "2016",
    ),
    "not HTTP": ([Fault("", before_head=True, times=-1)], TransportError, "no valid answer"),
    "encoded": ([Fault("GET .*/blobs/", headers={"content-encoding": "gzip"}, times=-1)], TransportError, "encoded"),
    "come back tomorrow": ([Fault("", status=429, headers={"Retry-After": "86400"})], RegistryError, "86400"),
    "redirected for ever": (
        [Fault("manifests", status=302, headers={"location": "/v2/a/b/manifests/1"}, times=-1)],
        RegistryError,
        "redirects",
    ),
    "redirected to metadata": (
        [Fault("GET .*/blobs/", status=307, headers={"location": "http://169.254.169.254/x"}, times=-1)],
        RegistryError,
        "in a private place",
    ),
    "redirected to nonsense": (
        [Fault("GET .*/blobs/", status=307, headers={"location": "ftp://[::"}, times=-1)],
        RegistryError,
        "no URL",
    ),
}


@pytest.mark.parametrize("name", LASTING)
async def test_a_fault_that_stays_is_one_error_and_nothing_is_published(
    name: str, repo: Repository, image: SmallImage, access: Access
) -> None:
    faults, kind, words = LASTING[name]
    registry = FakeRegistry()
    image.put(registry)
    registry.faults = [replace(fault) for fault in faults]
    async with registry.serving() as host:
        with pytest.raises(kind, match=words):
            await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=replace(QUICK, retries=2))
    assert catalogue.images(repo) == []
    assert registry.open == 0


async def test_attempts_begin_anew_whenever_something_has_come(
    repo: Repository, make_image: Callable[..., SmallImage], access: Access, events: list[ProgressEvent]
) -> None:
    """Twelve breaks, and two retries: each time something comes."""
    image = make_image((make_tar(7, 14, 1 << 20), "none"))
    registry = FakeRegistry()
    image.put(registry)
    registry.faults = [Fault("GET .*/blobs/", skip=1, cut=100_000, times=12)]
    async with registry.serving() as host:
        transfer = replace(QUICK, retries=2)
        result = await oci.pull(
            repo, f"docker://{host}/a/b:1", access=access, transfer=transfer, progress=events.append
        )
    assert result.bytes_fetched == image.size
    assert sum(isinstance(event, Retrying) for event in events) == 12


async def test_an_interrupted_pull_goes_on_where_it_was(repo: Repository, image: SmallImage, access: Access) -> None:
    registry = FakeRegistry()
    image.put(registry)
    registry.faults = [
        Fault(f"GET .*/blobs/{image.layers[1]}", cut=2_000_000),
        Fault(f"GET .*/blobs/{image.layers[1]}", status=400),
    ]
    async with registry.serving() as host:
        with pytest.raises(RegistryError, match="answered 400"):
            await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK)
        before = registry.sent
        result = await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK)
    assert result.bytes_resumed == 2_000_000
    assert registry.sent - before <= image.size - 2_000_000 + 4096
    assert not list((Path(repo.path) / ".composefs-async/spool").glob("*"))


async def test_a_damaged_spool_costs_one_more_download(repo: Repository, image: SmallImage, access: Access) -> None:
    registry = FakeRegistry()
    image.put(registry)
    registry.faults = [
        Fault(f"GET .*/blobs/{image.layers[1]}", cut=2_000_000),
        Fault(f"GET .*/blobs/{image.layers[1]}", status=400),
    ]
    async with registry.serving() as host:
        with pytest.raises(RegistryError, match="answered 400"):
            await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK)
        spool = Path(repo.path) / ".composefs-async/spool" / image.layers[1].replace(":", "-")
        content = bytearray(spool.read_bytes())
        content[1_000_000:1_000_006] = b"damage"
        spool.write_bytes(content)
        result = await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK)
    assert result.manifest_digest == image.digest


async def test_of_an_index_the_platform_is_chosen_and_the_second_pull_asks_once(
    repo: Repository, image: SmallImage, access: Access
) -> None:
    registry = FakeRegistry()
    image.put(registry, tag="plain")
    here = {"os": "linux", "architecture": "amd64"}
    entries = [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.digest, "size": len(image.manifest),
         "platform": each}
        for each in (here,)
    ]  # fmt: skip
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    registry.put_manifest("a/b", "1", json.dumps(index).encode(), OCI_INDEX)
    wanted = Platform("linux", "amd64")
    async with registry.serving() as host:
        first = await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK, platform=wanted)
        registry.seen.clear()
        await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK, platform=wanted)
        assert len(registry.seen) == 1
        with pytest.raises(ImageNotFoundError, match="linux/riscv64"):
            await oci.pull(
                repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK, platform=Platform("linux", "riscv64")
            )
    assert first.manifest_digest == image.digest


async def test_a_reference_with_tag_and_digest_goes_by_the_digest(
    repo: Repository, image: SmallImage, access: Access
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    async with registry.serving() as host:
        reference = f"docker://{host}/a/b:moved@{image.digest}"
        result = await oci.pull(repo, reference, access=access, transfer=QUICK)
        assert result.tag == reference
        with pytest.raises(InvalidNameError, match="lower case"):
            await oci.pull(repo, f"docker://{host}/A/b", access=access)


async def test_layers_that_arrive_in_memory_leave_no_file(repo: Repository, image: SmallImage, access: Access) -> None:
    registry = FakeRegistry()
    image.put(registry)
    registry.faults = [Fault(f"GET .*/blobs/{image.layers[1]}", status=400)]
    async with registry.serving() as host:
        with pytest.raises(RegistryError):
            await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=replace(QUICK, spool=False), tag="x")
        assert not (Path(repo.path) / ".composefs-async/spool").exists()
        await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=replace(QUICK, spool=False), tag="x")


async def test_a_large_layer_in_memory_is_given_back_while_it_is_read(
    repo: Repository, make_image: Callable[..., SmallImage], access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image((make_tar(8, 40, 1 << 20), "none"))
    registry = FakeRegistry()
    image.put(registry)
    most = 0
    forget = Spool.forget

    def watched(spool: Spool, offset: int) -> None:
        nonlocal most
        most = max(most, os.fstat(spool.fd).st_blocks * 512)
        forget(spool, offset)

    monkeypatch.setattr(Spool, "forget", watched)
    transfer = replace(RANGES, spool=False, chunk_size=1 << 20)
    async with registry.serving() as host:
        result = await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=transfer)
    assert result.bytes_fetched == image.size
    assert 0 < most <= 34 << 20


@pytest.mark.parametrize("good", [True, False])
async def test_documents_that_are_in_a_descriptor_are_not_asked_for(
    good: bool, repo: Repository, image: SmallImage, access: Access
) -> None:
    manifest = json.loads(image.manifest)
    config = image.blobs[manifest["config"]["digest"]]
    manifest["config"]["data"] = base64.b64encode(config if good else b"x" * len(config)).decode()
    registry = FakeRegistry()
    image.put(registry)
    registry.put_manifest("a/b", "2", json.dumps(manifest).encode())
    async with registry.serving() as host:
        result = await oci.pull(repo, f"docker://{host}/a/b:2", access=access, transfer=QUICK)
    assert result.config_digest == manifest["config"]["digest"]
    assert registry.count(f"blobs/{result.config_digest}") == (0 if good else 1)
