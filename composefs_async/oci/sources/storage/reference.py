"""References to images in containers-storage: ``[[driver@]root[+run][:options]]NAME``; no I/O.

The grammar is that of containers/image (storage/storage_transport.go): inside the brackets the driver ends at the
first ``@``, the options begin at the first ``:`` after it, and the directory for running containers at the first
``+``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ....digest import check_content_digest
from ....errors import FormatError, InvalidNameError
from ..familiar import normalized_name

__all__ = ["ImageName", "StorageReference", "parse_reference"]

_HEX = re.compile(r"[0-9a-f]{3,64}")
_BRACKETS = re.compile(r"\[(?P<place>[^\]]*)\](?P<image>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ImageName:
    """Which image of a store."""

    text: str
    """As it was written."""
    name: str | None = None
    """Whole, with registry and tag; with a digest the tag may be missing."""
    digest: str | None = None
    """Digest of a manifest."""
    id: str | None = None
    """Id of the image, or the beginning of one."""


@dataclass(frozen=True, slots=True)
class StorageReference:
    """An image, and where its store is, as far as the reference says."""

    reference: str
    image: ImageName
    root: str | None = None
    driver: str | None = None
    options: tuple[str, ...] = ()


def parse_reference(reference: str) -> StorageReference:
    """Parse ``containers-storage:[[driver@]root[+run][:options]]NAME[:TAG][@DIGEST][@ID]``.

    Raises:
        InvalidNameError: *reference* is not spelled so.
    """
    rest = reference.partition(":")[2]
    if not rest.startswith("["):
        return StorageReference(reference, _image(reference, rest))
    found = _BRACKETS.fullmatch(rest)
    if found is None:
        raise InvalidNameError(reference, "the bracket around the place of the store is not closed")
    driver, at, place = found["place"].partition("@") if "@" in found["place"] else ("", "", found["place"])
    if at and not driver:
        raise InvalidNameError(reference, "the driver before '@' is missing")
    place, _, options = place.partition(":")
    root, plus, run = place.partition("+")
    if not root.startswith("/") or (plus and not run.startswith("/")):
        raise InvalidNameError(reference, "the directories of a store are given as absolute paths")
    words = tuple(filter(None, options.split(",")))
    return StorageReference(reference, _image(reference, found["image"]), root, driver or None, words)


def _image(reference: str, text: str) -> ImageName:
    if not text:
        raise InvalidNameError(reference, "the image is missing")
    rest, at, last = text.rpartition("@")
    digest = image_id = None
    if at and _is_digest(last):
        digest = last
    elif at:
        image_id = last
        if _HEX.fullmatch(last) is None:
            raise InvalidNameError(reference, f"{last!r} is neither a digest nor the id of an image")
        rest, at, last = rest.rpartition("@")
        if at and _is_digest(last):
            digest = last
        elif at:
            raise InvalidNameError(reference, f"{last!r} is no digest")
        else:
            rest = last
    else:
        rest = text
    if not rest:
        if image_id is None:
            raise InvalidNameError(reference, "the name before the digest is missing")
        return ImageName(text, None, digest, image_id)
    name = normalized_name(rest)
    if name is None and _HEX.fullmatch(rest) is None:
        raise InvalidNameError(reference, f"{rest!r} is no name of an image")
    return ImageName(text, name, digest, image_id)


def _is_digest(text: str) -> bool:
    try:
        return bool(check_content_digest(text)) and ":" in text
    except FormatError:
        return False
