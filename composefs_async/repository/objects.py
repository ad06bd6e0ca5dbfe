"""Storing and opening objects."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from .._aio import bulk, hops
from .._aio.handles import Handle
from .._aio.hops import hop, opening_hop, write_hop
from .._repo import batch, objects
from .._repo.batch import Buffer
from ..digest import ObjectId
from ..results import StoredObject
from .opening import OpenRepository, Path

if TYPE_CHECKING:
    from .._repo.scan import ScanOptions
    from ..tree import Directory

__all__ = ["ObjectOperations"]


class ObjectOperations(OpenRepository):
    """Objects, and directories whose files become objects."""

    def ensure_object(self, data: Buffer) -> StoredObject:
        """Store *data* unless it is there.  Blocks for one digest and one write; not durable before `sync`.

        What stands in its place with another size is corrupt: it is replaced, atomically, as the outcome tells.

        Raises:
            ReadOnlyRepositoryError
            VerityNotSupportedError: the repository is secure and the file system cannot do fs-verity.
        """
        return batch.store_all(self._state, [data])[0]

    async def ensure_object_async(self, data: Buffer) -> StoredObject:
        """Store *data* like `ensure_object`; concurrent calls share batches.  *data* must not change meanwhile."""
        return await hops.resources(self._state).coalescer.submit(batch.steady(data))

    def ensure_objects(self, contents: Iterable[Buffer]) -> list[StoredObject]:
        """Store many objects, as `ensure_object` does; returns them in the order of *contents*.

        *contents* is taken lazily, a few MiB at a time.

        Raises:
            the first error; the other objects are stored all the same.
        """
        return batch.store_all(self._state, contents)

    async def ensure_objects_async(self, contents: Iterable[Buffer] | AsyncIterable[Buffer]) -> list[StoredObject]:
        """Store many objects like `ensure_objects`, on all processors: the fastest way to store many.

        *contents* may be an asynchronous iterable; memory is a few batches, whatever their number.
        """
        return await bulk.store_all(self._state, contents)

    def create_object_tmpfile(self) -> int:
        """Create a file without a name and return its descriptor, to be filled for `finalize_object_tmpfile`.

        It is the caller's until then; closing it instead gives the file up.
        """
        return objects.create_object_tmpfile(self._state).fd

    async def create_object_tmpfile_async(self) -> int:
        """Create a file without a name like `create_object_tmpfile`, in a worker thread."""
        return await opening_hop(os.close, self.create_object_tmpfile)

    def finalize_object_tmpfile(self, tmpfile: int, size: int) -> StoredObject:
        """Turn a filled tmpfile into an object and close it.  Blocks for one read of the file.

        The object is in place when this returns but survives a power loss only after `sync`.
        An equal object already present wins, and *tmpfile* vanishes.

        Args:
            size: what was written, in bytes.

        Raises:
            IntegrityError: the file is shorter or longer.
            VerityNotSupportedError: the file system cannot do fs-verity and the repository is not insecure.
        """
        return objects.finalize_object_tmpfile(self._state, tmpfile, size)

    async def finalize_object_tmpfile_async(self, tmpfile: int, size: int) -> StoredObject:
        """Turn a filled tmpfile into an object like `finalize_object_tmpfile`, in a worker thread, and close it."""
        return await write_hop(self._state, self.finalize_object_tmpfile, tmpfile, size)

    def spawn_finalize_object_tmpfile(self, tmpfile: int, size: int) -> Handle[StoredObject]:
        """Turn a filled tmpfile into an object in the background of the repository's ``async with`` block.

        Await the handle for the result; the object is durable after `sync`.

        A failed object does not disturb the others.  Errors of handles that nobody awaited leave the block as
        an ExceptionGroup.  *tmpfile* belongs to the repository from the call on.

        Raises:
            RuntimeError: there is no such block.
        """
        if self._handles is None:
            objects.abandon_tmpfile(self._state, tmpfile)
            raise RuntimeError("spawn_finalize_object_tmpfile needs `async with repository:` around it")
        work = partial(objects.finalize_object_tmpfile, self._state, tmpfile, size)
        run: Callable[[Callable[[], StoredObject]], Awaitable[StoredObject]] = partial(write_hop, self._state)
        return self._handles.spawn(work, run, partial(objects.abandon_tmpfile, self._state, tmpfile))

    def open_object(self, object_id: ObjectId | StoredObject) -> int:
        """Open an object for reading; the caller closes the descriptor.

        In a secure repository fs-verity has been measured; in an insecure one the content is not looked at.

        Raises:
            ObjectNotFoundError
            AlgorithmMismatchError: the id is of the other algorithm.
            DigestMismatchError, VerityMissingError: what stands there is not, or not safely, that object.
        """
        return objects.open_object(self._state, _id_of(object_id))

    async def open_object_async(self, object_id: ObjectId | StoredObject) -> int:
        """Open an object like `open_object`, in a worker thread; the caller closes the descriptor."""
        return await opening_hop(os.close, self.open_object, object_id)

    def read_object(self, object_id: ObjectId | StoredObject, *, max_size: int | None = None) -> bytes:
        """Return the whole content of an object, checked against its id.

        Raises:
            ObjectNotFoundError
            IntegrityError: it is corrupt, or larger than *max_size* bytes.
        """
        return objects.read_object(self._state, _id_of(object_id), max_size=max_size)

    async def read_object_async(self, object_id: ObjectId | StoredObject, *, max_size: int | None = None) -> bytes:
        """Return the content of an object like `read_object`, in a worker thread."""
        return await hop(self.read_object, object_id, max_size=max_size)

    def scan_directory(self, path: Path, options: ScanOptions | None = None) -> Directory:
        """Read the directory *path* into a tree, and store its files of more than 64 bytes as objects.

        Not durable before `sync`.

        Raises:
            IntegrityError: something changed while it was read.
            ReadOnlyRepositoryError, VerityNotSupportedError
        """
        from .._repo import scan

        return scan.scan_and_store(self._state, path, options)

    async def scan_directory_async(self, path: Path, options: ScanOptions | None = None) -> Directory:
        """Read and store a directory like `scan_directory`, in a worker thread; cannot be cancelled before its end."""
        return await hop(self.scan_directory, path, options)


def _id_of(found: ObjectId | StoredObject) -> ObjectId:
    if isinstance(found, StoredObject):
        return found.id
    if not isinstance(found, ObjectId):
        raise TypeError(f"an ObjectId is needed, not {type(found).__name__}; ObjectId.from_hex makes one of text")
    return found
