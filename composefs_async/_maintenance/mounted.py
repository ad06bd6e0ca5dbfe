"""Which images of a repository are mounted: they are in use, whether a reference leads to them or not.

Owns what their mounts look like in the mount table.  Does not own the table (`_sys.mount_table`).
"""

from __future__ import annotations

from .._repo import images, objects
from .._repo.state import RepoState
from .._sys.mount_table import mount_table
from ..digest import ObjectId
from ..errors import AlgorithmMismatchError, ComposefsError, FormatError

__all__ = ["mounted_images"]

_SOURCE = "composefs:"
"""What both this package and composefs-rs write before the image's id, or its name, as the source of the overlay."""


def mounted_images(state: RepoState) -> tuple[ObjectId, ...]:
    """The images whose objects are in this repository that are mounted in this mount namespace, sorted.

    Those of other namespaces (containers, services) are out of sight.  An image of the same content in another
    repository cannot be told apart, and counts.
    """
    sources = {entry.source for entry in mount_table() if entry.kind == "overlay"}
    found = (_image(state, source.removeprefix(_SOURCE)) for source in sources if source.startswith(_SOURCE))
    return tuple(sorted({each for each in found if each is not None and objects.has_object(state, each)}))


def _image(state: RepoState, name: str) -> ObjectId | None:
    try:
        return ObjectId.from_hex(name).require(state.algorithm)
    except AlgorithmMismatchError:
        return None
    except FormatError:
        pass
    try:
        return images.has_image(state, name)
    except ComposefsError:
        return None
