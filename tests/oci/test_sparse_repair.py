"""Repair of the files that sparse members mean: an image refers to them, and no stream does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async import fsverity
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.oci import Platform, image_repair, pull
from composefs_async.oci.catalogue import open_image
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.stored_layers import layer_entries
from composefs_async.oci.tar.sparse import SparseContent
from composefs_async.repository import Repository
from composefs_async.results import RepairResult

from ..maintenance.damaging import content, cut, flip, objects, remove
from .conftest import Tar

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

SIZE, AT = 70_000, 30_000
DATA = {b"0.0": b"a" * 200, b"0.1": b"b" * 200, b"1.0": b"c" * 200}
"""What the member of each form has behind its hole, by the form."""


def member(tar: Tar, form: bytes) -> bytes:
    offset, length, data = b"%d" % AT, b"%d" % len(DATA[form]), DATA[form]
    name = (b"GNU.sparse.name", b"usr/" + form)
    if form == b"0.0":
        records = [(b"path", b"usr/0.0"), (b"GNU.sparse.size", b"%d" % SIZE), (b"GNU.sparse.numblocks", b"1")]
        records += [(b"GNU.sparse.offset", offset), (b"GNU.sparse.numbytes", length)]
    elif form == b"0.1":
        records = [name, (b"GNU.sparse.size", b"%d" % SIZE), (b"GNU.sparse.map", offset + b"," + length)]
    else:
        data = tar.padded(b"1\n" + offset + b"\n" + length + b"\n") + data
        records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), name]
        records.append((b"GNU.sparse.realsize", b"%d" % SIZE))
    return tar.pax(*records) + tar.member(b"GNUSparseFile.0/s", data)


def logical(path: Path) -> dict[str, ObjectId]:
    """Paths below a repository of what the sparse members of the image mean."""
    with Repository.open_path(path) as repo:
        files = [bytes(AT) + data + bytes(SIZE - AT - len(data)) for data in DATA.values()]
        ids = [fsverity.digest(file, repo.algorithm) for file in files]
    return {f"objects/{each.path}": each for each in ids}


@pytest.fixture(params=[Algorithm.SHA256, Algorithm.SHA512], ids=["sha256", "sha512"])
async def path(request: pytest.FixtureRequest, tmp_path: Path, tar: Tar) -> Path:
    archive = tar.header(b"usr", b"5", mode=0o755) + b"".join(member(tar, form) for form in DATA) + tar.end
    writer = OciLayoutWriter(tmp_path / "layout")
    writer.add_image([writer.add_layer(archive)], tag="t", platform=Platform("linux", "amd64"))
    with Repository.init(tmp_path / "repo", algorithm=request.param, insecure=True) as repo:
        await pull(repo, f"oci:{tmp_path}/layout:t", tag="t", platform=Platform("linux", "amd64"))
    assert set(logical(tmp_path / "repo")) < set(objects(tmp_path / "repo"))
    return tmp_path / "repo"


async def mend(path: Path, *sources: Any, **options: Any) -> RepairResult:
    async with await Repository.open_path_async(path) as repo:
        return await image_repair.repair(repo, sources, **options)


async def mend_as_told(path: Path, *sources: Any) -> RepairResult:
    """A run, which has to do what the dry run before it says."""
    before = content(path)
    told = await mend(path, *sources, dry_run=True)
    assert content(path) == before
    done = await mend(path, *sources)
    for name in ("actions", "unrepaired", "problems", "affected_refs", "recovered_refs", "ok"):
        assert getattr(told, name) == getattr(done, name), name
    return done


@pytest.mark.parametrize("damage", [remove, flip, cut])
async def test_each_is_made_again_of_its_member(path: Path, damage: Callable[[Path], None]) -> None:
    whole = content(path)
    for name in logical(path):
        damage(path / name)
        result = await mend_as_told(path)
        assert (result.ok, result.unrepaired) == (True, ())
        action = "restored" if damage is remove else "replaced"
        assert [(each.path, each.action, each.source) for each in result.actions] == [(name, action, "its layers")]
        assert content(path) == whole


async def test_all_come_back_with_the_image_that_refers_to_them(path: Path) -> None:
    whole, image = content(path), _image_of(path)
    for name in (*logical(path), image):
        remove(path / name)
    result = await mend_as_told(path)
    assert (result.ok, {each.path for each in result.actions}) == (True, {*logical(path), image})
    assert content(path) == whole


@pytest.mark.parametrize("everything", [False, True], ids=["data", "all objects"])
async def test_data_that_are_lost_too_come_from_a_source_of_images(
    path: Path, tmp_path: Path, everything: bool
) -> None:
    whole = content(path)
    victims = objects(path) if everything else [*logical(path), *_data_of(path)]
    for name in victims:
        remove(path / name)
    alone = await mend(path, dry_run=True)
    assert not alone.ok
    result = await mend_as_told(path, f"oci:{tmp_path}/layout:t")
    assert (result.ok, result.unrepaired) == (True, ())
    assert content(path) == whole


async def test_data_that_are_damaged_make_no_file(path: Path) -> None:
    for name in _data_of(path):
        flip(path / name)
    for name in logical(path):
        remove(path / name)
    before = content(path)
    result = await mend_as_told(path)
    assert (result.ok, result.actions) == (False, ())
    assert content(path) == before


async def test_a_layer_that_lost_its_name_is_read_too(path: Path) -> None:
    whole = content(path)
    (name,) = (each.name for each in (path / "streams").iterdir() if each.name.startswith("oci-layer-"))
    os.unlink(path / "streams" / name)
    for victim in logical(path):
        remove(path / victim)
    result = await mend_as_told(path)
    assert result.ok
    assert content(path) == whole


def _image_of(path: Path) -> str:
    with Repository.open_path(path) as repo:
        (image_id,) = open_image(repo, "t").images.values()
        return f"objects/{image_id.path}"


def _data_of(path: Path) -> list[str]:
    """Paths of the objects that hold the data of sparse members."""
    with Repository.open_path(path) as repo:
        (layer,) = open_image(repo, "t").layers
        stored = [
            entry.content.stored for entry in layer_entries(repo, layer) if isinstance(entry.content, SparseContent)
        ]
    return [f"objects/{each.path}" for each in stored if isinstance(each, ObjectId)]
