"""Files of an image, read out of a repository without a mount.

Owns the way from a path to content, through symbolic links inside the image.  Does not own the tree (`erofs_images`)
nor the verification of objects, which the repository does on every read.
"""

from __future__ import annotations

from .._aio.hops import hop
from .._aio.operations import async_operation, operation
from ..digest import ObjectId
from ..errors import NotFoundError, OciError
from ..repository import Repository
from ..tree import Directory, ExternalFile, InlineFile, Inode, Symlink
from .catalogue import open_image
from .erofs_images import image_tree

__all__ = ["content_of", "find_following", "read_file", "read_file_async"]

_MAX_LINKS = 40
"""Symbolic links followed on the way to one file, as Linux has it."""


@operation
def read_file(repo: Repository, image: str, path: str | bytes, *, max_size: int | None = None) -> bytes:
    """Return the content of the regular file at *path* in an image; every object is compared with its digest.

    Symbolic links are followed inside the image.  The layers are read for it, so that several files are better taken
    from one `image_tree`.

    Args:
        image: a tag, a manifest digest, or a unique prefix of one, as for `catalogue.open_image`.
        max_size: refuse larger files, in bytes.

    Raises:
        StreamNotFoundError: there is no such image.
        NotFoundError: there is no such file in it.
        OciError: it is no regular file, or larger than *max_size*.
        DigestMismatchError, ObjectNotFoundError, SplitstreamError, TarError
    """
    tree = image_tree(repo, open_image(repo, image))
    name = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    return content_of(repo, find_following(tree, name), name, max_size)


@async_operation
async def read_file_async(repo: Repository, image: str, path: str | bytes, *, max_size: int | None = None) -> bytes:
    """Return the content of a file of an image like `read_file`, in a worker thread."""
    return await hop(read_file, repo, image, path, max_size=max_size)


def content_of(repo: Repository, found: Inode, path: bytes, max_size: int | None = None) -> bytes:
    """The verified content of the regular file *found*, which *path* leads to.

    Raises:
        OciError: it is no regular file, or larger than *max_size* bytes.
    """
    if isinstance(found, InlineFile):
        size = len(found.content)
    elif isinstance(found, ExternalFile):
        size = found.size
    else:
        raise OciError(_shown(path), "not a regular file")
    if max_size is not None and size > max_size:
        raise OciError(_shown(path), f"{size} bytes are more than {max_size}")
    if isinstance(found, InlineFile):
        return found.content
    if found.digest is None:
        if found.payload:
            raise OciError(_shown(path), "nothing verifies its content")
        return bytes(size)
    return repo.read_object(ObjectId(found.digest), max_size=size)


def find_following(root: Directory, path: bytes) -> Inode:
    """The inode at *path*, through symbolic links; ``..`` stays inside the tree.

    Raises:
        NotFoundError: there is none, or the links lead around in circles.
    """
    trail: list[Inode] = [root]
    pending, links = path.split(b"/")[::-1], 0
    while pending:
        name = pending.pop()
        here = trail[-1]
        if name in (b"", b"."):
            continue
        if name == b"..":
            del trail[max(1, len(trail) - 1) :]
            continue
        child = here.children.get(name) if isinstance(here, Directory) else None
        if child is None:
            raise NotFoundError(_shown(path), "file")
        if not isinstance(child, Symlink):
            trail.append(child)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise NotFoundError(_shown(path), "file", "too many symbolic links")
        if child.target.startswith(b"/"):
            del trail[1:]
        pending += child.target.split(b"/")[::-1]
    return trail[-1]


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
