"""What a repository remembers of where its images came from: a cache, which can be deleted at any time.

Owns ``.composefs-async/origins.json``: which manifest an index stood for on a platform, and which references images
were pulled by.  By the first a pull that finds everything asks one question; by the second layers can be pushed as
they were shipped.  Nothing here is believed without a digest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .._maintenance import state_dir
from .._repo.state import RepoState
from ..errors import ComposefsError
from ..repository import Repository
from .catalogue import open_image
from .documents import image_layers
from .platforms import Platform, host_platform
from .sources.base import ResolvedImage

__all__ = ["Origins", "at_hand", "read_origins", "remember"]

_FILE = "origins.json"
_LIMIT = 4 << 20
_VERSION = 1
_MOST = 2000
"""Entries of each kind that are kept, the newest."""
_MOST_REFERENCES = 8


@dataclass(slots=True)
class Origins:
    """The content of the file."""

    indexes: dict[str, str] = field(default_factory=dict[str, str])
    """From ``INDEX-DIGEST PLATFORM`` to the manifest's digest."""
    references: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """From a manifest's digest to what it was pulled by, the newest last."""


def read_origins(state: RepoState) -> Origins:
    """What is remembered; nothing if the file is not there or not understood.  Blocks."""
    content = state_dir.read(state, _FILE, _LIMIT)
    try:
        document: dict[str, Any] = json.loads(content or b"{}")
        if document.get("version") != _VERSION:
            return Origins()
        indexes = {str(key): str(value) for key, value in document["indexes"].items()}
        references = {str(key): [str(each) for each in value] for key, value in document["references"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Origins()
    return Origins(indexes, references)


def remember(
    state: RepoState, reference: str, top_digest: str, manifest_digest: str, platform: Platform | None
) -> None:
    """Note where an image came from.  Blocks; not durable.

    Args:
        top_digest: what the reference stood for: the manifest, or an index that has it.
        platform: that was asked for.
    """
    origins = read_origins(state)
    known = origins.references.pop(manifest_digest, [])
    references = [*(each for each in known if each != reference), reference][-_MOST_REFERENCES:]
    indexes = dict(origins.indexes)
    if top_digest and top_digest != manifest_digest:
        key = _key(top_digest, platform)
        if known == references and indexes.get(key) == manifest_digest:
            return
        indexes.pop(key, None)
        indexes[key] = manifest_digest
    elif known == references:
        return
    origins.references[manifest_digest] = references
    document = {
        "version": _VERSION,
        "indexes": dict(list(indexes.items())[-_MOST:]),
        "references": dict(list(origins.references.items())[-_MOST:]),
    }
    state_dir.write(state, _FILE, json.dumps(document).encode())


def at_hand(repo: Repository, state: RepoState, digest: str, platform: Platform | None) -> ResolvedImage | None:
    """The image of the manifest *digest*, or that an index of that digest stood for, if it is here.  Blocks."""
    found = read_origins(state).indexes.get(_key(digest, platform))
    if found is None and platform is not None:
        return None
    try:
        image = open_image(repo, f"@{found or digest}")
        if image.manifest_id is None:
            return None
        layers = image_layers(image.manifest, image.config)
    except ComposefsError:
        return None
    return ResolvedImage(f"@{found or digest}", image.manifest, image.config, image.config_raw, layers)


def _key(digest: str, platform: Platform | None) -> str:
    return f"{digest} {platform or host_platform()}"
