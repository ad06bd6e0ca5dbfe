"""A store that is open: its place, its description, and what has been asked of it.

Owns running requests in worker threads, counting them, and reading references, manifests and tables.  Does not own
publishing, fetching or collecting.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from anyio import AsyncContextManagerMixin, CapacityLimiter, create_task_group

from .._aio.groups import single_error
from .._aio.hops import hop
from .._aio.to_thread import in_thread
from ..digest import Algorithm
from ..errors import (
    BlobMissingError,
    ImageNotFoundError,
    InvalidNameError,
    StoreError,
    StoreFormatError,
)
from .backends.base import BlobStore, PreconditionError
from .commit import read_ref
from .condemned import DEFAULT_GRACE, DESCRIPTION_KEY, DESCRIPTION_LIMIT, LAYOUT, LAYOUT_KEY, Description
from .documents import (
    CONFIG_LIMIT,
    MANIFEST_LIMIT,
    Config,
    Manifest,
    Ref,
    blob_key,
    check_digest,
    name_of_ref,
    parse_config,
    parse_manifest,
    verify,
)
from .metering import Meter, Unconditional, Usage, try_conditions
from .pacing import RateLimit, retrying
from .protocol import Many, Program, Request, perform
from .table import DECODED_LIMIT, Table, decode_table

__all__ = ["Store", "StoredRef", "Usage", "run_program"]

T = TypeVar("T")

TRANSFERS = 8
"""Requests that are under way at once, unless a store asks for fewer; each costs a fetch some 7 MiB of memory."""
_TABLE_OVERHEAD = 1 << 16


@dataclass(frozen=True, slots=True)
class StoredRef:
    """A name in a store."""

    name: str
    manifest_digest: str
    created: str
    size: int
    """Bytes of its packs."""


class Store(AsyncContextManagerMixin):
    """A place where artifacts are published, and fetched from.  Close it, or use it in an ``async with`` block.

    Not bound to an event loop; several tasks may use it at once.
    """

    def __init__(
        self, backend: BlobStore, *, limit_rate: float | RateLimit | None = None, transfers: int = TRANSFERS
    ) -> None:
        rate = limit_rate if isinstance(limit_rate, RateLimit) else RateLimit(limit_rate)
        self.backend: Meter = Meter(backend, rate, transfers)
        self.transfers: int = transfers
        self._description: Description | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        try:
            yield self
        finally:
            await self.close()

    async def close(self) -> None:
        """Release connections and descriptors; a second call does nothing."""
        await hop(self.backend.close)

    @property
    def url(self) -> str:
        """Where the store is, without secrets."""
        return self.backend.url

    @property
    def usage(self) -> Usage:
        """Requests made and bytes moved through this handle so far."""
        return self.backend.usage

    # -- what it is ----------------------------------------------------------------------------

    async def describe(self, algorithm: Algorithm | None = None) -> Description:
        """What composefs-store.json says; read once.

        Args:
            algorithm: that a registry is taken to be of, which has no description.

        Raises:
            StoreError: there is no store.
            StoreFormatError, UnsupportedFeatureError
        """
        if self._description is None and (made := self.backend.made_description(algorithm)) is not None:
            return made
        if self._description is None:
            stored = await hop(self.backend.read, DESCRIPTION_KEY, DESCRIPTION_LIMIT)
            if stored is None:
                raise StoreError(self.url, f"there is no store: {DESCRIPTION_KEY} is missing; 'store init' makes one")
            self._description = Description.parse(stored.data, self.url)
        return self._description

    async def init(
        self,
        *,
        algorithm: Algorithm = Algorithm.SHA512,
        grace: int = DEFAULT_GRACE,
        single_writer: bool = False,
    ) -> tuple[Description, bool]:
        """Make the store, unless there is one; the flag tells whether it is new.

        That writes can have conditions is tried once, in a key of its own.  A trial shows that a store has the
        feature, not that it is atomic.

        Args:
            grace: seconds for which garbage stays condemned before it is deleted.
            single_writer: do without conditional writes; the caller promises that one process writes at a time.

        Raises:
            ConditionalWritesError: the store accepts a write whose condition is not met, or refuses conditions.
            StoreError: there is a store of another algorithm.
        """
        return await hop(partial(self._init, Description.new(algorithm, grace, single_writer=single_writer)))

    def _init(self, description: Description) -> tuple[Description, bool]:
        stored = self.backend.read(DESCRIPTION_KEY, DESCRIPTION_LIMIT)
        created = stored is None
        if stored is None:
            if description.cas == "conditional":
                try_conditions(self.backend)
            self.backend.put(LAYOUT_KEY, LAYOUT)
            try:
                if description.cas == "conditional":
                    self.backend.swap(DESCRIPTION_KEY, description.encode(), None)
                else:
                    self.backend.put(DESCRIPTION_KEY, description.encode())
            except PreconditionError:
                created = False
            stored = self.backend.read(DESCRIPTION_KEY, DESCRIPTION_LIMIT)
        found = Description.parse(stored.data if stored else b"", self.url)
        if found.algorithm is not description.algorithm:
            raise StoreError(self.url, f"it is a store of {found.algorithm.text}, not {description.algorithm.text}")
        self._description = found
        return found, created

    # -- requests ------------------------------------------------------------------------------

    def writer(self) -> BlobStore:
        """The backend for conditional writes, as the store's description wants them."""
        single_writer = self._description is not None and self._description.cas == "none"
        return Unconditional(self.backend) if single_writer else self.backend

    # -- reading -------------------------------------------------------------------------------

    async def refs(self) -> AsyncIterator[StoredRef]:
        """All names, sorted, with the manifests that they mean."""
        for info in await hop(lambda: [*self.backend.list("refs/")]):
            name = name_of_ref(info.key)
            ref = await self.ref(name)
            if ref is not None:
                manifest = await self.manifest(ref)
                size = sum(blob.size for blob in manifest.blobs)
                yield StoredRef(name, ref.digest, ref.created, size)

    async def ref(self, name: str) -> Ref | None:
        """What *name* means; None if it is absent or has been removed.

        Raises:
            StoreFormatError, DigestMismatchError, InvalidNameError
        """
        found, _ = await run_program(self, read_ref(name, self.url))
        return None if found is None or found.deleted else found

    async def resolve(self, name: str) -> Manifest:
        """The manifest of *name*, which is ``NAME``, ``NAME@sha256:…`` or ``@sha256:…``.

        Raises:
            ImageNotFoundError: there is no such name.
            InvalidNameError, StoreFormatError, DigestMismatchError, BlobMissingError
        """
        before, at, digest = name.rpartition("@sha256:")
        if at:
            try:
                check_digest(f"sha256:{digest}")
            except ValueError:
                raise InvalidNameError(name, "what follows '@' is no sha256 digest") from None
            return await hop(self.read_manifest, f"sha256:{digest}")
        ref = await self.ref(name or before)
        if ref is None:
            raise ImageNotFoundError(name, "name", f"{self.url} has none")
        return await self.manifest(ref)

    async def manifest(self, ref: Ref) -> Manifest:
        """The manifest that a reference means."""
        if ref.manifest is not None:
            return parse_manifest(ref.manifest, ref.digest)
        return await hop(self.read_manifest, ref.digest)

    def read_manifest(self, digest: str) -> Manifest:
        """The manifest with that digest.  Blocks."""
        return parse_manifest(self.read_blob("manifest", digest, None, MANIFEST_LIMIT), digest)

    def read_config(self, manifest: Manifest) -> Config:
        """The config of *manifest*, mostly without a request.  Blocks."""
        descriptor = manifest.config
        raw = descriptor.data
        if raw is None:
            raw = self.read_blob("config", descriptor.digest, descriptor.size, CONFIG_LIMIT)
        config = parse_config(raw, descriptor.digest)
        if config.kind != manifest.kind:
            raise StoreFormatError(f"manifest {manifest.digest}", f"its config is of the kind {config.kind}")
        return config

    def read_table(self, manifest: Manifest, config: Config, limit: int = DECODED_LIMIT) -> Table:
        """The table of *manifest*.  Blocks."""
        raw = self.read_table_blob(manifest, limit)
        return self.parse_table(raw, manifest, config, limit)

    def read_table_blob(self, manifest: Manifest, limit: int = DECODED_LIMIT) -> bytes:
        """The bytes of the table of *manifest*, whose digest has been compared.  Blocks."""
        descriptor = manifest.table
        return self.read_blob("table", descriptor.digest, descriptor.size, limit + _TABLE_OVERHEAD)

    def parse_table(self, raw: bytes, manifest: Manifest, config: Config, limit: int = DECODED_LIMIT) -> Table:
        """Check the bytes of a table."""
        sizes = [blob.size for blob in manifest.blobs]
        name = f"table {manifest.table.digest}"
        return decode_table(raw, name, algorithm=config.algorithm, blob_sizes=sizes, limit=limit)

    def read_blob(self, what: str, digest: str, size: int | None, limit: int) -> bytes:
        """A small blob, whose digest has been compared.  Blocks.

        Raises:
            BlobMissingError
            StoreFormatError: it is too large.
            DigestMismatchError
        """
        if size is not None and size > limit:
            raise StoreFormatError(f"{what} {digest}", f"it has {size} bytes, more than the limit of {limit}")
        most = limit if size is None else size

        def read() -> bytes:
            content = bytearray()
            for piece in self.backend.get(blob_key(digest)):
                content += piece
                if len(content) > most:
                    raise StoreFormatError(f"{what} {digest}", f"it has more than {most} bytes")
            return bytes(content)

        try:
            return verify(what, retrying(read), digest)
        except BlobMissingError:
            raise BlobMissingError(self.url, f"{what} {digest}") from None


async def run_program(store: Store, program: Program[T]) -> T:
    """Run a program of requests to its end, those that need no order at once."""
    answer: Any = None
    backend = store.writer()
    try:
        while True:
            request = program.send(answer)
            answer = await _answer(store, backend, request)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        program.close()


async def _answer(store: Store, backend: BlobStore, request: Request) -> object:
    if not isinstance(request, Many):
        return await hop(perform, backend, request)
    answers: list[object] = [None] * len(request.requests)
    workers = min(store.transfers, len(answers))
    limiter = CapacityLimiter(max(workers, 1))

    def some(number: int) -> None:
        for at in range(number, len(answers), workers):
            answers[at] = perform(backend, request.requests[at])

    with single_error():
        async with create_task_group() as tasks:
            for number in range(workers):
                tasks.start_soon(partial(in_thread, partial(some, number), limiter))
    return answers
