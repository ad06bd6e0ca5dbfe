"""`Repository`: one open repository, each operation in two forms.

``x()`` blocks, ``x_async()`` runs the same function in a worker thread; what exists only as async has no suffix.
Use it with ``with`` or ``async with``, which closes it.  The functions themselves are in `composefs_async._repo`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import TracebackType
from typing import Self

from anyio import AsyncContextManagerMixin, CapacityLimiter

from ._aio import bulk, hops
from ._aio.handles import Handle, HandleGroup
from ._aio.hops import hop, write_hop
from ._repo import batch, images, mounting, names, objects, opening, scan, streams
from ._repo.batch import Buffer
from ._repo.metadata import ErofsFormats, Metadata
from ._repo.scan import ScanOptions
from ._repo.state import RepoState
from ._repo.streams import OpenStream
from ._sys.files import Tmpfile
from .digest import Algorithm, ObjectId
from .errors import VerityMissingError
from .results import StoredObject
from .splitstream import SplitstreamWriter
from .tree import Directory

__all__ = ["Repository"]

Path = str | os.PathLike[str]


class Repository(AsyncContextManagerMixin):
    """An open repository; holds a shared lock, which keeps garbage collectors of all processes away.

    Safe for use from several threads and event loops.  Nothing that is stored survives a power loss before
    `sync`, or before a publishing operation (`write_stream`, `register_stream`, `name_stream`) returns.
    """

    def __init__(self, state: RepoState) -> None:
        self._state = state
        self._handles: HandleGroup | None = None

    # -- opening and closing -------------------------------------------------------------------

    @classmethod
    def open_path(cls, path: Path, *, algorithm: Algorithm | None = None, timeout: float | None = None) -> Self:
        """Open the repository at *path*, with its own algorithm and security mode.

        Args:
            algorithm: refuse any other.
            timeout: how many seconds to wait for somebody who holds the repository exclusively.

        Raises:
            RepositoryNotFoundError, MetadataError, AlgorithmMismatchError, UnsupportedFeatureError
            RepositoryInUseError: the time is over.
        """
        return cls(opening.open_path(path, algorithm=algorithm, timeout=timeout))

    @classmethod
    async def open_path_async(
        cls, path: Path, *, algorithm: Algorithm | None = None, timeout: float | None = None
    ) -> Self:
        return await hop(cls.open_path, path, algorithm=algorithm, timeout=timeout)

    @classmethod
    def open_user(cls, *, algorithm: Algorithm | None = None, timeout: float | None = None) -> Self:
        """Open the calling user's repository, ``~/.var/lib/composefs``."""
        return cls.open_path(opening.user_path(), algorithm=algorithm, timeout=timeout)

    @classmethod
    async def open_user_async(cls, *, algorithm: Algorithm | None = None, timeout: float | None = None) -> Self:
        return await hop(cls.open_user, algorithm=algorithm, timeout=timeout)

    @classmethod
    def open_system(cls, *, algorithm: Algorithm | None = None, timeout: float | None = None) -> Self:
        """Open the system's repository, ``/sysroot/composefs``."""
        return cls.open_path(opening.system_path(), algorithm=algorithm, timeout=timeout)

    @classmethod
    async def open_system_async(cls, *, algorithm: Algorithm | None = None, timeout: float | None = None) -> Self:
        return await hop(cls.open_system, algorithm=algorithm, timeout=timeout)

    @classmethod
    def init(
        cls,
        path: Path,
        *,
        algorithm: Algorithm = Algorithm.SHA512,
        erofs_version: int | ErofsFormats | None = 1,
        insecure: bool = False,
        ensure: bool = False,
    ) -> tuple[Self, bool]:
        """Create a repository and open it; the flag tells whether it is new.  Durable when this returns.

        Args:
            erofs_version: the layout of its images, 0, 1 or 2, or several of them.  None writes the form of
                meta.json from before there was a choice, which means 2.
            insecure: do without fs-verity where the file system cannot do it.
            ensure: take an existing repository of the same algorithm as it is.

        Raises:
            MetadataError: a different repository is there.
            VerityNotSupportedError: fs-verity cannot be had and *insecure* is not set.
        """
        formats = ErofsFormats(erofs_version) if isinstance(erofs_version, int) else erofs_version
        state, created = opening.init(
            path, algorithm=algorithm, erofs_formats=formats, insecure=insecure, ensure=ensure
        )
        return cls(state), created

    @classmethod
    async def init_async(
        cls,
        path: Path,
        *,
        algorithm: Algorithm = Algorithm.SHA512,
        erofs_version: int | ErofsFormats | None = 1,
        insecure: bool = False,
        ensure: bool = False,
    ) -> tuple[Self, bool]:
        return await hop(
            cls.init, path, algorithm=algorithm, erofs_version=erofs_version, insecure=insecure, ensure=ensure
        )

    def close(self) -> None:
        """Release the lock and all descriptors; a second call does nothing."""
        self._state.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        # The block owns what was spawned in it: it ends when all of that has, and then closes.
        try:
            async with HandleGroup.open() as group:
                self._handles = group
                try:
                    yield self
                finally:
                    self._handles = None
        finally:
            self.close()

    # -- what it is ----------------------------------------------------------------------------

    @property
    def path(self) -> str:
        return self._state.path

    @property
    def algorithm(self) -> Algorithm:
        return self._state.algorithm

    @property
    def metadata(self) -> Metadata:
        return self._state.metadata

    @property
    def secure(self) -> bool:
        """Whether every object must be protected by fs-verity, and is measured whenever it is opened."""
        return self._state.secure

    def set_insecure(self) -> None:
        """Tolerate objects without fs-verity from now on, in this handle only."""
        self._state.secure = False
        self._state.verity_works = None

    def require_verity(self) -> None:
        """Refuse to go on with an insecure repository.

        Raises:
            VerityMissingError: it is insecure.
        """
        if not self.secure:
            raise VerityMissingError(f"{self.path}/meta.json")

    def objects_dir(self) -> int:
        """A descriptor (O_PATH) of ``objects/``, which stays the repository's: do not close it."""
        return self._state.objects_fd

    def write_semaphore(self) -> CapacityLimiter:
        """Bounds the storing threads to the number of processors; one per event loop, so ask where you run.

        It is not meant to be held while awaiting something of the repository, which takes it itself.
        """
        return hops.resources(self._state).write_semaphore

    @contextmanager
    def exclusive(self, operation: str, timeout: float | None = None) -> Iterator[None]:
        """Have the repository alone: no other operation of this handle, no other handle of any process.

        In the block this thread can use the repository as before, by the methods that block; others wait.

        Raises:
            RepositoryInUseError: not within *timeout* seconds.
        """
        with self._state.exclusive(operation, timeout):
            yield

    # -- objects -------------------------------------------------------------------------------

    def ensure_object(self, data: Buffer) -> StoredObject:
        """Store *data* unless it is there.  Not durable before `sync`.

        Raises:
            ReadOnlyRepositoryError
            VerityNotSupportedError: the repository is secure and the file system cannot do fs-verity.
        """
        return objects.ensure_object(self._state, data)

    async def ensure_object_async(self, data: Buffer) -> StoredObject:
        """The same; many calls at a time share their way to a worker thread.  *data* must not change meanwhile."""
        return await hops.resources(self._state).coalescer.submit(data)

    def ensure_objects(self, contents: Iterable[Buffer]) -> list[StoredObject]:
        """Store many objects; returns them in the order of *contents*, which is taken lazily.

        Raises:
            the first error; the other objects are stored all the same.
        """
        return batch.store_all(self._state, contents)

    async def ensure_objects_async(self, contents: Iterable[Buffer] | AsyncIterable[Buffer]) -> list[StoredObject]:
        """The same on all processors; the fastest way to store many."""
        return await bulk.store_all(self._state, contents)

    def create_object_tmpfile(self) -> int:
        """A file without a name to be filled through its descriptor and given to `finalize_object_tmpfile`."""
        return objects.create_object_tmpfile(self._state).fd

    async def create_object_tmpfile_async(self) -> int:
        return await write_hop(self._state, self.create_object_tmpfile)

    def finalize_object_tmpfile(self, tmpfile: int, size: int) -> StoredObject:
        """Turn a filled tmpfile into an object and close it.  Blocks for one read of the file.

        The object is in place when this returns but survives a power loss only after `sync`.
        An equal object already present wins, and *tmpfile* vanishes.

        Args:
            size: what was written, in bytes; a shorter or longer file is an error.

        Raises:
            VerityNotSupportedError: the file system cannot do fs-verity and the repository is not insecure.
        """
        return objects.finalize_object_tmpfile(self._state, tmpfile, size)

    async def finalize_object_tmpfile_async(self, tmpfile: int, size: int) -> StoredObject:
        return await write_hop(self._state, self.finalize_object_tmpfile, tmpfile, size)

    def spawn_finalize_object_tmpfile(self, tmpfile: int, size: int) -> Handle[StoredObject]:
        """Do the same in the background of the ``async with`` block of this repository; await the handle.

        A failed object does not disturb the others.  Errors of handles that nobody awaited leave the block as
        an ExceptionGroup.  *tmpfile* belongs to the repository from the call on.

        Raises:
            RuntimeError: there is no such block.
        """
        if self._handles is None:
            Tmpfile.adopt(tmpfile).discard()
            raise RuntimeError("spawn_finalize_object_tmpfile needs `async with repository:` around it")
        work = partial(objects.finalize_object_tmpfile, self._state, tmpfile, size)
        run: Callable[[Callable[[], StoredObject]], Awaitable[StoredObject]] = partial(write_hop, self._state)
        return self._handles.spawn(work, run, Tmpfile.adopt(tmpfile).discard)

    def open_object(self, object_id: ObjectId) -> int:
        """A read-only descriptor, which the caller closes.

        Raises:
            ObjectNotFoundError
            DigestMismatchError, VerityMissingError: what stands there is not, or not safely, that object.
        """
        return objects.open_object(self._state, object_id)

    async def open_object_async(self, object_id: ObjectId) -> int:
        return await hop(self.open_object, object_id)

    def read_object(self, object_id: ObjectId, *, max_size: int | None = None) -> bytes:
        """The whole content, checked against the id.

        Raises:
            ObjectNotFoundError
            IntegrityError: it is corrupt, or larger than *max_size* bytes.
        """
        return objects.read_object(self._state, object_id, max_size=max_size)

    async def read_object_async(self, object_id: ObjectId, *, max_size: int | None = None) -> bytes:
        return await hop(self.read_object, object_id, max_size=max_size)

    # -- streams -------------------------------------------------------------------------------

    def create_stream(self, content_type: int) -> SplitstreamWriter:
        """A writer that stores external content here; give it to `write_stream`."""
        return SplitstreamWriter(self, content_type)

    def has_stream(self, name: str) -> ObjectId | None:
        """The id of the stream *name* (or ``refs/…``) if it is there with its object."""
        return streams.has_stream(self._state, name)

    async def has_stream_async(self, name: str) -> ObjectId | None:
        return await hop(self.has_stream, name)

    def write_stream(self, writer: SplitstreamWriter, name: str, reference: str | None = None) -> ObjectId:
        """Finish *writer*, store the stream and publish it under *name* and *reference*.  Durable on return."""
        return streams.write_stream(self._state, writer, name, reference)

    async def write_stream_async(self, writer: SplitstreamWriter, name: str, reference: str | None = None) -> ObjectId:
        """The same; first stores what `SplitstreamWriter.write_external_parallel` left pending."""
        await bulk.resolve_pending(self._state, writer)
        return await hop(self.write_stream, writer, name, reference)

    def register_stream(self, object_id: ObjectId, name: str, reference: str | None = None) -> None:
        """Publish a stored splitstream: syncfs, then the name, then the reference, then both made durable.

        A crash leaves none, the first, or both of the names, each complete with all it reaches.

        Raises:
            ObjectNotFoundError, InvalidNameError
        """
        streams.register_stream(self._state, object_id, name, reference)

    async def register_stream_async(self, object_id: ObjectId, name: str, reference: str | None = None) -> None:
        await hop(self.register_stream, object_id, name, reference)

    def ensure_stream(
        self,
        name: str,
        content_type: int,
        fill: Callable[[SplitstreamWriter], object],
        reference: str | None = None,
    ) -> ObjectId:
        """The stream *name*, written by *fill* unless it is there, and its *reference*.  Durable on return."""
        make = partial(self.create_stream, content_type)
        return streams.ensure_stream(self._state, make, name, fill, reference)

    async def ensure_stream_async(
        self,
        name: str,
        content_type: int,
        fill: Callable[[SplitstreamWriter], object],
        reference: str | None = None,
    ) -> ObjectId:
        """The same; *fill* runs in a worker thread."""
        return await hop(self.ensure_stream, name, content_type, fill, reference)

    def has_named_stream(self, reference: str) -> bool:
        """Whether *reference* leads to a stream that is there."""
        return streams.has_named_stream(self._state, reference)

    async def has_named_stream_async(self, reference: str) -> bool:
        return await hop(self.has_named_stream, reference)

    def name_stream(self, name: str, reference: str) -> None:
        """Let *reference* lead to the stream *name*.  Durable on return.

        Raises:
            StreamNotFoundError, InvalidNameError
        """
        streams.name_stream(self._state, name, reference)

    async def name_stream_async(self, name: str, reference: str) -> None:
        await hop(self.name_stream, name, reference)

    def unname_stream(self, reference: str) -> bool:
        """Remove *reference*, durably; False if it was not there."""
        return names.remove_reference(self._state, "streams", reference)

    async def unname_stream_async(self, reference: str) -> bool:
        return await hop(self.unname_stream, reference)

    def named_streams(self, below: str = "") -> list[tuple[str, str]]:
        """Sorted pairs of a reference, without *below*, and the name of the stream it leads to."""
        return list(names.references(self._state, "streams", below))

    async def named_streams_async(self, below: str = "") -> list[tuple[str, str]]:
        return await hop(self.named_streams, below)

    def open_stream(self, name: str, object_id: ObjectId | None = None, content_type: int | None = None) -> OpenStream:
        """A reader of the stream *name* (or ``refs/…``), or of *object_id*, which then counts alone.

        The caller closes it, or uses it in a ``with`` block.

        Raises:
            StreamNotFoundError, ObjectNotFoundError, SplitstreamError, IntegrityError
        """
        return streams.open_stream(self._state, name, object_id, content_type)

    async def open_stream_async(
        self, name: str, object_id: ObjectId | None = None, content_type: int | None = None
    ) -> OpenStream:
        """The same; its methods that read the body block."""
        return await hop(self.open_stream, name, object_id, content_type)

    def merge_splitstream(
        self, name: str, object_id: ObjectId | None = None, content_type: int | None = None
    ) -> Iterator[bytes]:
        """The content of a stream as it came in, in pieces of at most 1 MiB.

        Each object is checked when its last piece has been given out, so a consumer publishes what it got
        only after the end.
        """
        return streams.merge_splitstream(self._state, name, object_id, content_type)

    def merge_splitstream_async(
        self, name: str, object_id: ObjectId | None = None, content_type: int | None = None
    ) -> AsyncIterator[bytes]:
        return bulk.iterate(partial(self.merge_splitstream, name, object_id, content_type))

    # -- images --------------------------------------------------------------------------------

    def write_image(self, data: Buffer, name: str | None = None) -> ObjectId:
        """Store *data*, which is taken for an EROFS image without a look, and publish it.  Durable on return.

        Args:
            name: below ``images/refs/``, which keeps the image when garbage is collected.
        """
        return images.write_image(self._state, data, name)

    async def write_image_async(self, data: Buffer, name: str | None = None) -> ObjectId:
        """The same; *data* must not change meanwhile."""
        return await write_hop(self._state, self.write_image, data, name)

    def import_image(self, name: str | None, pieces: Iterable[Buffer]) -> ObjectId:
        """The same for an image from anywhere, which is checked, in memory, before anything is stored.

        Raises:
            ErofsError: it is no image, is damaged, refers to objects by another algorithm, or exceeds 1 GiB.
        """
        return images.import_image(self._state, name, pieces)

    async def import_image_async(self, name: str | None, pieces: Iterable[Buffer]) -> ObjectId:
        """The same; *pieces* are taken in a worker thread."""
        return await write_hop(self._state, self.import_image, name, pieces)

    def has_image(self, name: str) -> ObjectId | None:
        """The id of the image *name* (its id in hexadecimal, or a reference) if it is there with its object."""
        return images.has_image(self._state, name)

    async def has_image_async(self, name: str) -> ObjectId | None:
        return await hop(self.has_image, name)

    def open_image(self, name: str) -> int:
        """A read-only descriptor of the image *name*, which the caller closes; measured like every object.

        Raises:
            ImageNotFoundError, ObjectNotFoundError, InvalidNameError
            DigestMismatchError, VerityMissingError: what is there is not, or not safely, that image.
        """
        return images.open_image(self._state, name)

    async def open_image_async(self, name: str) -> int:
        return await hop(self.open_image, name)

    def objects_for_image(self, name: str) -> list[ObjectId]:
        """The objects that the image *name* refers to, each once; reads and checks the whole image.

        Raises:
            ErofsError, and those of `open_image`.
        """
        return images.objects_for_image(self._state, name)

    async def objects_for_image_async(self, name: str) -> list[ObjectId]:
        return await hop(self.objects_for_image, name)

    def named_images(self, below: str = "") -> list[tuple[str, str]]:
        """Sorted pairs of a reference, without *below*, and the id in hexadecimal of the image it leads to."""
        return list(names.references(self._state, "images", below))

    async def named_images_async(self, below: str = "") -> list[tuple[str, str]]:
        return await hop(self.named_images, below)

    # -- durability ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Make everything stored before the call durable.  Calls at the same time share one syncfs."""
        self._state.syncs.sync()

    async def sync_async(self) -> None:
        await hop(self.sync)

    # -- directories ---------------------------------------------------------------------------

    def scan_directory(self, path: Path, options: ScanOptions | None = None) -> Directory:
        """The tree at *path*, whose files of more than 64 bytes become objects; not durable before `sync`.

        Raises:
            IntegrityError: something changed while it was read.
            ReadOnlyRepositoryError, VerityNotSupportedError
        """
        return scan.scan_and_store(self._state, path, options)

    async def scan_directory_async(self, path: Path, options: ScanOptions | None = None) -> Directory:
        """The same; cannot be cancelled before its end."""
        return await hop(self.scan_directory, path, options)

    # -- mounts --------------------------------------------------------------------------------

    def mount(
        self,
        name: str,
        *,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
        idmap: int | None = None,
    ) -> int:
        """A mount of the image *name*, an id or a reference, that is attached nowhere.

        Closing the descriptor, which is the caller's, drops the mount; until then it serves as ``dir_fd``.

        Args:
            upper: a directory for what is changed in the mounted tree.
            work: an empty directory on the same file system, for the kernel.
            read_write: allow changes; they go to *upper*.
            idmap: a descriptor of the user namespace that maps the owners of files.

        Raises:
            ImageNotFoundError, InvalidNameError, IntegrityError, ErofsError
            MountError: the kernel refuses, in its own words; needs CAP_SYS_ADMIN.
        """
        return mounting.mount_image(self._state, name, upper=upper, work=work, read_write=read_write, idmap=idmap)

    async def mount_async(
        self,
        name: str,
        *,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
        idmap: int | None = None,
    ) -> int:
        return await hop(self.mount, name, upper=upper, work=work, read_write=read_write, idmap=idmap)

    def mount_at(
        self,
        name: str,
        mountpoint: Path,
        *,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
        idmap: int | None = None,
    ) -> None:
        """Mount the image *name* at a directory.  It stays until `unmount`, also when the repository is closed."""
        mounting.mount_at(self._state, name, mountpoint, upper=upper, work=work, read_write=read_write, idmap=idmap)

    async def mount_at_async(
        self,
        name: str,
        mountpoint: Path,
        *,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
        idmap: int | None = None,
    ) -> None:
        await hop(self.mount_at, name, mountpoint, upper=upper, work=work, read_write=read_write, idmap=idmap)

    @staticmethod
    def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
        """Remove a mount; *lazy* takes it out of sight at once, and ends it when nobody uses it any more.

        Raises:
            MountError: it is in use, or nothing is mounted there.
        """
        mounting.unmount(mountpoint, lazy=lazy)

    @staticmethod
    async def unmount_async(mountpoint: Path, *, lazy: bool = False) -> None:
        await hop(Repository.unmount, mountpoint, lazy=lazy)


def state_of(repository: Repository) -> RepoState:
    """What the functions of `composefs_async._repo` work on; for the modules of this package."""
    return repository._state
