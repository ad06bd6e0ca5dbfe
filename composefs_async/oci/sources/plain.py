"""A blob in a file as what it unpacks to, where the size of that has to be known; blocks."""

from __future__ import annotations

from ..importing.decompress import HEAD_SIZE, Compression, Decompressor, decompressor, detect
from ..limits import Limits
from .base import LocalBlob
from .pieces import read_piece

__all__ = ["PlainReader", "is_packed", "unpacked_size"]

_PIECE = 512 << 10


def is_packed(blob: LocalBlob) -> bool:
    """Whether a blob's first bytes are those of a compressed one.

    Raises:
        CompressionError: it is packed in a way that is not supported.
    """
    return detect(read_piece(blob, 0, HEAD_SIZE)) is not Compression.NONE


def unpacked_size(blob: LocalBlob, limits: Limits) -> int:
    """How many bytes a compressed blob unpacks to.  Unpacks all of it.

    Raises:
        CompressionError: it is damaged, or unpacks to more than the limits allow.
    """
    reader, buffer, size = PlainReader(blob, limits), memoryview(bytearray(_PIECE)), 0
    while filled := reader.readinto(buffer):
        size += filled
    return size


class PlainReader:
    """What a compressed blob unpacks to, piece by piece."""

    def __init__(self, blob: LocalBlob, limits: Limits) -> None:
        self._blob, self._at, self._ended = blob, 0, False
        compression = detect(read_piece(blob, 0, HEAD_SIZE))
        self._unpacking: Decompressor = decompressor(
            compression, max_size=limits.max_layer_size, max_ratio=limits.max_ratio, max_window=limits.max_window
        )

    def readinto(self, view: memoryview) -> int:
        """Put the next bytes at the front of *view*; returns how many, 0 at the end."""
        while not (filled := self._unpacking.read_into(view)) and not self._ended:
            piece = read_piece(self._blob, self._at, _PIECE)
            self._at += len(piece)
            if piece:
                self._unpacking.feed(piece)
            else:
                self._unpacking.finish()
                self._ended = True
        return filled
