"""Repositories shared with cfsctl: each lists, checks and reproduces what the other has stored."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.naming import IMAGE_REFS
from composefs_async.oci.importing.layers import import_layer
from composefs_async.oci.importing.pull import pull
from composefs_async.oci.importing.pull_result import PullResult
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.platforms import Platform
from composefs_async.oci.tar.writer import WrittenLayer
from composefs_async.repository import Repository

PLATFORM = Platform("linux", "amd64")
VERSIONS = ["cfsctl", "cfsctl-2026-04"]
algorithms = pytest.mark.parametrize("algorithm", Algorithm, ids=lambda algorithm: algorithm.value)


def archive(seed: int, *sizes: int) -> bytes:
    """With all parent directories: cfsctl refuses layers without."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name in ("usr", "usr/lib"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            made.addfile(directory)
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"usr/lib/s{seed}f{number}")
            info.size = size
            made.addfile(info, io.BytesIO(random.Random(100 * seed + number).randbytes(size)))
        link = tarfile.TarInfo(f"usr/link{seed}")
        link.type, link.linkname = tarfile.SYMTYPE, "lib"
        made.addfile(link)
    return out.getvalue()


class Image:
    def __init__(self, path: Path) -> None:
        writer = OciLayoutWriter(path)
        self.tars = [archive(1, 10, 64, 65, 4096, 4097), archive(2, 600_000, 3 << 20, 70)]
        self.layers: list[WrittenLayer] = [
            writer.add_layer(self.tars[0], "gzip"),
            writer.add_layer(self.tars[1], "zstd"),
        ]
        self.reference = f"oci:{path}:latest"
        self.manifest = writer.add_image(self.layers, platform=PLATFORM)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path / "image")


def camel(name: str) -> str:
    """As the older version spells it."""
    return re.sub("_(.)", lambda found: found[1].upper(), name)


def take(repo: Repository, reference: str, **options: Any) -> PullResult:
    async def run() -> PullResult:
        return await pull(repo, reference, platform=PLATFORM, **options)

    return anyio.run(run)


def init(path: Path, algorithm: Algorithm) -> Repository:
    return Repository.init(path, algorithm=algorithm, insecure=True)


def objects(path: Path) -> dict[str, bytes]:
    return {
        str(entry.relative_to(path)): entry.read_bytes() for entry in (path / "objects").rglob("*") if entry.is_file()
    }


def layer_links(path: Path) -> dict[str, str]:
    return {entry.name: str(entry.readlink()) for entry in (path / "streams").iterdir() if "layer" in entry.name}


@algorithms
@pytest.mark.parametrize("version", VERSIONS)
def test_cfsctl_lists_checks_and_reproduces_what_we_stored(
    version: str, algorithm: Algorithm, image: Image, tmp_path: Path, cfsctl: Callable[..., Any]
) -> None:
    tool = cfsctl(tmp_path / "repo", version)
    with init(tmp_path / "repo", algorithm) as repo:
        take(repo, image.reference, tag="name/of:it")
    facts = {
        "name": "name/of:it",
        "manifest_digest": image.manifest.digest,
        "is_container": True,
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "layer_count": 2,
        "referrer_count": 0,
    }
    expected = {"images": [facts]} if version == "cfsctl" else [{camel(name): fact for name, fact in facts.items()}]
    assert tool.json("oci", "images") == expected
    tool.assert_sound()
    for tar, layer in zip(image.tars, image.layers, strict=True):
        assert tool("cat", f"oci-layer-{layer.diff_id}") == tar
        assert tool("oci", "layer", layer.diff_id) == tar


@algorithms
def test_we_list_and_reproduce_what_cfsctl_stored(
    algorithm: Algorithm, image: Image, tmp_path: Path, cfsctl: Callable[..., Any]
) -> None:
    tool = cfsctl(tmp_path / "repo")
    tool.init(algorithm.value)
    tool("oci", "pull", image.reference, "name/of:it")
    with Repository.open_path(tmp_path / "repo", algorithm=algorithm) as repo:
        assert repo.named_streams("oci") == [("name%2Fof:it", f"oci-manifest-{image.manifest.digest}")]
        for tar, layer in zip(image.tars, image.layers, strict=True):
            assert b"".join(repo.merge_splitstream(f"oci-layer-{layer.diff_id}")) == tar


