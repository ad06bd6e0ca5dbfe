"""Files of a layer that are too large to be in memory: written and hashed in pieces; blocks."""

from __future__ import annotations

import os

from ... import fsverity
from ..._repo import objects
from ..._repo.state import RepoState
from ..._sys.files import Tmpfile
from ...results import StoredObject

__all__ = ["LargeFile"]


class LargeFile:
    """A file that does not fit into a chunk: written and hashed in pieces by whoever has them.

    Args:
        size: in bytes.
        clone: has the content already, of which the pieces have been read.
    """

    def __init__(self, state: RepoState, size: int, clone: Tmpfile | None = None) -> None:
        self._state, self._size = state, size
        self.is_clone: bool = clone is not None
        self._tmpfile = clone or objects.create_object_tmpfile(state)
        self._hashes: dict[int, bytes] = {}

    def take(self, offset: int, content: memoryview) -> None:
        """Hash and write a piece, in any order."""
        self.hash(offset, content)
        self.write(offset, content)

    def hash(self, offset: int, content: memoryview) -> None:
        """Hash a piece that begins at a multiple of the piece size."""
        self._hashes[offset] = fsverity.piece_hashes(content, self._state.algorithm)

    def write(self, offset: int, content: memoryview) -> None:
        """Write a piece, unless it has been read from the file."""
        written = len(content) if self.is_clone else 0
        with objects.object_errors(self._state):
            while written < len(content):
                written += os.pwrite(self._tmpfile.fd, content[written:], offset + written)

    def finish(self) -> StoredObject:
        """Give the file its name; every piece has been hashed and written."""
        hashes = [self._hashes[offset] for offset in sorted(self._hashes)]
        object_id = fsverity.digest_from_pieces(hashes, self._size, self._state.algorithm)
        with objects.object_errors(self._state):
            return objects.publish_object_tmpfile(self._state, self._tmpfile, self._size, object_id)

    def discard(self) -> None:
        """Close the file, whether it has got a name or not."""
        self._tmpfile.discard()
