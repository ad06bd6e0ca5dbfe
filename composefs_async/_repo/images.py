"""Images: EROFS files that are objects, known by their id below ``images/`` and by names below ``images/refs/``.

Owns storing, finding and naming them.  Does not own what is in an image (`composefs_async.erofs`), nor how trees come
about.  An image is asked for by its id in hexadecimal, everything else is a reference, with or without
``refs/`` before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..digest import ObjectId
from ..errors import DigestMismatchError, ErofsError, FormatError, ImageNotFoundError
from . import objects, publish
from .batch import Buffer
from .publish import Link
from .state import RepoState

__all__ = ["find_image", "has_image", "image_link", "import_image", "objects_for_image", "open_image", "write_image"]


def write_image(state: RepoState, data: Buffer, name: str | None = None) -> ObjectId:
    """Store *data*, which is taken for an image without a look, and publish it.  Durable when this returns.

    A crash leaves nothing with a name, the id alone, or both names, each complete.

    Args:
        name: below ``images/refs/``, which keeps the image when garbage is collected.

    Raises:
        ErofsError: it is longer than `IMAGE_LIMIT`, so that nobody would read it.
    """
    if name is not None:
        publish.check_reference(name)
    _check_size(memoryview(data).nbytes)
    with state.shared():  # so that no gc of this handle takes it before it has its name
        stored = objects.ensure_object(state, data)
        links = [image_link(stored.id)]
        if name is not None:
            links.append(Link.reference("images", name, stored.id.hex()))
        publish.publish(state, links)
        return stored.id


def import_image(state: RepoState, name: str | None, pieces: Iterable[Buffer]) -> ObjectId:
    """Store and publish an image from anywhere, which is read as a whole and checked before anything is stored.

    Whether the objects that it refers to are there does not matter: they may come later.

    Raises:
        ErofsError: it is no image of composefs, is damaged, refers to objects by another algorithm than that of
            the repository, or is longer than `IMAGE_LIMIT`.
    """
    if name is not None:
        publish.check_reference(name)
    state.require_writable()
    from ..erofs.references import image_object_ids

    content = _gather(pieces)
    image_object_ids(content, state.algorithm)
    return write_image(state, content, name)


def _gather(pieces: Iterable[Buffer]) -> bytes:
    """All *pieces*, or an error as soon as they are seen to be no image, or more than one."""
    from ..erofs.reader.superblock import HEADERS_SIZE, announced_size

    content, size = bytearray(), None
    for piece in pieces:
        view = memoryview(piece).cast("B")
        _check_size(len(content) + len(view))
        content += view
        if size is None and len(content) >= HEADERS_SIZE:
            size = announced_size(bytes(content[:HEADERS_SIZE]))
            _check_size(size)
        if size is not None and len(content) > size:
            raise ErofsError(f"more than the {size} bytes that its superblock announces", size)
    return bytes(content)


def _check_size(size: int) -> None:
    from ..erofs.reader.superblock import IMAGE_LIMIT

    if size > IMAGE_LIMIT:
        raise ErofsError(f"an image of {size} bytes is longer than the limit of {IMAGE_LIMIT}", IMAGE_LIMIT)


def image_link(image_id: ObjectId) -> Link:
    """What publishes the image *image_id*."""
    return Link.to_object("images", image_id.hex(), image_id)


def has_image(state: RepoState, name: str) -> ObjectId | None:
    """The id of the image *name*, if the name and the object are there, and the name leads to that image."""
    try:
        image_id = find_image(state, name)
    except (ImageNotFoundError, DigestMismatchError):
        return None
    return image_id if objects.has_object(state, image_id) else None


def open_image(state: RepoState, name: str) -> int:
    """A read-only descriptor that the caller closes, measured as `objects.open_object` does.

    Raises:
        ImageNotFoundError
        ObjectNotFoundError: the name is there, the object is not.
        DigestMismatchError: the name leads to another image, or the object is not what it should be.
        VerityMissingError: the repository is secure and the image is not protected.
    """
    return objects.open_object(state, find_image(state, name))


def objects_for_image(state: RepoState, name: str) -> list[ObjectId]:
    """The objects that the image *name* refers to, each once; reads and checks all of the image.

    Raises:
        ErofsError: it is damaged; no list is better than one that lacks objects.
        The errors of `open_image`.
    """
    from ..erofs.reader.superblock import IMAGE_LIMIT
    from ..erofs.references import image_object_ids

    content = objects.read_object(state, find_image(state, name), max_size=IMAGE_LIMIT)
    return image_object_ids(content, state.algorithm)


def find_image(state: RepoState, name: str) -> ObjectId:
    """The object that *name* leads to, over an id that is the same."""
    digits = _below_images(name)
    if digits.startswith("refs/"):
        publish.check_reference(digits)
        digits = os.path.basename(publish.target_of(state, f"images/{digits}") or "")
    try:
        expected = ObjectId.from_hex(digits)
    except FormatError:
        raise ImageNotFoundError(name) from None
    found = publish.object_of(state, "images", digits)
    if found is None:
        raise ImageNotFoundError(name)
    # The id is all that a mount or a check goes by, but a link can be made to lead anywhere.
    if found != expected:
        raise DigestMismatchError(f"image {name}", expected.hex(), found.hex())
    return found


def _below_images(name: str) -> str:
    """Where the link *name* is, relative to ``images/``."""
    if name.startswith("refs/"):
        return name
    try:
        return ObjectId.from_hex(name).hex()
    except FormatError:
        return f"refs/{name}"
