"""The repositories that cfsctl made: ours must be equal, and theirs must be read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async.digest import Algorithm
from composefs_async.errors import ErofsError
from composefs_async.naming import config_stream, layer_stream, manifest_stream, tag_reference
from composefs_async.oci.catalogue import open_image
from composefs_async.oci.importing.pull import pull
from composefs_async.repository import Repository

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

VECTORS = Path(__file__).parent.parent / "vectors"
FLAVOURS = {
    "g4-sha512-v1": (Algorithm.SHA512, 1),
    "g4-sha256-v1": (Algorithm.SHA256, 1),
    "g4-sha256-v2": (Algorithm.SHA256, 2),
    "g3-sha512": (Algorithm.SHA512, None),
    "g3-sha256": (Algorithm.SHA256, None),
}

pytestmark = pytest.mark.anyio
flavours = pytest.mark.parametrize("flavour", FLAVOURS)


def facts(flavour: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((VECTORS / "repository" / f"{flavour}.json").read_text())
    return document


@pytest.fixture
def golden(tmp_path: Path) -> Callable[[str], Path]:
    def unpack(flavour: str) -> Path:
        content = zstd.decompress((VECTORS / "repository" / f"{flavour}.tar.zst").read_bytes())
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(tmp_path / "golden", filter="fully_trusted")
        (meta,) = (tmp_path / "golden").rglob("meta.json")
        return meta.parent

    return unpack


def entries(repository: Path) -> dict[str, str]:
    """In the form of the facts: size and sha256 of each file, target of each link."""
    found = {}
    for path in sorted(repository.rglob("*")):
        name = str(path.relative_to(repository))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            content = path.read_bytes()
            found[name] = f"{len(content)} sha256:{hashlib.sha256(content).hexdigest()}"
    return found


async def pull_all(repository: Path, order: list[str], flavour: str) -> None:
    algorithm, version = FLAVOURS[flavour]
    repo = Repository.init(repository, algorithm=algorithm, erofs_version=version, insecure=True)
    async with repo:
        for name in order:
            case, _, tag = name.partition(":")
            # A name of 304 bytes is in it: cfsctl makes an image that no kernel reads, we make none.
            await pull(repo, f"oci:{VECTORS}/layouts/{case}:{tag}", tag=name, make_images=case != "pax")


def with_images(known: dict[str, Any]) -> list[str]:
    """What both programs take and make an image of, in the order in which it was pulled."""
    return [name for name in known["order"] if name not in known["refused"] and name != "pax:latest"]


def reachable(repo: Repository, tags: list[str]) -> set[str]:
    """All files and links that *tags* lead to; cfsctl also leaves the first forms of config and manifest."""
    found = {"meta.json"}
    for tag in tags:
        image = open_image(repo, tag)
        found.add(f"streams/refs/{tag_reference(tag)}")
        named = [(manifest_stream(image.manifest.digest), image.manifest_id)]
        named.append((config_stream(image.manifest.config.digest), image.config_id))
        named += [(layer_stream(name), layer) for name, layer in image.layers.items()]
        for name, stream_id in named:
            with repo.open_stream(name, stream_id) as reader:
                found |= {f"streams/{name}", *(f"objects/{each.path}" for each in [stream_id, *reader.object_refs])}
        for image_id in image.images.values():
            assert repo.has_image(image_id.hex()) == image_id
            found |= {f"images/{image_id}", f"objects/{image_id.path}"}
            found |= {f"objects/{each.path}" for each in repo.objects_for_image(image_id.hex())}
    return found


@pytest.mark.parametrize("flavour", [name for name in FLAVOURS if name.startswith("g4")])
async def test_repository_equals_theirs_entry_for_entry(
    flavour: str, golden: Callable[[str], Path], tmp_path: Path
) -> None:
    known = facts(flavour)
    tags = with_images(known)
    await pull_all(tmp_path / "repo", tags, flavour)
    with Repository.open_path(golden(flavour)) as repo:
        wanted = reachable(repo, tags)
    ours, theirs = entries(tmp_path / "repo"), known["files"]
    varying = set(known["varies_between_runs"])
    varying |= {ours[name].removeprefix("-> ../") for name in varying & ours.keys() if name.startswith("streams/")}
    assert {name: ours[name] for name in ours.keys() - varying} == {name: theirs[name] for name in wanted - varying}
    assert len(wanted - varying) > 100


@flavours
async def test_images_have_the_ids_of_theirs(flavour: str, golden: Callable[[str], Path], tmp_path: Path) -> None:
    """Those of 2026-04 too, although its layer streams are shorter."""
    known = facts(flavour)
    await pull_all(tmp_path / "repo", with_images(known), flavour)
    with Repository.open_path(golden(flavour)) as theirs, Repository.open_path(tmp_path / "repo") as ours:
        for name in with_images(known):
            image = open_image(ours, name)
            assert (name, image.images) == (name, open_image(theirs, name).images)
            assert image.image(ours.metadata.formats.default) is not None or image.config is None


@flavours
async def test_image_that_erofs_cannot_hold_is_refused_before_it_has_a_name(flavour: str, tmp_path: Path) -> None:
    algorithm, version = FLAVOURS[flavour]
    repo = Repository.init(tmp_path / "repo", algorithm=algorithm, erofs_version=version, insecure=True)
    async with repo:
        with pytest.raises(
            ErofsError, match=r"a name that no file can have.*; without images .*it can be kept"
        ) as caught:
            await pull(repo, f"oci:{VECTORS}/layouts/pax:latest", tag="pax")
        assert caught.value.name.startswith("images of sha256:")
    assert [name for name in entries(tmp_path / "repo") if not name.startswith("objects/")] == ["meta.json"]


@flavours
async def test_pulling_the_same_images_gives_the_same_layers_and_objects(flavour: str, tmp_path: Path) -> None:
    known = facts(flavour)
    await pull_all(tmp_path / "repo", known["order"], flavour)
    ours, theirs = entries(tmp_path / "repo"), known["files"]
    # The version of 2026-04 loses the end of a tar, so those layers differ.
    whole = {name for name, layer in known["layers"].items() if layer["tar sha256"] == name.removeprefix("sha256:")}
    layers = [f"streams/oci-layer-{name}" for name in whole]
    assert {name: ours[name] for name in ["meta.json", *layers]} == {
        name: theirs[name] for name in ["meta.json", *layers]
    }
    shared = ours.keys() & theirs.keys()
    assert {name: ours[name] for name in shared if name.startswith("objects/")} == {
        name: theirs[name] for name in shared if name.startswith("objects/")
    }
    for name in layers:
        target = theirs[name].removeprefix("-> ../")
        assert ours[target] == theirs[target]


@flavours
async def test_all_images_get_a_tag_also_those_that_cfsctl_refuses(flavour: str, tmp_path: Path) -> None:
    known = facts(flavour)
    await pull_all(tmp_path / "repo", known["order"], flavour)
    with Repository.open_path(tmp_path / "repo") as repo:
        assert sorted(name for name, _ in repo.named_streams("oci")) == sorted(known["order"])


@flavours
async def test_layers_of_a_repository_of_theirs_are_reproduced(flavour: str, golden: Callable[[str], Path]) -> None:
    known = facts(flavour)
    with Repository.open_path(golden(flavour)) as repo:
        for name, layer in known["layers"].items():
            merged = hashlib.sha256()
            size = 0
            for piece in repo.merge_splitstream(f"oci-layer-{name}"):
                merged.update(piece)
                size += len(piece)
            assert (name, merged.hexdigest()) == (name, layer["tar sha256"])
            assert layer["json"] is None or size == layer["json"]["size"]


@flavours
async def test_pulling_over_a_repository_of_theirs_changes_nothing_that_is_there(
    flavour: str, golden: Callable[[str], Path]
) -> None:
    known, path = facts(flavour), golden(flavour)
    before = entries(path)
    with Repository.open_path(path) as repo:
        for name in known["order"]:
            if name in known["refused"]:
                continue
            case, _, tag = name.partition(":")
            result = await pull(repo, f"oci:{VECTORS}/layouts/{case}:{tag}", tag=name)
            assert all(layer.present for layer in result.layers)
    assert entries(path) == before
