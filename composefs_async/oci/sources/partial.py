"""A layer in a registry of which only those files are fetched that are not at hand.

Owns the decision, and the way of the parts from the network to the tar.  Does not own the format (`chunked`), nor what
is at hand (`oci.contents`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import NoReturn

from anyio import CancelScope

from ..._aio.to_thread import in_thread
from ...digest import ObjectId
from ...errors import ComposefsError, DigestMismatchError, FormatError, IntegrityError
from ...progress import LayerPartial, Message
from ...registry.download import Download
from ...registry.session import Session
from ..limits import Limits
from .base import LocalBlob
from .chunked.assembly import Contents, Layer, Need, assemble, missing_ranges, open_layer
from .chunked.toc import Positions

__all__ = ["Partial"]

_WORTH_IT = 0.7
"""If more than this part of a blob is missing, all of it is fetched."""


class Partial:
    """One layer on its way."""

    def __init__(
        self, layer: Layer, local: Mapping[bytes, ObjectId], download: Download, contents: Contents, name: str
    ) -> None:
        self.layer = layer
        self._local, self._download, self._contents, self._name = local, download, contents, name

    @classmethod
    async def begin(
        cls,
        session: Session,
        name: str,
        blob: LocalBlob,
        positions: Positions,
        download: Download,
        contents: Contents,
        limits: Limits,
    ) -> Partial | None:
        """Fetch the table of contents, and have what is missing brought; None if all of the blob is brought.

        Raises:
            ComposefsError, OSError: the download has failed.
        """
        if await in_thread(contents.is_empty):
            return None
        download.want([(positions.start, positions.end)])
        await download.bring(positions.start, positions.end)
        found = None
        if not download.gives_parts:
            session.report(Message(f"layer {name}: the registry gives no parts of blobs; the whole layer is fetched"))
        else:
            try:
                layer = await in_thread(lambda: open_layer(blob, positions, f"layer {name}", limits))
                local = await in_thread(lambda: contents.find(layer.toc.files))
            except (FormatError, IntegrityError) as error:
                session.report(Message(f"{error}; the whole layer is fetched"))
            else:
                ranges = missing_ranges(layer.toc.files, local)
                missing = sum(end - start for start, end in ranges) + positions.end - positions.start
                if local and missing <= _WORTH_IT * blob.size:
                    session.report(LayerPartial(name, missing, blob.size))
                    download.want([(positions.start, positions.end), *ranges])
                    found = cls(layer, local, download, contents, name)
        if found is None:
            download.want([(0, blob.size)])
        return found

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[AsyncIterator[bytes]]:
        """The tar in pieces, in the block."""
        async with aclosing(self._pieces()) as pieces:
            yield pieces

    async def _pieces(self) -> AsyncGenerator[bytes]:
        made = assemble(self.layer, self._local, self._contents.open)
        try:
            piece = await in_thread(partial(_next, made, None))
            while piece is not None:
                if isinstance(piece, Need):
                    ready = await self._download.bring(piece.start, piece.end)
                    piece = await in_thread(partial(_next, made, ready))
                else:
                    yield piece
                    piece = await in_thread(partial(_next, made, None))
        finally:
            with CancelScope(shield=True):
                await in_thread(made.close)

    async def blame(self, error: Exception, host: str) -> NoReturn:
        """Raise what lets the whole layer be fetched, since it could not be put together.

        Raises:
            DigestMismatchError: with the host.
        """
        used = [file.digest for file in self.layer.toc.files if file.digest in self._local]
        with suppress(ComposefsError, OSError):  # what is wrong there is found again
            await in_thread(lambda: self._contents.forget(used))
        expected, found = self._name, "something else"
        note = str(error)
        if isinstance(error, DigestMismatchError) and error.expected == self._name:
            found, note = error.found, "a table of contents is wrong, or a file in the repository"
        raise DigestMismatchError(f"layer {self._name}, put together of parts", expected, found, host, note) from error


def _next(made: Generator[bytes | Need, int | None], ready: int | None) -> bytes | Need | None:
    try:
        return next(made) if ready is None else made.send(ready)
    except StopIteration:
        return None
