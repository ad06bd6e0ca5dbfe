"""Images in an OCI image directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from composefs_async.digest import sha256_content_digest
from composefs_async.errors import DigestMismatchError, ImageNotFoundError, OciError, TransportError
from composefs_async.naming import LayoutReference
from composefs_async.oci.documents import OCI_INDEX_TYPE, Descriptor
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.platforms import Platform
from composefs_async.oci.sources import ImageSource, LocalBlob, OciLayoutSource, ResolvedImage
from composefs_async.oci.sources.layout import locate

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

VECTORS = Path(__file__).parents[2] / "vectors" / "layouts"
AMD64, ARM64, S390X = Platform("linux", "amd64"), Platform("linux", "arm64"), Platform("linux", "s390x")


def image(writer: OciLayoutWriter, platform: Platform, tag: str | None, content: bytes = b"x") -> Descriptor:
    return writer.add_image([writer.add_layer(content)], tag=tag, platform=platform)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def blob_path(directory: Path, digest: str) -> Path:
    return directory / "blobs" / digest.replace(":", "/")


# -- real directories --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "compressions"),
    [
        ("basic", ["gzip", "gzip"]),
        ("one", ["gzip"]),
        ("plain_zstd", ["none", "zstd"]),
        ("docker", ["gzip"]),
        ("same_layer", ["gzip", "gzip"]),
        ("index", ["gzip"]),
        ("artifact", [None, None]),
    ],
)
@pytest.mark.parametrize("tag", ["latest", None])
@pytest.mark.usefixtures("no_blocking")
async def test_real_directory_is_resolved(case: str, compressions: list[str | None], tag: str | None) -> None:
    source: ImageSource = OciLayoutSource(VECTORS / case)
    found = await source.resolve(tag=tag, platform=AMD64)
    assert [layer.compression for layer in found.layers] == compressions
    assert found.manifest.is_container == (found.config is not None) == (case != "artifact")
    if found.config:
        assert (found.config.raw, found.config.platform) == (found.config_raw, AMD64)
        assert [layer.name for layer in found.layers] == list(found.config.diff_ids)
    else:
        assert found.config_raw == b"{}"
    assert found.reference == f"oci:{VECTORS / case}" + (":latest" if tag else "")


@pytest.mark.usefixtures("no_blocking")
async def test_blob_is_opened_as_a_file() -> None:
    source = OciLayoutSource(VECTORS / "one")
    found = await source.resolve(platform=AMD64)
    layer = found.layers[0].descriptor
    async with source.open_blob(layer) as blob:
        assert isinstance(blob, LocalBlob)
        assert (blob.size, blob.path) == (layer.size, str(blob_path(VECTORS / "one", layer.digest)))
        content = await anyio.to_thread.run_sync(os.read, blob.fd, 1 << 20)
        assert sha256_content_digest(content) == layer.digest


# -- platforms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "digest"),
    [
        (AMD64, "sha256:e81136fe90b45db4f97d35af11269854ce05dc27b4f9104cf835d0a7958a30de"),
        (ARM64, "sha256:16e02ec7a9ad35ae08b23e739ce89808d604666857c7e7eda907bb63398b912a"),
        (S390X, "sha256:cd9a1ddabfd80596531b290d8226cd14dc697e02ffe8867e5cb98d193ae10967"),
    ],
)
async def test_platform_is_chosen_from_an_index_in_the_index(platform: Platform, digest: str) -> None:
    found = await OciLayoutSource(VECTORS / "index").resolve(tag="latest", platform=platform)
    assert found.manifest.digest == digest
    assert found.config
    assert found.config.platform == platform


async def test_foreign_platform_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        await OciLayoutSource(VECTORS / "index").resolve(tag="latest", platform=Platform("linux", "riscv64"))
    assert caught.value.name == f"oci:{VECTORS / 'index'}:latest"
    assert caught.value.reason == (
        "no manifest for linux/riscv64; there are: linux/arm64 (latest), linux/amd64 (latest), "
        "linux/s390x (latest); choose one with --platform linux/arm64"
    )


async def test_platform_is_read_from_the_config_when_the_descriptor_has_none(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    image(writer, ARM64, "a", b"arm")
    wanted = image(writer, AMD64, "b", b"amd")

    def strip(document: Any) -> None:
        for entry in document["manifests"]:
            del entry["platform"]

    edit(tmp_path / "index.json", strip)
    assert (await OciLayoutSource(tmp_path).resolve(platform=AMD64)).manifest.digest == wanted.digest
    with pytest.raises(ImageNotFoundError, match=r"no manifest for linux/amd64; there are: linux/arm64 \(a\)"):
        await OciLayoutSource(tmp_path).resolve(tag="a", platform=AMD64)


async def test_index_beside_an_image_and_two_entries_of_one_tag(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    arm, amd = image(writer, ARM64, None, b"arm"), image(writer, AMD64, None, b"amd")
    writer.add_index([arm, amd], tag="multi")
    image(writer, S390X, "multi", b"s390x")
    source = OciLayoutSource(tmp_path)
    assert (await source.resolve(platform=AMD64)).manifest.digest == amd.digest
    assert (await source.resolve(tag="multi", platform=ARM64)).manifest.digest == arm.digest


async def test_several_names_that_fit_need_a_tag(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    first, second = image(writer, AMD64, "one", b"1"), image(writer, AMD64, "two", b"2")
    source = OciLayoutSource(tmp_path)
    with pytest.raises(OciError, match="several images fit linux/amd64: one, two; say which with a tag"):
        await source.resolve(platform=AMD64)
    assert (await source.resolve(tag="one", platform=AMD64)).manifest.digest == first.digest
    assert (await source.resolve(tag="two", platform=AMD64)).manifest.digest == second.digest


async def test_missing_manifests_of_other_platforms_do_not_matter(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    arm, amd = image(writer, ARM64, None, b"arm"), image(writer, AMD64, None, b"amd")
    writer.add_index([arm, amd])
    blob_path(tmp_path, arm.digest).unlink()
    assert (await OciLayoutSource(tmp_path).resolve(platform=AMD64)).manifest.digest == amd.digest


# -- digests as names --------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["manifest", "config", "index"])
@pytest.mark.parametrize("first", [True, False])
async def test_entries_that_are_not_wanted_may_be_missing(tmp_path: Path, missing: str, first: bool) -> None:
    writer = OciLayoutWriter(tmp_path)
    wanted, other = image(writer, AMD64, None, b"amd"), image(writer, ARM64, None, b"arm")
    if missing == "index":
        other = writer.add_index([other])
    writer.add_index([other, wanted] if first else [wanted, other], tag="t")
    path = blob_path(tmp_path, other.digest)
    if missing == "config":
        path = blob_path(tmp_path, json.loads(path.read_bytes())["config"]["digest"])
    path.unlink()
    index = blob_path(tmp_path, json.loads((tmp_path / "index.json").read_bytes())["manifests"][-1]["digest"])
    document = json.loads(index.read_bytes())
    for entry in document["manifests"]:
        entry.pop("platform", None)
    raw = json.dumps(document).encode()
    top = Descriptor(OCI_INDEX_TYPE, sha256_content_digest(raw), len(raw))
    blob_path(tmp_path, top.digest).write_bytes(raw)
    source = OciLayoutSource(tmp_path)
    assert (await source.resolve(digest=top.digest, platform=AMD64)).manifest.digest == wanted.digest
    with pytest.raises(ImageNotFoundError) as caught:
        await source.resolve(digest=top.digest, platform=S390X)
    assert caught.value.reason == (
        "no manifest for linux/s390x; there are: linux/amd64; choose one with --platform linux/amd64; "
        f"of 1 more it cannot be told: {path} is missing"
    )


async def test_entry_is_resolved_by_its_position(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    entries = [image(writer, AMD64, "t", b"1"), image(writer, AMD64, "u", b"2")]
    source = OciLayoutSource(tmp_path)
    for position, entry in enumerate(entries):
        found = await source.resolve(position=position, platform=AMD64)
        assert (found.manifest.digest, found.reference) == (entry.digest, f"oci:{tmp_path}:@{position}")
    with pytest.raises(ImageNotFoundError, match=r":@2: index.json has 2 entries, from 0"):
        await source.resolve(position=2)


def test_image_directory_is_located_before_other_directories(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    assert locate(f"oci:{tmp_path}/a:b:c") == LayoutReference(f"{tmp_path}/a", "b:c")
    OciLayoutWriter(tmp_path / "a:b")
    assert locate(f"oci:{tmp_path}/a:b:c") == LayoutReference(f"{tmp_path}/a:b", "c")
    assert locate(f"oci:{tmp_path}/x:b:c") == LayoutReference(f"{tmp_path}/x:b", "c")


async def test_manifest_is_resolved_by_digest_whatever_its_platform(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    arm, amd = image(writer, ARM64, None, b"arm"), image(writer, AMD64, None, b"amd")
    nested = writer.add_index([arm, amd])
    source = OciLayoutSource(tmp_path)
    assert (await source.resolve(digest=arm.digest)).manifest.digest == arm.digest
    assert (await source.resolve(digest=nested.digest, platform=AMD64)).manifest.digest == amd.digest
    with pytest.raises(ImageNotFoundError, match="no manifest for linux/amd64"):
        await source.resolve(digest=arm.digest, platform=AMD64)


async def test_digest_that_is_not_there_is_named() -> None:
    digest = "sha256:" + "ab" * 32
    with pytest.raises(ImageNotFoundError, match=f"{blob_path(VECTORS / 'one', digest)} is missing") as caught:
        await OciLayoutSource(VECTORS / "one").resolve(digest=digest)
    assert caught.value.name == f"oci:{VECTORS / 'one'}@{digest}"


async def test_a_document_that_is_named_by_its_digest_tells_its_own_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    writer = OciLayoutWriter(tmp_path, docker=True)
    manifests = [image(writer, platform, None, str(platform).encode()) for platform in (AMD64, S390X)]
    listed = writer.add_index(manifests)
    found = await OciLayoutSource(tmp_path).resolve(digest=listed.digest)
    assert (found.manifest.digest, found.manifest.media_type) == (manifests[1].digest, manifests[1].media_type)
    assert (await OciLayoutSource(tmp_path).resolve(digest=manifests[0].digest)).manifest.digest == manifests[0].digest
    odd = writer.add_json({"schemaVersion": 2, "mediaType": [], "manifests": []}, "x")
    with pytest.raises(OciError, match="'mediaType' is a list"):
        await OciLayoutSource(tmp_path).resolve(digest=odd.digest)


async def test_blob_that_is_no_manifest_is_refused_as_one() -> None:
    source = OciLayoutSource(VECTORS / "one")
    found = await source.resolve(platform=AMD64)
    with pytest.raises(OciError, match="schemaVersion is None"):
        await source.resolve(digest=found.manifest.config.digest)
    with pytest.raises(OciError, match="it is not UTF-8"):
        await source.resolve(digest=found.layers[0].descriptor.digest)


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "sha256:" + "AB" * 32, "md5:" + "ab" * 16, "../x"])
async def test_digest_that_is_no_name_of_a_blob_is_refused(digest: str) -> None:
    source = OciLayoutSource(VECTORS / "one")
    with pytest.raises(OciError):
        await source.resolve(digest=digest)
    with pytest.raises(OciError):
        async with source.open_blob(Descriptor("x", digest, 1)):
            pass


async def test_tag_and_digest_together_are_refused() -> None:
    with pytest.raises(OciError, match="not both"):
        await OciLayoutSource(VECTORS / "one").resolve(tag="latest", digest="sha256:" + "ab" * 32)


# -- damage ------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    copy = tmp_path / "image"
    shutil.copytree(VECTORS / "one", copy)
    return copy


async def resolved(directory: Path) -> ResolvedImage:
    return await OciLayoutSource(directory).resolve(tag="latest", platform=AMD64)


@pytest.mark.parametrize("which", ["manifest", "config"])
async def test_changed_document_of_the_same_size_is_found(directory: Path, which: str) -> None:
    good = await resolved(directory)
    digest = good.manifest.digest if which == "manifest" else good.manifest.config.digest
    path = blob_path(directory, digest)
    path.write_bytes(path.read_bytes().replace(b"linux", b"Linux").replace(b"layers", b"Layers"))
    with pytest.raises(DigestMismatchError) as caught:
        await resolved(directory)
    assert (caught.value.what, caught.value.expected) == (f"{which} {digest}", digest)


@pytest.mark.parametrize("which", ["manifest", "config"])
async def test_document_of_another_size_is_found(directory: Path, which: str) -> None:
    good = await resolved(directory)
    digest = good.manifest.digest if which == "manifest" else good.manifest.config.digest
    with blob_path(directory, digest).open("ab") as file:
        file.write(b" ")
    with pytest.raises(OciError, match=rf"{which} {digest}: it has \d+ bytes, its descriptor says \d+"):
        await resolved(directory)


async def test_layer_of_another_size_is_found(directory: Path) -> None:
    layer = (await resolved(directory)).layers[0].descriptor
    with blob_path(directory, layer.digest).open("ab") as file:
        file.write(b" ")
    with pytest.raises(OciError, match=rf"it has {layer.size + 1} bytes, its descriptor says {layer.size}"):
        async with OciLayoutSource(directory).open_blob(layer):
            pass


async def test_missing_layer_is_named(directory: Path) -> None:
    layer = (await resolved(directory)).layers[0].descriptor
    path = blob_path(directory, layer.digest)
    path.unlink()
    with pytest.raises(TransportError, match=f"{path} is missing"):
        async with OciLayoutSource(directory).open_blob(layer):
            pass


@pytest.mark.parametrize("which", ["index.json", "manifest", "config"])
async def test_missing_file_is_named(directory: Path, which: str) -> None:
    good = await resolved(directory)
    path = {
        "index.json": directory / "index.json",
        "manifest": blob_path(directory, good.manifest.digest),
        "config": blob_path(directory, good.manifest.config.digest),
    }[which]
    path.unlink()
    with pytest.raises(TransportError, match=f"{path} is missing"):
        await resolved(directory)


async def test_pipe_is_not_opened(directory: Path) -> None:
    (directory / "index.json").unlink()
    os.mkfifo(directory / "index.json")
    with pytest.raises(TransportError, match="is not a regular file"):
        await resolved(directory)


async def test_directory_of_links_is_accepted(directory: Path, tmp_path: Path) -> None:
    (directory / "blobs").rename(tmp_path / "cache")
    (directory / "blobs").symlink_to(tmp_path / "cache")
    assert (await resolved(directory)).layers


async def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OciError, match=f"{tmp_path}: not an OCI image directory: it has no file oci-layout"):
        await OciLayoutSource(tmp_path).resolve()
    with pytest.raises(ImageNotFoundError, match=f"oci:{tmp_path}/missing: there is no such directory"):
        await OciLayoutSource(tmp_path / "missing").resolve()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "layout version '' is not supported"),
        ('{"imageLayoutVersion":"2.0.0"}', "layout version '2.0.0' is not supported"),
        ("nonsense", "not valid JSON"),
    ],
)
async def test_other_layout_versions_are_refused(directory: Path, content: str, reason: str) -> None:
    (directory / "oci-layout").write_text(content)
    with pytest.raises(OciError, match=reason):
        await resolved(directory)


async def test_unknown_tag_is_an_error_that_lists_tags(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    with pytest.raises(ImageNotFoundError, match="there are no manifests"):
        await OciLayoutSource(tmp_path).resolve(tag="x")
    writer.list_entry(image(writer, AMD64, None))
    with pytest.raises(ImageNotFoundError, match="there is no such tag; no entry has a tag"):
        await OciLayoutSource(tmp_path).resolve(tag="x")
    image(writer, AMD64, "b")
    image(writer, AMD64, "a")
    with pytest.raises(ImageNotFoundError, match=f"oci:{tmp_path}:x: there is no such tag; there are: a, b$"):
        await OciLayoutSource(tmp_path).resolve(tag="x")
    for number in range(11):
        image(writer, AMD64, f"t{number:02}")
    with pytest.raises(ImageNotFoundError, match=r"there are: a, b, t00, .*, t07 and 3 more$"):
        await OciLayoutSource(tmp_path).resolve(tag="x")


async def test_unknown_kinds_of_manifests_are_named(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    writer.list_entry(writer.add_blob(b"{}", "application/vnd.docker.distribution.manifest.v1+json"), "latest")
    with pytest.raises(OciError, match=r"no manifest of a known type, only 'application/vnd.docker.distribution"):
        await OciLayoutSource(tmp_path).resolve(tag="latest")


async def test_layers_are_compared_with_the_config_before_anything_is_read(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    writer.add_image([writer.add_layer(b"x")], config={"rootfs": {"type": "layers", "diff_ids": []}}, platform=AMD64)
    with pytest.raises(OciError, match=r"it has 1 layers, but its config .* has 0"):
        await resolved(tmp_path)


# -- bounds ------------------------------------------------------------------------------------


async def test_document_larger_than_the_limit_is_not_read(directory: Path) -> None:
    largest = max(len((directory / "index.json").read_bytes()), (await resolved(directory)).manifest.config.size)
    largest = max(largest, len((await resolved(directory)).manifest.raw))
    assert (await OciLayoutSource(directory, document_limit=largest).resolve(platform=AMD64)).layers
    with pytest.raises(OciError, match=rf"(larger|more) than the limit of {largest - 1}"):
        await OciLayoutSource(directory, document_limit=largest - 1).resolve(platform=AMD64)

    def grow(document: Any) -> None:
        document["manifests"][0]["size"] = 1 << 40

    edit(directory / "index.json", grow)
    with pytest.raises(OciError, match="it has 1099511627776 bytes, more than the limit of 4194304"):
        await OciLayoutSource(directory).resolve(tag="latest", platform=Platform("linux", "amd64"))


async def test_deep_indexes_are_refused(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    inner = image(writer, AMD64, None)
    for depth in range(1, 5):  # index.json is the first
        inner = writer.add_index([inner], tag=f"deep{depth}")
    assert (await OciLayoutSource(tmp_path).resolve(tag="deep3", platform=AMD64)).layers
    with pytest.raises(OciError, match="indexes inside indexes are nested deeper than 4"):
        await OciLayoutSource(tmp_path).resolve(tag="deep4", platform=AMD64)


async def test_wide_indexes_of_indexes_end(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path)
    inner = image(writer, AMD64, None)
    for _ in range(3):
        inner = writer.add_index([inner] * 100, tag=None)
    writer.list_entry(inner, "wide")
    with pytest.raises(OciError, match="its manifests and indexes are too many to read"):
        await OciLayoutSource(tmp_path).resolve(tag="wide", platform=AMD64)
