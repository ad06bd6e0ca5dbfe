"""The tree that grows during an import is the tree that its stored layers make."""

from __future__ import annotations

import gc
import io
import random
import tarfile
from pathlib import Path

import pytest

from composefs_async import fsverity
from composefs_async.digest import Algorithm, ObjectId, sha256_content_digest
from composefs_async.errors import OciError
from composefs_async.oci import import_layer
from composefs_async.oci.filesystem import TreeBuilder, XattrFilter
from composefs_async.oci.importing.incremental_tree import Follower, GrowingTree, tree_of_layers
from composefs_async.oci.tar.split import EXTERNAL, INLINE, TarSplitter
from composefs_async.repository import Repository, state_of
from composefs_async.tree.dumpwriter import write_dump

pytestmark = pytest.mark.anyio


def archive(members: dict[str, bytes | None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.mode = (tarfile.DIRTYPE, 0o755) if content is None else (tarfile.REGTYPE, 0o644)
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


LAYERS = [
    archive({"usr": None, "usr/a": b"a" * 100, "usr/b": b"small", "usr/gone": b"g" * 70}),
    archive({"usr/.wh.gone": b"", "usr/c": b"c" * 1000}),
    archive({"usr/a": b"another" * 50, "usr/d": b""}),
]
BROKEN = archive({"usr": None, "usr/a": b"a" * 100, "usr/a/below": b"b" * 100})


@pytest.fixture
async def repo(tmp_path: Path) -> Repository:
    return await Repository.init_async(tmp_path / "repo", insecure=True)


async def stored(repo: Repository, layers: list[bytes]) -> list[tuple[str, ObjectId]]:
    found = []
    for layer in layers:
        diff_id = sha256_content_digest(layer)
        result = await import_layer(repo, diff_id, one_piece(layer))
        found.append((diff_id, result.stream_id))
    return found


async def one_piece(content: bytes):  # type: ignore[no-untyped-def]
    yield content


def follow(follower: Follower, layer: bytes, seed: int) -> None:
    """Show *layer* to the follower as an import does, in chunks of random size."""
    rng, splitter, tail, at = random.Random(seed), TarSplitter(), b"", 0
    while at < len(layer) or tail:
        size = rng.randrange(1, 3000)
        view = memoryview(tail + layer[at : at + size])
        at += size
        consumed, items = splitter.split(view, final=at >= len(layer))
        tail = bytes(view[consumed:])
        follower.take(
            view[begin:end] if kind == INLINE else content_id(bytes(view[begin:end]))
            for kind, begin, end in items
            if kind in (INLINE, EXTERNAL)
        )
    follower.finish()


def content_id(content: bytes) -> ObjectId:
    return fsverity.digest(content, Algorithm.SHA512)


def dumped(tree) -> bytes:  # type: ignore[no-untyped-def]
    return b"".join(write_dump(tree))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("followed", [[], [0], [1], [0, 1, 2]], ids=str)
async def test_layers_that_are_followed_and_read_back_make_the_same_tree(
    repo: Repository, followed: list[int], seed: int
) -> None:
    with repo:
        layers = await stored(repo, LAYERS)
        tree, there = GrowingTree(state_of(repo), [name for name, _ in layers]), dict[str, ObjectId]()
        for number, (name, stream_id) in enumerate(layers):
            if number in followed:
                follower = tree.follow(name)
                assert follower is not None
                follow(follower, LAYERS[number], seed)
                tree.let_go(follower)
            there[name] = stream_id
            await tree.catch_up(there)
        expected = tree_of_layers(state_of(repo), layers, XattrFilter.ALLOWLIST_ONLY)
        assert dumped(tree.finish(layers)) == dumped(expected)


async def test_only_the_next_layer_can_be_followed_and_only_once(repo: Repository) -> None:
    with repo:
        tree = GrowingTree(state_of(repo), ["first", "second"])
        assert tree.follow("second") is None
        follower = tree.follow("first")
        assert follower is not None
        assert tree.follow("first") is None
        tree.let_go(follower)
        assert tree.follow("first") is not None


@pytest.mark.parametrize("layers", [[BROKEN], [LAYERS[0], BROKEN]], ids=["only layer", "second layer"])
async def test_a_layer_that_makes_no_sense_is_reported_at_the_end(repo: Repository, layers: list[bytes]) -> None:
    with repo:
        there = await stored(repo, layers)
        tree = GrowingTree(state_of(repo), [name for name, _ in there])
        follower = tree.follow(there[0][0])
        assert follower is not None
        follow(follower, layers[0], 0)
        tree.let_go(follower)
        await tree.catch_up(dict(there))
        with pytest.raises(OciError) as grown:
            tree.finish(there)
        with pytest.raises(OciError) as read:
            tree_of_layers(state_of(repo), there, XattrFilter.ALLOWLIST_ONLY)
        assert str(grown.value) == str(read.value)


async def test_a_layer_that_was_not_seen_to_its_end_is_read_from_the_repository(repo: Repository) -> None:
    with repo:
        layers = await stored(repo, LAYERS)
        tree = GrowingTree(state_of(repo), [name for name, _ in layers])
        follower = tree.follow(layers[0][0])
        assert follower is not None
        follower.take([memoryview(LAYERS[0][:1024])])
        tree.let_go(follower)
        await tree.catch_up(dict(layers))
        expected = tree_of_layers(state_of(repo), layers, XattrFilter.ALLOWLIST_ONLY)
        assert dumped(tree.finish(layers)) == dumped(expected)


@pytest.mark.parametrize("frozen", [False, True], ids=["nothing frozen", "frozen by the application"])
async def test_what_has_grown_is_hidden_from_the_collector_in_the_block_only(repo: Repository, frozen: bool) -> None:
    with repo:
        layers = await stored(repo, LAYERS)
        gc.unfreeze()  # what the test session has frozen
        if frozen:
            gc.freeze()
        try:
            with GrowingTree(state_of(repo), [name for name, _ in layers]) as tree:
                await tree.catch_up(dict(layers))
                assert gc.get_freeze_count() > 0
            assert (gc.get_freeze_count() > 0) is frozen
        finally:
            gc.freeze()


def test_a_follower_takes_what_stands_behind_the_archive() -> None:
    builder = TreeBuilder()
    builder.begin_layer("layer")
    follower = Follower(builder, lambda: None)
    follow(follower, LAYERS[0] + b"behind", 1)
    assert (follower.complete, follower.failed) == (True, False)
