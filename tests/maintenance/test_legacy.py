"""Images of January 2026, whose manifest was never stored: listed, read, given a manifest, pulled over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from composefs_async.digest import Algorithm, sha256_content_digest
from composefs_async.errors import DigestMismatchError, InvalidNameError, OciError, StreamNotFoundError
from composefs_async.naming import config_stream, layer_stream, manifest_stream
from composefs_async.oci import catalogue, ensure_images, ensure_images_async, image_tree, stored_layers
from composefs_async.oci.catalogue import ImageSummary, open_image
from composefs_async.oci.importing.pull import pull
from composefs_async.repository import Repository
from composefs_async.tree.dumpwriter import write_dump

from ..maintenance.generations import PLATFORM, Builder, Image, entries, january

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

TAGS = ["app", "localhost/app:1.0"]
tags = pytest.mark.parametrize("tag", TAGS)


class Old:
    def __init__(self, path: Path, tag: str, **options: Any) -> None:
        self.path, self.tag = path / "repo", tag
        self.image = Image.make(path / "layout")
        self.builder: Builder = january(self.path, Algorithm.SHA256, self.image, tag, **options)
        Repository.upgrade(self.path)

    def open(self) -> Repository:
        return Repository.open_path(self.path)


@pytest.fixture(params=[True, False], ids=["dangling", "one day"])
def dangling(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


def stand_in(image: Image) -> dict[str, Any]:
    tar = "application/vnd.oci.image.layer.v1.tar"
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": image.config_digest,
            "size": len(image.config),
        },
        "layers": [{"mediaType": tar, "digest": name, "size": len(content)} for name, content in image.tars.items()],
    }


@tags
def test_they_are_listed_and_opened_by_their_reference(tmp_path: Path, tag: str, dangling: bool) -> None:
    old = Old(tmp_path, tag, dangling=dangling)
    with old.open() as repo:
        before = entries(old.path)
        image = open_image(repo, tag)
        assert json.loads(image.manifest.raw) == stand_in(old.image)
        assert image.manifest.digest == sha256_content_digest(image.manifest.raw)
        assert image.manifest_id is None
        assert (image.config_raw, image.images) == (old.image.config, {})
        assert image.layers == {name: repo.has_stream(layer_stream(name)) for name in old.image.tars}
        size = sum(each.size for each in image.manifest.layers)
        platform, created = ("amd64", "linux"), "1970-01-01T00:00:00Z"
        assert catalogue.images(repo) == [
            ImageSummary(tag, image.manifest.digest, True, *platform, created, 2, 0, None, True, size)
        ]
        with pytest.raises(StreamNotFoundError):
            open_image(repo, f"@{image.manifest.digest}")
        for name, content in old.image.tars.items():
            assert b"".join(stored_layers.layer_content(repo, name)) == content
    assert entries(old.path) == before


def test_one_whose_config_is_damaged_is_listed_with_its_error(tmp_path: Path) -> None:
    old = Old(tmp_path, "app")
    with old.open() as repo:
        path = old.path / "streams" / config_stream(old.image.config_digest)
        os.unlink(path)
        os.symlink(f"../objects/{old.builder.object(b'no stream').path}", path)
        (found,) = catalogue.images(repo)
        assert (found.name, found.manifest_digest, found.without_manifest) == ("app", "", True)
        assert "header" in str(found.error)


def test_a_tag_of_the_same_name_comes_first(tmp_path: Path) -> None:
    old = Old(tmp_path, "app")
    other = Image.make(tmp_path / "other", b"two")
    old.builder.manifest(other, "app")
    with old.open() as repo:
        assert open_image(repo, "app").config_raw == other.config
        assert [(each.name, each.without_manifest) for each in catalogue.images(repo)] == [("app", False)]


# -- a manifest --------------------------------------------------------------------------------


def names_of(repo: Repository) -> list[tuple[str, bool]]:
    return [(each.name, each.dangling) for each in repo.references() if each.category == "streams"]


@tags
def test_they_become_current_images_without_a_source(tmp_path: Path, tag: str, dangling: bool) -> None:
    old = Old(tmp_path, tag, dangling=dangling)
    with old.open() as repo:
        before = open_image(repo, tag)
        tree = list(write_dump(image_tree(repo, before)))
        made = ensure_images(repo, tag)
        assert (made.manifest, made.config_raw, made.layers) == (before.manifest, before.config_raw, before.layers)
        assert made.manifest_id == repo.has_stream(manifest_stream(before.manifest.digest))
        assert names_of(repo) == [("oci/" + tag.replace("/", "%2F"), False)]
        assert list(write_dump(image_tree(repo, made))) == tree
        image_id = made.image(2)
        assert image_id is not None
        assert repo.has_image(image_id.hex()) == image_id
        # An object of its own, as composefs-rs wants it.
        with repo.open_stream(config_stream(old.image.config_digest)) as reader:
            assert len(reader.object_refs) == 1
        assert [each.without_manifest for each in catalogue.images(repo)] == [False]
        files = entries(old.path)
        assert ensure_images(repo, tag) == made
    assert entries(old.path) == files


def test_a_layer_that_is_not_what_its_name_says_gets_no_manifest(tmp_path: Path) -> None:
    old = Old(tmp_path, "app")
    first, second = old.image.tars
    planted = old.builder.layer_id(second)
    path = old.path / "streams" / config_stream(old.image.config_digest)
    os.unlink(path)
    writer = old.builder.writer(0x67666E6F6369636F, {first: planted, second: planted})
    writer.write_inline(old.image.config)
    old.builder.stream(path.name, writer)
    with old.open() as repo:
        before = names_of(repo)
        with pytest.raises(DigestMismatchError, match=first):
            ensure_images(repo, "app")
        assert names_of(repo) == before


@pytest.mark.parametrize("size", [5, 1 << 63, (1 << 64) - 1])
def test_a_stream_that_lies_about_its_size_gets_no_manifest(size: int, tmp_path: Path) -> None:
    old = Old(tmp_path, "app")
    first = next(iter(old.image.tars))
    object_id = old.builder.layer_id(first)
    content = bytearray((old.path / "objects" / object_id.path).read_bytes())
    content[32 + 72 : 32 + 80] = size.to_bytes(8, "little")
    lying = old.builder.object(bytes(content))
    path = old.path / "streams" / config_stream(old.image.config_digest)
    os.unlink(path)
    layers = {name: old.builder.layer_id(name) for name in old.image.tars} | {first: lying}
    writer = old.builder.writer(0x67666E6F6369636F, layers)
    writer.write_inline(old.image.config)
    old.builder.stream(path.name, writer)
    with old.open() as repo, pytest.raises(OciError):
        ensure_images(repo, "app")


# -- pulling over ------------------------------------------------------------------------------


@pytest.mark.parametrize("make_images", [True, False])
async def test_pulling_over_one_stores_no_file_again_and_makes_it_a_current_one(
    make_images: bool, tmp_path: Path, dangling: bool
) -> None:
    old = Old(tmp_path, "app", dangling=dangling)
    with old.open() as repo:
        result = await pull(repo, old.image.reference, tag="app", platform=PLATFORM, make_images=make_images)
        assert [layer.present for layer in result.layers] == [True, True]
        assert (result.manifest_digest, result.config_digest) == (old.image.manifest_digest, old.image.config_digest)
        found = open_image(repo, "app")
        assert (found.manifest.raw, found.manifest_id) == (old.image.manifest, result.manifest_id)
        assert (found.image(2) is not None) == make_images
        assert names_of(repo) == [("oci/app", False)]
        with repo.open_stream(config_stream(old.image.config_digest)) as reader:
            assert len(reader.object_refs) == 1


async def test_a_newer_image_of_the_same_name_replaces_what_dangles_and_nothing_else(
    tmp_path: Path, dangling: bool
) -> None:
    old = Old(tmp_path, "app", dangling=dangling)
    other = Image.make(tmp_path / "other", b"two")
    with old.open() as repo:
        await pull(repo, other.reference, tag="app", platform=PLATFORM)
        assert names_of(repo) == ([] if dangling else [("app", False)]) + [("oci/app", False)]


async def test_another_tag_leaves_the_reference(tmp_path: Path) -> None:
    old = Old(tmp_path, "app")
    with old.open() as repo:
        await pull(repo, old.image.reference, tag="other", platform=PLATFORM)
        assert names_of(repo) == [("app", False), ("oci/other", False)]


async def test_the_async_form_does_the_same(tmp_path: Path) -> None:
    old = Old(tmp_path, "app")
    async with await Repository.open_path_async(old.path) as repo:
        made = await ensure_images_async(repo, "app")
        assert await catalogue.open_image_async(repo, "app") == made


@pytest.mark.parametrize("name", ["", "..", "a//b", "@sha256:0"])
def test_names_that_cannot_be_are_refused(name: str, tmp_path: Path) -> None:
    old = Old(tmp_path, "app")
    with old.open() as repo, pytest.raises((InvalidNameError, StreamNotFoundError)):
        open_image(repo, name)
