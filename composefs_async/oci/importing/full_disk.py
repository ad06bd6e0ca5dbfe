"""An import that ends for lack of space says what it leaves on the disk, and how to get rid of it."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CancelScope

from ..._aio.hops import hop
from ..._maintenance import leases

__all__ = ["full_disk_told"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


@asynccontextmanager
async def full_disk_told(lease: leases.LeaseHolder, manifest_digest: str) -> AsyncIterator[None]:
    """Add to an error of the block that the disk is full how much the lease holds, and how to drop it.

    Raises:
        OSError: the error of the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        with CancelScope(shield=True):
            held = await hop(lease.held_bytes)
        kept = (
            f"{held} bytes that were stored are kept for another try, "
            f"until 'composefs-async leases drop {manifest_digest}' and gc"
        )
        raise OSError(error.errno, f"{error.strerror}; {kept}", error.filename) from error
