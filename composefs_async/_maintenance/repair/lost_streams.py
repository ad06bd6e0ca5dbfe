"""Streams that references mean and whose names are gone, found among the objects by the digest in the name.

A name like ``oci-manifest-sha256:…`` says what the content of the stream hashes to; nothing else is believed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress

from ..._repo import streams
from ..._repo.state import RepoState
from ..._sys.beneath import IN_THE_WAY
from ...digest import ObjectId
from ...errors import ComposefsError
from ...splitstream import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from ...splitstream.format import HEADER_SIZE, MAGIC
from .damaged_graph import Damage
from .stream_names import NAME, content_digest

__all__ = ["find"]

_TYPES = {"config": OCI_CONFIG, "layer": OCI_LAYER, "manifest": OCI_MANIFEST}
_SHARD = re.compile(r"[0-9a-f]{2}")


def find(state: RepoState, lost: Collection[str], damage: Damage) -> dict[str, ObjectId]:
    """The streams of those *lost* names that are among the objects.  Blocks for a look into each object.

    Several can have the same content: the one that reaches most without damage is taken.
    """
    wanted = {name: match for name in lost if (match := NAME.fullmatch(name))}
    if not wanted:
        return {}
    found: dict[str, list[ObjectId]] = {}
    types = {_TYPES[match[1]] for match in wanted.values()}
    for object_id in _unnamed_streams(state, damage):
        for name in _names_of(state, object_id, wanted, types):
            found.setdefault(name, []).append(object_id)
    return {name: max(ids, key=lambda each: _worth(damage, each)) for name, ids in found.items()}


def _worth(damage: Damage, object_id: ObjectId) -> tuple[bool, int, bytes]:
    damage.read([object_id])
    return not damage.hurts(object_id), len(damage.reach(object_id)), object_id


def _names_of(
    state: RepoState, object_id: ObjectId, wanted: dict[str, re.Match[str]], types: Collection[int]
) -> Iterator[str]:
    with suppress(ComposefsError, OSError):
        with streams.open_stream(state, "", object_id) as reader:
            content_type = reader.content_type
        if content_type in types:
            digests: dict[str, str] = {}
            for name, match in wanted.items():
                if _TYPES[match[1]] == content_type:
                    if match[2] not in digests:
                        digests[match[2]] = content_digest(state, object_id, match[2])
                    if digests[match[2]] == match[3]:
                        yield name


def _unnamed_streams(state: RepoState, damage: Damage) -> Iterator[ObjectId]:
    """Objects that begin like a stream, have no name, and are not known to be corrupt."""
    named = set(damage.roots.links["streams"].values())
    for shard in _listing(state, "."):
        if _SHARD.fullmatch(shard):
            for name in _listing(state, shard):
                with suppress(ComposefsError):
                    object_id = ObjectId.from_path(f"{shard}/{name}").require(state.algorithm)
                    if (
                        object_id not in named
                        and object_id not in damage.corrupt
                        and _begins_like_one(state, object_id)
                    ):
                        yield object_id


def _listing(state: RepoState, directory: str) -> list[str]:
    try:
        return state.list_objects(directory)
    except OSError as error:
        if error.errno not in (*IN_THE_WAY, errno.ENOENT):
            raise
        return []


def _begins_like_one(state: RepoState, object_id: ObjectId) -> bool:
    with suppress(OSError), open(state.open_object_file(object_id.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        start = file.read(HEADER_SIZE)
        return start.startswith(MAGIC) or start[18 : 18 + len(MAGIC)] == MAGIC
    return False
