"""The objects that an image refers to: what garbage collection must keep and a check must find.

Owns only what is collected; all reading and checking is done by `reader_walk`.  No tree is built, so what no
reference depends upon (targets, inline content, the user's attributes) is checked less than `reader` does.
"""

from __future__ import annotations

import re
from typing import Final

from ..digest import Algorithm, ObjectId
from .format import CHUNK_BASED, DIRECTORY_TYPE
from .reader.directory import Listing
from .reader.superblock import IMAGE_LIMIT, Image
from .reader.walk import REGULAR_TYPE, ImageWalk, OpenDirectory

__all__ = ["ReferenceWalk", "image_object_ids", "possible_object_ids"]


def image_object_ids(image: Image, algorithm: Algorithm | None = None, *, limit: int = IMAGE_LIMIT) -> list[ObjectId]:
    """The objects of the files in *image*, each once, in the order of a breadth-first walk in byte order of names.

    These are the digests of verified files, and the objects that redirects lead to, which for files that are not
    verified are the only ones.  Safe for untrusted input, and takes time and memory linear in the image.

    Args:
        algorithm: of the repository; None takes that of the first reference.
        limit: in bytes; a longer image is refused.

    Raises:
        ErofsError: the image is damaged, or refers to objects by another algorithm.  Nothing is left out silently,
            because garbage collection would then delete what the image needs.
    """
    walk = ReferenceWalk(image, algorithm, limit)
    walk.run()
    return ObjectId.unpack(b"".join(walk.found), walk.nodes.algorithm) if walk.nodes.algorithm else []


def possible_object_ids(image: Image, algorithm: Algorithm) -> list[ObjectId]:
    """Everything in *image* that looks like a reference to an object, each once: all of them, and seldom more.

    For images that `image_object_ids` refuses, such as those that composefs-rs makes of names that are too long.
    Linear in the image, whatever is in it; what it takes for a reference may stand in somebody's attribute.
    """
    size = algorithm.digest_size
    # Looking ahead, because a digest may hold what looks like the beginning of another.
    head = b"metacopy" + bytes([0, size + 4, 0, algorithm.number])  # the end of the name, and struct ovl_metacopy
    metacopy = re.compile(b"(?=%b(.{%d}))" % (re.escape(head), size), re.DOTALL)
    redirect = re.compile(rb"(?=([0-9a-f]{2})/+([0-9a-f]{%d}))" % (2 * size - 2))
    found = dict.fromkeys(ObjectId(match[1]) for match in metacopy.finditer(image))
    for match in redirect.finditer(image):
        found[ObjectId(bytes.fromhex((match[1] + match[2]).decode()))] = None
    return list(found)


class ReferenceWalk(ImageWalk):
    """Collects raw digests in `found`."""

    def __init__(self, image: Image, algorithm: Algorithm | None, limit: int) -> None:
        super().__init__(image, algorithm, limit)
        self.found: dict[bytes, None] = {}
        self._types: dict[int, int] = {}

    def count(self) -> int:
        """Return how many inodes that are not directories have been seen."""
        return len(self._types)

    def visit(self, directory: OpenDirectory, listing: Listing) -> int:
        """Collect what the entries of one directory refer to; return how many subdirectories are among them."""
        types, find_plain, found, subdirectories = self._types, self.plain.find, self.found, 0
        for name, nid, file_type in zip(listing.names, listing.nids, listing.types, strict=True):
            known = types.get(nid)
            if known is not None:
                self.seen_again(nid, file_type, known)
                continue
            if file_type == DIRECTORY_TYPE:
                self.open_directory(self.nodes.header(nid), directory)
                subdirectories += 1
                continue
            types[nid] = file_type
            plain = find_plain(nid) if file_type == REGULAR_TYPE else None
            if plain is None:
                self._take_other(directory, name, nid, file_type)
                continue
            _, nlink, _, _, _, _, _, digest = plain
            found[digest] = None
            if nlink != 1:
                self.nlinks[nid] = nlink
        return subdirectories

    def _take_other(self, directory: OpenDirectory, name: bytes, nid: int, file_type: int) -> None:
        header = self.leaf_header(nid, file_type)
        if file_type != REGULAR_TYPE or header.layout != CHUNK_BASED:
            self.leaf_xattrs(header)
            if self.is_native_whiteout(header):
                self.check_stub(directory, name)
            return
        digest, payload = self.nodes.reference(header, self.nodes.xattr_set(header))
        if digest:
            self.found[digest] = None
        # overlayfs opens what the redirect says, whatever the digest is.
        match = _OBJECT_PATH.fullmatch(payload or b"")
        if match:
            other = ObjectId(bytes.fromhex((match[1] + match[2]).decode()))
            self.nodes.require(other.algorithm, header)
            self.found[other] = None


_OBJECT_PATH: Final = re.compile(rb"/*([0-9a-f]{2})/+([0-9a-f]{62}|[0-9a-f]{126})")