@algorithms
def test_layers_have_the_same_bytes_as_those_of_cfsctl(
    algorithm: Algorithm, image: Image, tmp_path: Path, cfsctl: Callable[..., Any]
) -> None:
    tool = cfsctl(tmp_path / "theirs")
    tool.init(algorithm.value)
    tool("oci", "pull", image.reference, "t")
    with init(tmp_path / "ours", algorithm) as repo:
        take(repo, image.reference, tag="t")
    ours, theirs = objects(tmp_path / "ours"), objects(tmp_path / "theirs")
    assert layer_links(tmp_path / "ours") == layer_links(tmp_path / "theirs")
    shared = ours.keys() & theirs.keys()
    assert len(shared) >= len(ours) - 2  # config and manifest have other references before there is an image
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    assert (tmp_path / "ours/meta.json").read_bytes() == (tmp_path / "theirs/meta.json").read_bytes()


@algorithms
def test_both_pull_into_one_repository_in_turn(
    algorithm: Algorithm, tmp_path: Path, cfsctl: Callable[..., Any]
) -> None:
    tool = cfsctl(tmp_path / "repo")
    tool.init(algorithm.value)
    writer = OciLayoutWriter(tmp_path / "image")
    layers = [writer.add_layer(archive(number, 70_000, 100 * number)) for number in range(5)]
    for number in range(4):
        writer.add_image(layers[number : number + 2], tag=str(number), platform=PLATFORM)
    with Repository.open_path(tmp_path / "repo") as repo:
        for number in range(4):
            reference = f"oci:{tmp_path}/image:{number}"
            if number % 2:
                tool("oci", "pull", reference, str(number))
            else:
                found = take(repo, reference, tag=str(number))
                assert [layer.present for layer in found.layers] == [number > 0, False]
        assert [name for name, _ in repo.named_streams("oci")] == ["0", "1", "2", "3"]
        assert sorted(entry["name"] for entry in tool.json("oci", "images")["images"]) == ["0", "1", "2", "3"]
        for number in range(4):  # the other way round; everything is there
            reference = f"oci:{tmp_path}/image:{number}"
            if number % 2:
                assert all(layer.present for layer in take(repo, reference, tag=str(number)).layers)
            else:
                assert b"objects  0 new" in tool("oci", "pull", reference, str(number))
    tool.assert_sound()


def documents(repo: Repository) -> list[str]:
    return sorted(name for name in os.listdir(f"{repo.path}/streams") if "config" in name or "manifest" in name)


def references(repo: Repository, name: str) -> dict[str, ObjectId]:
    with repo.open_stream(name) as reader:
        return dict(reader.named_refs)


def test_references_to_images_that_cfsctl_made_are_kept(
    image: Image, tmp_path: Path, cfsctl: Callable[..., Any]
) -> None:
    tool = cfsctl(tmp_path / "repo")
    tool.init("sha256")
    tool("oci", "pull", image.reference, "t")
    with Repository.open_path(tmp_path / "repo") as repo:
        before = {name: references(repo, name) for name in documents(repo)}
        assert any(IMAGE_REFS & refs.keys() for refs in before.values())
        take(repo, image.reference, tag="u")
        assert {name: references(repo, name) for name in documents(repo)} == before
    tool.assert_sound()


def test_failed_pull_leaves_a_repository_that_cfsctl_finds_clean(
    image: Image, tmp_path: Path, cfsctl: Callable[..., Any]
) -> None:
    tool = cfsctl(tmp_path / "repo")
    damaged = tmp_path / "image/blobs" / image.layers[1].descriptor.digest.replace(":", "/")
    damaged.write_bytes(damaged.read_bytes()[:-9] + bytes(9))
    with init(tmp_path / "repo", Algorithm.SHA256) as repo, pytest.raises(Exception, match=r"sha256|offset"):
        take(repo, image.reference)
    tool.assert_sound()
    assert tool.json("oci", "images") == {"images": []}
    tool("gc")
    assert objects(tmp_path / "repo") == {}


@algorithms
def test_imported_layer_is_that_of_cfsctl(algorithm: Algorithm, tmp_path: Path, cfsctl: Callable[..., Any]) -> None:
    tool = cfsctl(tmp_path / "repo")
    tar = archive(7, 1000, 70, 5) + b"behind the end"
    diff_id = f"sha256:{hashlib.sha256(tar).hexdigest()}"

    async def run(repo: Repository) -> None:
        async def source() -> Any:
            yield tar

        await import_layer(repo, diff_id, source(), reference="mine")

    with init(tmp_path / "repo", algorithm) as repo:
        anyio.run(run, repo)
    assert tool("oci", "layer", diff_id) == tar
    tool.assert_sound()
