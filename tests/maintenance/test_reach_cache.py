"""What is remembered of streams and images: it saves reading them, and is never believed when it is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from composefs_async._maintenance import reachability
from composefs_async._maintenance.reach_cache import ReachCache
from composefs_async._maintenance.reachability import Node
from composefs_async.digest import ObjectId
from composefs_async.repository import Repository, state_of

from ..maintenance.garbage import image, stream


@pytest.fixture
def nodes(empty: Repository) -> dict[ObjectId, Node]:
    """Of a repository that has been walked and remembered."""
    layer = stream(empty, "layer", ["a", "b"])
    picture = image(empty, ["c"])
    manifest = stream(empty, "manifest", named={"layer": layer, "composefs.image": picture}, reference="r")
    return walked(empty, [manifest])


def walked(repo: Repository, ids: list[ObjectId]) -> dict[ObjectId, Node]:
    with ReachCache.open(state_of(repo)) as cache:
        reached = reachability.walk(state_of(repo), ids, cache)
        cache.save(state_of(repo))
    return reached.nodes


def remembered(repo: Repository, ids: list[ObjectId]) -> list[Node | None]:
    with ReachCache.open(state_of(repo)) as cache:
        return [cache.get(object_id) for object_id in ids]


def file_of(repo: Repository) -> Path:
    return Path(repo.path, ".composefs-async/reach")


def test_what_was_read_once_is_not_read_again(empty: Repository, nodes: dict[ObjectId, Node]) -> None:
    for object_id in nodes:
        Path(empty.path, "objects", object_id.path).unlink()
    assert walked(empty, list(nodes)) == nodes


def test_an_unchanged_file_is_not_written_again(empty: Repository, nodes: dict[ObjectId, Node]) -> None:
    before = file_of(empty).stat()
    assert walked(empty, list(nodes)) == nodes
    assert file_of(empty).stat().st_ino == before.st_ino


def test_what_is_no_longer_reached_is_forgotten(empty: Repository, nodes: dict[ObjectId, Node]) -> None:
    manifest, layer, picture = nodes
    assert walked(empty, [layer]) == {layer: nodes[layer]}
    assert remembered(empty, [manifest, layer, picture]) == [None, nodes[layer], None]


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_never_believed(empty: Repository, nodes: dict[ObjectId, Node], damage: str) -> None:
    path = file_of(empty)
    content = path.read_bytes()
    lost = 0
    for at in range(0, len(content), 3):
        path.write_bytes(
            content[:at] if damage == "cut" else content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        )
        for object_id, found in zip(nodes, remembered(empty, list(nodes)), strict=True):
            assert found in (None, nodes[object_id])
            lost += found is None
    assert lost > len(content) // 3
    assert walked(empty, list(nodes)) == nodes
    assert remembered(empty, list(nodes)) == list(nodes.values())


def test_no_file_but_something_else_is_no_error(empty: Repository, nodes: dict[ObjectId, Node]) -> None:
    file_of(empty).unlink()
    os.mkfifo(file_of(empty))
    assert remembered(empty, list(nodes)) == [None] * 3
    assert walked(empty, list(nodes)) == nodes
    assert file_of(empty).is_file()


def test_a_file_of_the_other_algorithm_knows_nothing(empty: Repository, nodes: dict[ObjectId, Node]) -> None:
    other = ObjectId(bytes(96 - empty.algorithm.digest_size))
    assert remembered(empty, [other]) == [None]
