"""What a service that leads an import itself stands on: layers by any way, a lease meanwhile, an image at the end."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.digest import sha256_content_digest
from composefs_async.errors import (
    CompressionError,
    DigestMismatchError,
    ImageNotFoundError,
    InvalidNameError,
    OciError,
    StreamNotFoundError,
)
from composefs_async.oci import (
    Blob,
    BlockingBlob,
    Descriptor,
    ImageSource,
    LocalBlob,
    Platform,
    ResolvedImage,
    StreamedBlob,
    add_image,
    import_layer,
    open_source,
    pull,
)
from composefs_async.oci.catalogue import open_image_async
from composefs_async.oci.documents import image_layers, parse_config, parse_manifest
from composefs_async.repository import Repository
from composefs_async.results import Lease

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for name in names:
            info = tarfile.TarInfo(name)
            data = hashlib.sha256(name.encode(errors="surrogateescape")).digest() * 100
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


TARS = [archive("etc/a", "etc/b"), archive("usr/c")]
DIFF_IDS = [sha256_content_digest(tar) for tar in TARS]


def documents(**changes: Any) -> tuple[bytes, bytes]:
    """Manifest and config of an image of two layers, gzipped."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": DIFF_IDS},
        "config": {},
    }
    config_raw = json.dumps(config).encode()
    packed = [gzip.compress(tar, mtime=0) for tar in TARS]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": sha256_content_digest(config_raw), "size": len(config_raw)},
        "layers": [
            {"mediaType": f"{LAYER}+gzip", "digest": sha256_content_digest(blob), "size": len(blob)} for blob in packed
        ],
    }
    return json.dumps(manifest | changes).encode(), config_raw


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1000):
        await anyio.lowlevel.checkpoint()
        yield data[at : at + 1000]


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.init(tmp_path / "repo", insecure=True)


def streams(repo: Repository) -> list[str]:
    return sorted(path.name for path in Path(repo.path, "streams").glob("oci-*"))


# -- layers whose digest nobody knows ----------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", ["stream", "file", "function"])
async def test_digest_of_a_layer_is_computed(repo: Repository, tmp_path: Path, pack: Any, form: str) -> None:
    data = pack(TARS[0])
    path = tmp_path / "blob"
    path.write_bytes(b"before" + data + b"behind")
    with repo, path.open("rb") as file:
        file.seek(6)
        body = io.BytesIO(data)
        sources = {
            "stream": chunks(data),
            "file": LocalBlob(file.fileno(), len(data), str(path), 6),
            "function": BlockingBlob(lambda view: body.readinto(view[:777]), 0),
        }
        result = await import_layer(repo, None, sources[form])
        assert (result.diff_id, result.present) == (DIFF_IDS[0], False)
        again = await import_layer(repo, DIFF_IDS[0], chunks(b"is not read"))
        assert (again.stream_id, again.present) == (result.stream_id, True)
        merged = await anyio.to_thread.run_sync(lambda: b"".join(repo.merge_splitstream(f"oci-layer-{DIFF_IDS[0]}")))
        assert merged == TARS[0]
        assert file.tell() == 6


@pytest.mark.parametrize("media_type", [f"{LAYER}+gzip", f"{LAYER}+zstd", LAYER])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
async def test_media_type_does_not_tell_how_a_layer_is_packed(repo: Repository, media_type: str, pack: Any) -> None:
    with repo:
        result = await import_layer(repo, DIFF_IDS[0], chunks(pack(TARS[0])), media_type=media_type)
        assert result.diff_id == DIFF_IDS[0]


@pytest.mark.parametrize("name", ["\x1f\udc8bgzip", "(\udcb5/\udcfdzstd", "BZh91"])
async def test_tar_whose_first_name_looks_like_another_format(repo: Repository, name: str) -> None:
    tar = archive(name)
    with repo:
        assert (await import_layer(repo, None, chunks(tar))).diff_id == sha256_content_digest(tar)


