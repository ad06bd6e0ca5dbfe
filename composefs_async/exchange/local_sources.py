"""Objects from repositories and directories of this machine: shared with the file system's help, verified, linked."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress

from .._maintenance.repair.quarantine import digest_descriptors
from .._maintenance.repair.sources import ObjectSource
from .._repo import objects
from .._repo.state import RepoState
from .._sys import files
from ..digest import ObjectId

__all__ = ["take_objects"]

_BATCH = 64


def take_objects(
    state: RepoState,
    source: ObjectSource,
    wanted: Collection[ObjectId],
    *,
    check: Callable[[], object],
    link: bool = False,
) -> Iterator[ObjectId]:
    """Bring those of *wanted* that *source* has; yields their ids.  Blocks.

    Content is shared (reflink) where the file system can, otherwise copied by the kernel, and compared with the id
    in either case.  Nothing is durable before a `sync`.

    Args:
        link: hard link files that are on the same file system, which then share owner, times and security label.
    """
    pending: list[tuple[ObjectId, int]] = []
    try:
        for object_id, fd in source.candidates(dict.fromkeys(wanted)):
            pending.append((object_id, fd))
            if len(pending) >= _BATCH:
                check()
                yield from _take_batch(state, pending, link)
        check()
        yield from _take_batch(state, pending, link)
    finally:
        for _, fd in pending:
            os.close(fd)


def _take_batch(state: RepoState, pending: list[tuple[ObjectId, int]], link: bool) -> Sequence[ObjectId]:
    """Empties *pending*."""
    copies: list[tuple[ObjectId, files.Tmpfile]] = []
    done: list[ObjectId] = []
    try:
        for object_id, fd in pending:
            if link and _linked(state, object_id, fd):
                done.append(object_id)
                continue
            copies.append((object_id, objects.create_object_tmpfile(state)))
            files.copy_content(fd, copies[-1][1].fd)
        # Not the digest of the source, which may change meanwhile.
        digests = digest_descriptors([tmpfile.fd for _, tmpfile in copies], state.algorithm)
        good = [copy for copy, found in zip(copies, digests, strict=True) if found == copy[0]]
        for object_id, tmpfile in good:
            objects.publish_object_tmpfile(state, tmpfile, os.fstat(tmpfile.fd).st_size, object_id)
        return [*done, *(object_id for object_id, _ in good)]
    finally:
        for _, tmpfile in copies:
            tmpfile.discard()
        while pending:
            os.close(pending.pop()[1])


def _linked(state: RepoState, object_id: ObjectId, fd: int) -> bool:
    """Link a file as an object, if it is what its id says and on the same file system."""
    if digest_descriptors([fd], state.algorithm) != [object_id]:
        return False
    with suppress(FileExistsError):
        os.mkdir(object_id.path[:2], 0o755, dir_fd=state.objects_fd)
    try:
        os.link(f"/proc/self/fd/{fd}", object_id.path, dst_dir_fd=state.objects_fd, follow_symlinks=True)
    except FileExistsError:
        return True
    except OSError:  # another file system, or one without hard links
        return False
    return True
