"""An open repository: opening, closing, its lock, and what it is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from anyio import AsyncContextManagerMixin, CapacityLimiter

from .. import _maintenance
from .._aio import hops, operations
from .._aio.handles import HandleGroup
from .._aio.hops import checked_hop, hop
from .._aio.opening import Opening
from .._repo import opening
from .._repo.metadata import ErofsFormats, Metadata
from .._repo.state import RepoState
from ..digest import Algorithm
from ..errors import VerityMissingError
from ..results import Counters, Path

if TYPE_CHECKING:
    from ..results import UpgradeResult

__all__ = ["OpenRepository", "Path"]

RESET_TIMEOUT = 10.0
"""Seconds.  It fails instead of waiting forever when the caller itself still holds the repository."""


def _formats(version: int | ErofsFormats | None) -> ErofsFormats | None:
    return ErofsFormats(version) if isinstance(version, int) else version


class OpenRepository(AsyncContextManagerMixin):
    """What all groups of operations stand on."""

    def __init__(self, state: RepoState, *, is_new: bool = False) -> None:
        if not isinstance(state, RepoState):
            raise TypeError("a repository is opened by Repository.open_path, or made by Repository.init")
        self._state = state
        self._is_new = is_new
        self._handles: HandleGroup | None = None

    # -- opening and closing -------------------------------------------------------------------

    @classmethod
    def open_path(cls, path: Path, *, algorithm: Algorithm | None = None, timeout: float | None = None) -> Self:
        """Open the repository at *path*, with its own algorithm and security mode.

        Args:
            algorithm: refuse any other.
            timeout: how many seconds to wait for a process that holds the repository exclusively.

        Raises:
            RepositoryNotFoundError, MetadataError, AlgorithmMismatchError, UnsupportedFeatureError
            RepositoryInUseError: the time is over.
        """
        return cls(opening.open_path(path, algorithm=algorithm, timeout=timeout))

    @classmethod
    def open_path_async(
        cls, path: Path, *, algorithm: Algorithm | None = None, timeout: float | None = None
    ) -> Opening[Self]:
        """Open the repository at a path, to be awaited or entered with ``async with``; a cancellation ends the wait."""

        async def open_it() -> Self:
            state = await checked_hop(
                opening.open_path, path, algorithm=algorithm, timeout=timeout, discard=RepoState.close
            )
            return cls(state)

        return Opening(open_it)

    @classmethod
    def open_user(cls, *, algorithm: Algorithm | None = None, timeout: float | None = None) -> Self:
        """Open the calling user's repository, ``~/.var/lib/composefs``."""
        return cls.open_path(opening.user_path(), algorithm=algorithm, timeout=timeout)

    @classmethod
    def open_user_async(cls, *, algorithm: Algorithm | None = None, timeout: float | None = None) -> Opening[Self]:
        """Open this user's repository, to be awaited or entered with ``async with``; a cancellation ends the wait."""
        return cls.open_path_async(opening.user_path(), algorithm=algorithm, timeout=timeout)

    @classmethod
    def open_system(cls, *, algorithm: Algorithm | None = None, timeout: float | None = None) -> Self:
        """Open the system's repository, ``/sysroot/composefs``."""
        return cls.open_path(opening.system_path(), algorithm=algorithm, timeout=timeout)

    @classmethod
    def open_system_async(cls, *, algorithm: Algorithm | None = None, timeout: float | None = None) -> Opening[Self]:
        """Open the system's repository, to be awaited or entered with ``async with``; a cancellation ends the wait."""
        return cls.open_path_async(opening.system_path(), algorithm=algorithm, timeout=timeout)

    @classmethod
    def init(
        cls,
        path: Path,
        *,
        algorithm: Algorithm = Algorithm.SHA512,
        erofs_version: int | ErofsFormats | None = 1,
        insecure: bool = False,
        ensure: bool = False,
        timeout: float | None = None,
    ) -> Self:
        """Create a repository and open it; `is_new` tells whether it was not there.  Durable when this returns.

        Args:
            erofs_version: the layout of its images, 0, 1 or 2, or several of them.  None writes the form of
                meta.json from before there was a choice, which means 2.
            insecure: do without fs-verity where the file system cannot do it.
            ensure: take an existing repository of the same algorithm as it is; one from before meta.json existed
                is upgraded, and is not new.
            timeout: how many seconds to wait for a process that holds the repository exclusively.

        Raises:
            MetadataError: a different repository is there.
            VerityNotSupportedError, VerityMissingError: fs-verity cannot be had, or objects are there that it does
                not protect, and *insecure* is not set.
            RepositoryInUseError: the time is over.
        """
        state, created = _maintenance.upgrade.init(
            path,
            algorithm=algorithm,
            erofs_formats=_formats(erofs_version),
            insecure=insecure,
            ensure=ensure,
            timeout=timeout,
        )
        return cls(state, is_new=created)

    @classmethod
    def init_async(
        cls,
        path: Path,
        *,
        algorithm: Algorithm = Algorithm.SHA512,
        erofs_version: int | ErofsFormats | None = 1,
        insecure: bool = False,
        ensure: bool = False,
        timeout: float | None = None,
    ) -> Opening[Self]:
        """Make a repository, or open it, to be awaited or entered with ``async with``; a cancellation ends the wait."""

        async def make_it() -> Self:
            state, created = await checked_hop(
                _maintenance.upgrade.init,
                path,
                algorithm=algorithm,
                erofs_formats=_formats(erofs_version),
                insecure=insecure,
                ensure=ensure,
                timeout=timeout,
                discard=lambda made: made[0].close(),
            )
            return cls(state, is_new=created)

        return Opening(make_it)

    @classmethod
    def reset_metadata(
        cls,
        path: Path,
        *,
        algorithm: Algorithm = Algorithm.SHA512,
        erofs_version: int | ErofsFormats | None = 1,
        insecure: bool = False,
        timeout: float | None = RESET_TIMEOUT,
    ) -> Self:
        """Forget all streams, images and references of a repository, keep its objects, and open it.  Durable.

        What is imported again stores only what is missing.  A crash leaves some of the names, each complete, and
        meta.json as it was or as it will be.

        Args:
            erofs_version, insecure: of the new meta.json, as for `init`.
            timeout: how many seconds to wait for others to close the repository; a handle of the same process
                counts as another.

        Raises:
            RepositoryNotFoundError, RepositoryInUseError
            MetadataError: its objects are of another algorithm; nothing has been removed.
            VerityMissingError: it cannot be secure; nothing has been removed.
        """
        formats = _formats(erofs_version)
        return cls(
            _maintenance.reset.reset_metadata(
                path, algorithm=algorithm, erofs_formats=formats, insecure=insecure, timeout=timeout
            )
        )

    @classmethod
    def reset_metadata_async(
        cls,
        path: Path,
        *,
        algorithm: Algorithm = Algorithm.SHA512,
        erofs_version: int | ErofsFormats | None = 1,
        insecure: bool = False,
        timeout: float | None = RESET_TIMEOUT,
    ) -> Opening[Self]:
        """Reset a repository's metadata, to be awaited or entered with ``async with``; a cancellation ends the wait."""

        async def reset_it() -> Self:
            state = await checked_hop(
                _maintenance.reset.reset_metadata,
                path,
                algorithm=algorithm,
                erofs_formats=_formats(erofs_version),
                insecure=insecure,
                timeout=timeout,
                discard=RepoState.close,
            )
            return cls(state)

        return Opening(reset_it)

    @staticmethod
    def upgrade(
        path: Path,
        *,
        algorithm: Algorithm | None = None,
        require_verity: bool = False,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> UpgradeResult:
        """Give a repository from before meta.json existed one that fits it, unless it has one.  Durable.

        Nothing else is written; several may do it at once.  It is secure only if fs-verity protects every object,
        and keeps the layouts of the EROFS images that its OCI images have.

        Args:
            algorithm: refuse any other.
            require_verity: refuse what would be insecure.
            dry_run: only tell what would be written.

        Raises:
            RepositoryNotFoundError, AlgorithmMismatchError, ReadOnlyRepositoryError, RepositoryInUseError
            MetadataError: objects are of both algorithms, or nothing is there that can still be read.
            VerityMissingError: against *require_verity*.
        """
        return _maintenance.upgrade.upgrade(
            path, algorithm=algorithm, require_verity=require_verity, dry_run=dry_run, timeout=timeout
        )

    @staticmethod
    async def upgrade_async(
        path: Path,
        *,
        algorithm: Algorithm | None = None,
        require_verity: bool = False,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> UpgradeResult:
        """Write a missing meta.json like `upgrade`, in a worker thread; a cancellation ends the wait."""
        return await checked_hop(
            _maintenance.upgrade.upgrade,
            path,
            algorithm=algorithm,
            require_verity=require_verity,
            dry_run=dry_run,
            timeout=timeout,
        )

    def close(self) -> None:
        """Let no operation begin, wait for those under way, and release the lock and all descriptors.

        A second call does nothing.  Operations of the event loop that runs in the calling thread are cancelled and
        raise RepositoryClosedError; they cannot be waited for here, and the last one releases everything: `aclose`
        waits.  Likewise if it is called from inside an operation, such as by a progress callback.
        """
        self._state.close()

    async def aclose(self) -> None:
        """`close`, and wait for the operations that it cancels; the end of ``async with`` does the same.

        Whoever is cancelled meanwhile waits for the end, too.
        """
        await operations.aclose(self._state)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"the repository {self.path} cannot be copied or sent to another process: open its path there")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        # The block owns what was spawned in it: it ends when all of that has, and then closes, which cancels others.
        try:
            async with HandleGroup.open() as group:
                self._handles = group
                try:
                    yield self
                finally:
                    self._handles = None
        finally:
            await self.aclose()

    # -- what it is ----------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Path of the repository as it was given, perhaps relative; the handle survives a renaming."""
        return self._state.path

    @property
    def algorithm(self) -> Algorithm:
        """Algorithm by which all objects are named."""
        return self._state.algorithm

    @property
    def metadata(self) -> Metadata:
        """Content of meta.json when the repository was opened."""
        return self._state.metadata

    @property
    def secure(self) -> bool:
        """True if every object must be protected by fs-verity, and is measured whenever it is opened."""
        return self._state.secure

    def counters(self) -> Counters:
        """Return what this handle has stored and flushed since it was opened, as numbers that only grow."""
        syncs = self._state.syncs
        return self._state.stored.read(flushes=syncs.count, flush_requests=syncs.requests)

    @property
    def is_new(self) -> bool:
        """True if `init` made the repository, False if it was there before."""
        return self._is_new

    def set_insecure(self, insecure: bool = True) -> None:
        """Tolerate objects without fs-verity from now on, or with False demand it again; in this handle only."""
        self._state.secure = not insecure
        self._state.verity_works = None if insecure else True

    def set_erofs_version(self, version: int) -> None:
        """Make images in layout *version* (0, 1 or 2) alone from now on, in this handle only.

        Raises:
            ValueError: there is no such layout.
        """
        metadata = self._state.metadata
        # What says that the layout is 1 goes; features that forbid writing stay.
        flags = metadata.unknown_read_only
        self._state.metadata = replace(metadata, erofs_formats=ErofsFormats(version), read_only_compatible=flags)

    def require_verity(self) -> None:
        """Refuse to go on with an insecure repository.

        Raises:
            VerityMissingError: it is insecure.
        """
        if not self.secure:
            raise VerityMissingError(f"{self.path}/meta.json")

    def objects_dir(self) -> int:
        """Return a descriptor (O_PATH) of ``objects/``, made if it is missing; the repository owns it."""
        return self._state.objects_fd

    def write_semaphore(self) -> CapacityLimiter:
        """Return the limiter of storing threads, one per event loop: as many as there are processors.

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

    # -- durability ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Make everything stored before the call durable.  Blocks for a syncfs, which calls at the same time share.

        Raises:
            OSError: the disk failed; what was written since the last `sync` may be lost.
        """
        self._state.syncs.sync()

    async def sync_async(self) -> None:
        """Make everything stored before the call durable like `sync`, in a worker thread."""
        await hop(self.sync)