@pytest.mark.parametrize(("magic", "format_name"), [(b"BZh9", "bzip2"), (b"\xfd7zXZ\x00", "xz")])
async def test_other_compression_is_named(repo: Repository, magic: bytes, format_name: str) -> None:
    with repo:
        with pytest.raises(CompressionError, match=f"packed with {format_name}, which is not supported"):
            await import_layer(repo, None, chunks(magic + bytes(5000)))
        assert streams(repo) == []


# -- images of layers that are there -----------------------------------------------------------


async def test_image_is_made_of_imported_layers(repo: Repository) -> None:
    manifest, config = documents()
    with repo:
        for tar in TARS:
            await import_layer(repo, None, chunks(tar))
        result = await add_image(repo, manifest, config, tag="made")
        assert result.manifest_digest == sha256_content_digest(manifest)
        assert [(layer.diff_id, layer.present) for layer in result.layers] == [(each, True) for each in DIFF_IDS]
        image = await open_image_async(repo, "made")
        assert (image.manifest.raw, image.config_raw) == (manifest, config)
        assert result.image_id is not None
        assert (await repo.gc_async()).objects_removed == 0


async def test_missing_layers_are_named_and_nothing_is_published(repo: Repository) -> None:
    manifest, config = documents()
    with repo:
        await import_layer(repo, DIFF_IDS[0], chunks(TARS[0]))
        with pytest.raises(StreamNotFoundError, match=f"layer not found: {DIFF_IDS[1]}: import it first"):
            await add_image(repo, manifest, config, tag="made")
        assert streams(repo) == [f"oci-layer-{DIFF_IDS[0]}"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda manifest, config: (manifest, config + b" "), DigestMismatchError, "config sha256:"),
        (lambda manifest, config: (manifest[:-1], config), OciError, "not valid JSON"),
        (lambda manifest, config: (documents(layers=[])[0], config), OciError, "it has 0 layers, but its config"),
        (lambda manifest, config: (documents(manifests=[])[0], config), OciError, "two kinds of document"),
        (lambda manifest, config: (config, config), OciError, "schemaVersion"),
    ],
)
async def test_documents_that_do_not_fit_are_refused(
    repo: Repository, change: Any, error: type[Exception], text: str
) -> None:
    with repo:
        for tar in TARS:
            await import_layer(repo, None, chunks(tar))
        before = streams(repo)
        with pytest.raises(error, match=text):
            await add_image(repo, *change(*documents()), tag="made")
        assert streams(repo) == before


# -- sources of others -------------------------------------------------------------------------


class Foreign:
    """A source as somebody else would write it, with all three forms of blobs."""

    def __init__(self, blobs: dict[str, bytes], manifest: bytes) -> None:
        self._blobs, self._manifest, self.opened = blobs, manifest, list[str]()

    async def resolve(
        self, *, tag: str | None = None, digest: str | None = None, platform: Platform | None = None
    ) -> ResolvedImage:
        await anyio.lowlevel.checkpoint()
        manifest = parse_manifest(self._manifest, sha256_content_digest(self._manifest))
        raw = self._blobs[manifest.config.digest]
        config = parse_config(raw, manifest.config.digest)
        return ResolvedImage("foreign:it", manifest, config, raw, image_layers(manifest, config))

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[Blob]:
        self.opened.append(descriptor.digest)
        data = self._blobs[descriptor.digest]
        if len(self.opened) % 2:
            yield StreamedBlob(chunks(data), len(data))
        else:
            body = io.BytesIO(data)
            yield BlockingBlob(body.readinto, len(data))


def foreign() -> Foreign:
    manifest, config = documents()
    contents = [config, *(gzip.compress(tar, mtime=0) for tar in TARS)]
    return Foreign({sha256_content_digest(content): content for content in contents}, manifest)


@pytest.mark.parametrize("tag", [None, "own"])
async def test_image_is_pulled_from_a_foreign_source(repo: Repository, tag: str | None) -> None:
    source: ImageSource = foreign()
    with repo:
        result = await pull(repo, source, tag=tag)
        assert (result.tag, result.manifest_digest) == (tag or "foreign:it", sha256_content_digest(documents()[0]))
        assert streams(repo) == sorted(
            [
                *(f"oci-layer-{each}" for each in DIFF_IDS),
                f"oci-config-{result.config_digest}",
                f"oci-manifest-{result.manifest_digest}",
            ]
        )


