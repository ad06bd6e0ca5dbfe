"""What each layer of an image adds to a repository, and which command made it.

Owns counting by layer.  Does not own what images and tags cost together (`composefs_async.Usage`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from .._maintenance import reachability
from .._maintenance.fsck.object_reader import sizes
from .._repo.state import RepoState
from ..digest import ObjectId
from ..naming import LAYER_STREAMS
from ..repository import Repository, state_of
from .catalogue import OciImage, open_image

__all__ = ["LayerUsage", "ListedObjects", "layer_usage", "layer_usage_async"]


@dataclass(frozen=True, slots=True)
class ListedObjects:
    """Some of the objects that a layer lists, each counted once."""

    objects: int
    size: int
    """Size of their content in bytes."""


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """One layer of an image."""

    name: str
    """The diff_id; for an artifact the layer's own digest."""
    packed_size: int
    """As it was shipped, in bytes."""
    exclusive: ListedObjects
    """Objects that no other layer of the repository lists."""
    shared: ListedObjects
    """Objects that other layers list, too."""
    created_by: str
    """The command that made it, by the config's history; empty if that does not say."""


@operation
def layer_usage(repo: Repository, name: str) -> list[LayerUsage]:
    """Count the objects of each layer of the image *name*, lowest first.  Reads the streams of all layers.

    Raises:
        ImageNotFoundError, StreamNotFoundError, ObjectNotFoundError, IntegrityError, OciError
    """
    image, state = open_image(repo, name), state_of(repo)
    with state.shared():
        listed = Counter[bytes]()
        for stream_id in {*_layers(state), *image.layers.values()}:
            listed.update(_objects(state, stream_id))
        commands = _commands(image)
        return [
            LayerUsage(layer, descriptor.size, *_split(state, image.layers[layer], listed), command)
            for layer, descriptor, command in zip(image.layer_names, image.manifest.layers, commands, strict=False)
        ]


@async_operation
async def layer_usage_async(repo: Repository, name: str) -> list[LayerUsage]:
    """Count in a worker thread, as `layer_usage` does."""
    return await hop(layer_usage, repo, name)


def _layers(state: RepoState) -> Iterator[ObjectId]:
    """The streams of all layers that have a name."""
    for name, stream_id in reachability.roots(state).links["streams"].items():
        if name.startswith(LAYER_STREAMS):
            yield stream_id


def _objects(state: RepoState, stream_id: ObjectId) -> set[bytes]:
    ids, width = reachability.read_node(state, stream_id).objects, state.algorithm.digest_size
    return {ids[at : at + width] for at in range(0, len(ids), width)}


def _split(state: RepoState, stream_id: ObjectId, listed: Counter[bytes]) -> tuple[ListedObjects, ListedObjects]:
    """What is exclusive, and what is shared."""
    found = sorted(_objects(state, stream_id))
    by_use: dict[bool, list[int]] = {False: [], True: []}
    for object_id, size in zip(found, sizes(state, b"".join(found)), strict=True):
        by_use[listed[object_id] > 1].append(max(size, 0))
    return ListedObjects(len(by_use[False]), sum(by_use[False])), ListedObjects(len(by_use[True]), sum(by_use[True]))


def _commands(image: OciImage) -> list[str]:
    """The command that made each layer; the history lists steps without one, too, and may be missing or wrong."""
    nothing = [""] * len(image.layer_names)
    if image.config is None:
        return nothing
    history: Any = json.loads(image.config_raw).get("history")
    if not isinstance(history, list):
        return nothing
    steps = [each for each in history if isinstance(each, dict) and each.get("empty_layer") is not True]
    if len(steps) != len(image.layer_names):
        return nothing
    return [made if isinstance(made := each.get("created_by"), str) else "" for each in steps]
