"""Layers whose content cannot be compared with their name: tars of artifacts, known by the digest of the packed blob.

composefs-rs and this package unpack such a layer and keep no more than its tar, so that nothing is left that has the
digest.  A name that an image's config lists, too, is that of a tar; it is never excused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import Any

from ..._repo import objects, streams
from ..._repo.state import RepoState
from ...errors import ComposefsError

__all__ = ["packed_layers"]

_LIMIT = 4 << 20
"""Of a document, in bytes."""
_CONTAINERS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")


def packed_layers(state: RepoState, names: Iterable[str]) -> set[str]:
    """Digests of such layers, by the documents among the streams; what is damaged excuses nothing.

    Raises:
        OSError: a document could not be read.
    """
    packed, unpacked = set[str](), set[str]()
    for name in names:
        if name.startswith(("oci-manifest-", "oci-config-")):
            with contextlib.suppress(ComposefsError, ValueError, RecursionError, TypeError, AttributeError):
                document, refs = _document(state, name)
                if "rootfs" in document:
                    unpacked.update(refs)
                elif "layers" in document and document["config"]["mediaType"] not in _CONTAINERS:
                    packed.update(each["digest"] for each in document["layers"] if ".tar" in each["mediaType"])
    return packed - unpacked


def _document(state: RepoState, name: str) -> tuple[dict[str, Any], Iterable[str]]:
    with streams.open_stream(state, name) as reader:
        raw = reader.payload(lambda found: [objects.read_object(state, found, max_size=_LIMIT)], limit=_LIMIT)
        document: dict[str, Any] = json.loads(raw)
        return document, list(reader.named_refs)