async def test_foreign_source_is_not_believed(repo: Repository) -> None:
    source = foreign()
    first = next(iter(parse_manifest(documents()[0], "sha256:" + "0" * 64).layers))
    source._blobs[first.digest] = gzip.compress(TARS[1], mtime=0)
    with repo:
        with pytest.raises(DigestMismatchError):
            await pull(repo, source, tag="own")
        assert streams(repo) == []


@pytest.mark.parametrize("reference", ["nonsense", "ftp:somewhere", "oci:", "oci:dir:", ""])
async def test_reference_that_is_none(repo: Repository, reference: str) -> None:
    with repo, pytest.raises(InvalidNameError):
        await pull(repo, reference)


async def test_source_knows_the_image_of_its_reference(tmp_path: Path) -> None:
    layouts = Path(__file__).parent.parent / "vectors/layouts"
    async with open_source(f"oci:{layouts / 'one'}") as source:
        image = await source.resolve()
    async with open_source(f"oci:{layouts / 'one'}@{image.manifest.digest}") as source:
        assert (await source.resolve()).manifest == image.manifest
    async with open_source(f"oci:{layouts / 'one'}:nowhere") as source:
        with pytest.raises(ImageNotFoundError):
            await source.resolve()


# -- leases ------------------------------------------------------------------------------------


def same(found: Lease) -> tuple[str | None, str, dict[str, Any]]:
    return found.manifest_digest, found.reference, dict(found.layers)


async def interrupted(repo: Repository, name: str, duration: float | None = None) -> None:
    """Import a layer under a lease, in a block that ends by an error."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with repo.lease(name, duration=duration):
            await import_layer(repo, None, chunks(TARS[0]))
            raise ZeroDivisionError


async def test_layer_without_a_lease_goes_with_the_next_gc(repo: Repository) -> None:
    with repo:
        await import_layer(repo, None, chunks(TARS[0]))
        assert (await repo.gc_async()).objects_removed > 0
        assert streams(repo) == []


async def test_lease_keeps_layers_until_an_image_names_them(repo: Repository) -> None:
    manifest, config = documents()
    with repo:
        present = await import_layer(repo, None, chunks(TARS[0]))
        async with repo.lease("work") as lease:
            assert same(lease) == (None, "work", {})
            assert (await import_layer(repo, DIFF_IDS[0], chunks(b"is not read"))).present
            fresh = await import_layer(repo, None, chunks(TARS[1]))
            layers = {DIFF_IDS[0]: present.stream_id, DIFF_IDS[1]: fresh.stream_id}
            assert [same(each) for each in await repo.leases_async()] == [(None, "work", layers)]
            assert (await repo.gc_async()).objects_removed == 0
            await add_image(repo, manifest, config, tag="made")
        assert await repo.leases_async() == []
        assert (await repo.gc_async()).objects_removed == 0


async def test_lease_of_a_block_that_failed_is_gone_on_with(repo: Repository, tmp_path: Path) -> None:
    with repo:
        await interrupted(repo, "work")
    with Repository.open_path(tmp_path / "repo") as again:
        assert (await again.gc_async()).objects_removed == 0
        async with again.lease("work") as lease:
            assert set(lease.layers) == {DIFF_IDS[0]}
        assert (await again.gc_async()).objects_removed > 0


async def test_lease_that_is_dropped_keeps_nothing(repo: Repository) -> None:
    with repo:
        await interrupted(repo, "sha256:work")
        assert await repo.drop_lease_async("sha256:work")
        assert not await repo.drop_lease_async("sha256:work")
        assert (await repo.gc_async()).objects_removed > 0


async def test_lease_ends_after_its_time(repo: Repository) -> None:
    with repo:
        await interrupted(repo, "work", 0)
        assert await repo.leases_async() == []


@pytest.mark.parametrize("name", ["", "x" * 1025])
async def test_name_of_a_lease_that_cannot_be(repo: Repository, name: str) -> None:
    with repo, pytest.raises(InvalidNameError):
        async with repo.lease(name):
            os.abort()
