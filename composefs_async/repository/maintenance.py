"""Keeping a repository healthy: garbage collection, checking, repair, usage."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from anyio import CancelScope

from .. import _maintenance
from .._aio.hops import checked_hop, hop, in_loop
from ..errors import ComposefsError
from .opening import OpenRepository, Path

if TYPE_CHECKING:
    from ..progress import ProgressCallback
    from ..results import FsckResult, GcResult, Lease, RepairResult, Usage

__all__ = ["UpkeepOperations"]


class UpkeepOperations(OpenRepository):
    """What is done to the repository as a whole."""

    # -- garbage collection --------------------------------------------------------------------

    def gc(
        self,
        additional_roots: Iterable[str] = (),
        *,
        dry_run: bool = False,
        ignore_mounts: bool = False,
        timeout: float | None = None,
        quarantine_older: float | None = None,
        progress: ProgressCallback | None = None,
    ) -> GcResult:
        """Delete objects that no reference or mount needs, and dangling names.  Safe to interrupt at any point.

        Finding out goes on beside importers of all processes.  Removing needs the repository alone, for less than
        100 ms at a time, and waits for other handles: they have it for as long as they are open.  What this handle
        has stored and not named goes, unless it belongs to a running import.

        Args:
            additional_roots: names of streams and images (not references) that are kept with all they need.
            ignore_mounts: do not keep images that are mounted in this mount namespace; those of others are out of
                sight anyway, and need a reference.
            dry_run: only tell what would be removed; waits for nobody.
            timeout: how many seconds in all to wait for others; 0 waits for nobody.
            quarantine_older: also delete what repairs put aside so many seconds ago, or before; None keeps all of it.

        Raises:
            RepositoryInUseError: the time is over; what has been removed until then stays removed.
            ReachUnknownError: something that is needed is damaged, so that it cannot be told what else is.
            ReadOnlyRepositoryError
        """
        return _maintenance.collect.gc(
            self._state,
            additional_roots,
            dry_run=dry_run,
            ignore_mounts=ignore_mounts,
            timeout=timeout,
            quarantine_older=quarantine_older,
            progress=progress,
        )

    async def gc_async(
        self,
        additional_roots: Iterable[str] = (),
        *,
        dry_run: bool = False,
        ignore_mounts: bool = False,
        timeout: float | None = None,
        quarantine_older: float | None = None,
        progress: ProgressCallback | None = None,
    ) -> GcResult:
        """Collect garbage like `gc`, in a worker thread; a cancellation ends it soon, also while it waits."""
        return await checked_hop(
            _maintenance.collect.gc,
            self._state,
            additional_roots,
            dry_run=dry_run,
            ignore_mounts=ignore_mounts,
            timeout=timeout,
            quarantine_older=quarantine_older,
            progress=in_loop(progress),
        )

    def leases(self) -> list[Lease]:
        """Return what keeps the content of imports that run or were interrupted, sorted by name."""
        return _maintenance.leases.all_leases(self._state)

    async def leases_async(self) -> list[Lease]:
        """Return the leases like `leases`, in a worker thread."""
        return await hop(self.leases)

    @asynccontextmanager
    async def lease(self, name: str, *, duration: float | None = None) -> AsyncGenerator[Lease]:
        """Keep what this handle imports in the block from garbage collection, until an image names it.

        It holds for objects that are stored since the block began, and for layers that `oci.import_layer` stores or
        finds there.  Nothing is durable by it.  The block's end ends the lease; if it ends by an error or a
        cancellation, or the process dies, the lease stays for *duration*, and whoever uses its name next goes on with
        it.  Blocks of several names may overlap; one name is for one block at a time.

        Args:
            name: 1 to 1024 bytes; any, such as the image's that is being put together.
            duration: seconds that it holds after the last layer if it is not ended; 24 hours if not given.

        Returns:
            What an earlier block of that name has left; its ``layers`` need not be imported again.

        Raises:
            InvalidNameError, ReadOnlyRepositoryError
        """
        holder = await hop(_maintenance.leases.begin_named, self._state, name, duration)
        self._state.leases.append(holder)
        try:
            yield holder.lease
        except BaseException:
            with CancelScope(shield=True), suppress(OSError, ComposefsError):
                await hop(holder.save)
            raise
        finally:
            self._state.leases.remove(holder)
        await hop(holder.end)

    def drop_lease(self, name: str) -> bool:
        """End the lease of a manifest, by its digest, or of a name, so that the next gc removes what it kept.

        Returns:
            False if there is none.
        """
        return _maintenance.leases.drop(self._state, name)

    async def drop_lease_async(self, name: str) -> bool:
        """End a lease in a worker thread; see `drop_lease`."""
        return await hop(self.drop_lease, name)

    # -- checking ------------------------------------------------------------------------------

    def fsck(
        self,
        *,
        metadata_only: bool = False,
        resume: bool = False,
        limit: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> FsckResult:
        """Check everything and change nothing; damage is in the result and never raised.

        Compares all objects with their names, the content of streams with theirs where these are digests, parses
        images, and looks at all names.  A check that ends early leaves its position in the repository, if that can be
        written.

        Args:
            metadata_only: read no objects but streams and images.
            resume: continue a check that ended early, with another look at what it had found.
            limit: bytes a second that are read at most.
        """
        return _maintenance.check.fsck(
            self._state, metadata_only=metadata_only, resume=resume, limit=limit, progress=progress
        )

    async def fsck_async(
        self,
        *,
        metadata_only: bool = False,
        resume: bool = False,
        limit: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> FsckResult:
        """Check everything like `fsck`, in a worker thread; a cancellation ends it soon."""
        return await checked_hop(
            _maintenance.check.fsck,
            self._state,
            metadata_only=metadata_only,
            resume=resume,
            limit=limit,
            progress=in_loop(progress),
        )

    # -- repair --------------------------------------------------------------------------------

    def repair(
        self,
        sources: Sequence[Path] = (),
        *,
        dry_run: bool = False,
        progress: ProgressCallback | None = None,
    ) -> RepairResult:
        """Check everything, and repair what *sources* and the repository itself have the content for.  Durable.

        Objects that are missing or corrupt come back, each compared with its id before it is in place; names that are
        gone are made again where it is known what they meant.  What is replaced or removed goes to a directory in
        ``.composefs-async/quarantine``, and nothing is deleted; what is right there comes back.  Stopped anywhere it
        leaves nothing worse than it was.  What could not be read is left alone, and `Unrepaired.unread` in the result:
        only a file of which the kernel refuses blocks, twice, is replaced, if there is a copy that is right.

        Images, and sources that are image directories, are the business of `composefs_async.oci.image_repair`.

        Args:
            sources: repositories of the same algorithm, and directories of files, tried in this order.
            dry_run: tell what a run would do, and change nothing; takes room in the directory for temporary files for
                what would come back.

        Raises:
            AlgorithmMismatchError: a source is a repository of the other algorithm.
            ReadOnlyRepositoryError
            OSError: something failed that says nothing about the repository; what has been done until then stays.
        """
        return _maintenance.apply.repair(self._state, sources, dry_run=dry_run, progress=progress)

    async def repair_async(
        self,
        sources: Sequence[Path] = (),
        *,
        dry_run: bool = False,
        progress: ProgressCallback | None = None,
    ) -> RepairResult:
        """Check and repair like `repair`, in a worker thread; a cancellation ends it soon."""
        return await checked_hop(
            _maintenance.apply.repair, self._state, sources, dry_run=dry_run, progress=in_loop(progress)
        )

    # -- usage ---------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """Return what each reference keeps, alone and shared, and what removing it would free.

        Reads every stream and image that has a reference and looks at each object's size, about 5 µs an object.

        Raises:
            ReachUnknownError: something is damaged, so that it cannot be told what is needed.
        """
        return _maintenance.usage.usage(self._state)

    async def usage_async(self) -> Usage:
        """Return what references keep like `usage`, in a worker thread."""
        return await hop(self.usage)
