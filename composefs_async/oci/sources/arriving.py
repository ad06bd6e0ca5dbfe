"""Bytes that come but once: of a pipe, a socket or a file, unpacked if they are packed, as async iterators.

No thread waits for a pipe, since none could be interrupted while it does.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import AsyncIterator
from typing import Self

from anyio import wait_readable

from ..._aio.hops import hop
from ..._sys import files
from ...errors import ImageNotFoundError
from ..importing.decompress import HEAD_SIZE, Compression, Decompressor, decompressor, detect
from ..limits import Limits

__all__ = ["STANDARD_INPUT", "FileBytes", "PipeBytes", "UnpackedBytes", "open_input"]

STANDARD_INPUT = "-"
"""In the place of a file's name."""
_DESCRIPTOR = re.compile(r"/dev/(?:stdin|fd/([0-9]{1,9}))")

_PIECE = 1 << 20


def open_input(file: str, reference: str, hint: str = "") -> int:
    """Open what *reference* means by *file*, or duplicate the descriptor that it names; the caller closes it.

    Args:
        hint: what else may be wrong if there is no such file.

    Raises:
        ImageNotFoundError: there is no such file, or the descriptor is not open.
    """
    if file == STANDARD_INPUT:
        return os.dup(0)
    if found := _DESCRIPTOR.fullmatch(file):  # not opened anew, which sockets do not allow
        try:
            return os.dup(int(found[1] or 0))
        except OSError:
            raise ImageNotFoundError(reference, reason=f"{file} is not open") from None
    try:
        # A pipe of a name is opened without waiting for a writer; the first read waits.
        return os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageNotFoundError(reference, reason=f"there is no file {file}{hint}") from None


class PipeBytes:
    """What comes through a pipe, a socket or a terminal.

    Args:
        fd: open for reading; stays the caller's.
        name: for messages.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name: str = name
        mode = os.fstat(fd).st_mode
        self._waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        if stat.S_ISFIFO(mode):
            files.widen_pipe(fd, _PIECE)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            with contextlib.suppress(BlockingIOError):  # somebody else reads it too
                if self._waits:
                    await wait_readable(self._fd)
                    piece = os.read(self._fd, _PIECE)
                else:
                    piece = await hop(os.read, self._fd, _PIECE)
                if not piece:
                    raise StopAsyncIteration
                return piece


class FileBytes:
    """What a regular file has, from an offset on."""

    def __init__(self, fd: int, name: str, offset: int = 0) -> None:
        self._fd, self._at = fd, offset
        self.name: str = name

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = await hop(os.pread, self._fd, _PIECE, self._at)
        if not piece:
            raise StopAsyncIteration
        self._at += len(piece)
        return piece


class UnpackedBytes:
    """What packed bytes unpack to; what is not packed passes as it is.

    Raises:
        CompressionError: when the bytes are damaged, unpack to more than the limits allow, or are packed in a way that
            is not supported.
    """

    def __init__(self, source: AsyncIterator[bytes], limits: Limits) -> None:
        self._source, self._limits = source, limits
        self._unpacking: Decompressor | None = None
        self._compression: Compression | None = None
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._compression is None:
            return await self._begin()
        if self._unpacking is None:
            return await anext(self._source)
        return await self._unpacked(self._unpacking)

    async def _begin(self) -> bytes:
        head = b""
        while len(head) < HEAD_SIZE and (piece := await anext(self._source, None)) is not None:
            head += piece
        self._compression = detect(head)
        if self._compression is Compression.NONE:
            if not head:
                raise StopAsyncIteration
            return head
        self._unpacking = decompressor(
            self._compression,
            max_size=self._limits.max_layer_size,
            max_ratio=self._limits.max_ratio,
            max_window=self._limits.max_window,
        )
        self._unpacking.feed(head)
        return await self._unpacked(self._unpacking)

    async def _unpacked(self, unpacking: Decompressor) -> bytes:
        while not self._ended:
            if piece := await hop(_take, unpacking):
                return piece
            packed = await anext(self._source, None)
            if packed is None:
                self._ended = True
                unpacking.finish()
            else:
                unpacking.feed(packed)
        raise StopAsyncIteration


def _take(unpacking: Decompressor) -> bytes:
    buffer = bytearray(_PIECE)
    return bytes(memoryview(buffer)[: unpacking.read_into(memoryview(buffer))])
