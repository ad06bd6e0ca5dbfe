"""Names of streams that say what the content of the stream hashes to.

Owns their syntax, and comparing.  The names are those of OCI content, but nothing here knows what is in it.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress

from ..._repo import streams
from ..._repo.state import RepoState
from ...digest import ObjectId
from ...errors import ComposefsError

__all__ = ["NAME", "content_digest", "content_is", "name_of"]

NAME = re.compile(r"oci-(config|layer|manifest)-(sha256|sha384|sha512):([0-9a-f]+)")
_IMAGE_REFS = "composefs.image"


def name_of(reference: str, object_id: ObjectId) -> str | None:
    """The path of the name of a stream or image that is known as *reference* in another stream, if that can be told."""
    if reference.startswith(_IMAGE_REFS):
        return f"images/{object_id.hex()}"
    name = f"oci-{reference.replace(':', '-', 1)}" if reference.startswith("config:") else f"oci-layer-{reference}"
    return f"streams/{name}" if NAME.fullmatch(name) else None


def content_is(state: RepoState, object_id: ObjectId, name: str) -> bool:
    """Whether the content of a stream has the digest that *name* says.  Blocks for reading all of it."""
    match = NAME.fullmatch(name)
    with suppress(ComposefsError, OSError):
        return match is not None and content_digest(state, object_id, match[2]) == match[3]
    return False


def content_digest(state: RepoState, object_id: ObjectId, algorithm: str) -> str:
    """The digest of the content of a stream, in hexadecimal."""
    hasher = hashlib.new(algorithm)
    for piece in streams.merge_splitstream(state, "", object_id):
        hasher.update(piece)
    return hasher.hexdigest()
