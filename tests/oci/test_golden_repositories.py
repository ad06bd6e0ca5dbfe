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
from composefs_async.oci.pull import pull
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
    repo, _ = Repository.init(repository, algorithm=algorithm, erofs_version=version, insecure=True)
    async with repo:
        for name in order:
            case, _, tag = name.partition(":")
            await pull(repo, f"oci:{VECTORS}/layouts/{case}:{tag}", tag=name)


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
