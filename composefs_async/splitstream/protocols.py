"""What splitstreams need from the world: somewhere to put objects, something to read files from.

No code that does either, except for files that are in memory already.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from ..digest import Algorithm
from ..results import StoredObject

__all__ = ["Buffer", "BytesSource", "ObjectHandle", "ObjectSink", "PositionalSource"]

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes; a memoryview must have items of one byte."""


class ObjectSink(Protocol):
    """Keeps objects, as a repository does.  A dict of contents is enough for a test."""

    @property
    def algorithm(self) -> Algorithm:
        """Algorithm of the ids that the sink returns."""
        ...

    def ensure_object(self, data: Buffer, /) -> StoredObject:
        """Store *data* unless it is present; it may be changed by its owner after the return."""
        ...


class ObjectHandle(Protocol):
    """An object that is being stored elsewhere.  Futures of `concurrent.futures` and asyncio have this form."""

    def done(self) -> bool:
        """Whether `result` would answer or raise at once."""
        ...

    def result(self) -> StoredObject:
        """What was stored, or the exception that prevented it.

        Called early it may block or raise, as the kind of handle has it.
        """
        ...


class PositionalSource(Protocol):
    """A file of known size that can be read at any offset."""

    @property
    def size(self) -> int:
        """How many bytes there are.  No range beyond that is ever asked for."""
        ...

    def pread(self, size: int, offset: int, /) -> bytes:
        """Read at most *size* bytes from *offset*; fewer are asked for again, none means the file has shrunk."""
        ...


class BytesSource:
    """A file that is in memory already.  Keeps a reference to *data*, which must not change meanwhile."""

    __slots__ = ("_view",)

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._view.nbytes

    def pread(self, size: int, offset: int, /) -> bytes:
        """Return at most *size* bytes from *offset* on; fewer only at the end."""
        return bytes(self._view[offset : offset + size])
