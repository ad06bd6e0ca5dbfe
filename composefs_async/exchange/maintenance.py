"""Looking after a store: collection of garbage, checking, what names cost, an index for other tools, mirrors.

Owns running them on a `Store`.  Does not own when garbage may be deleted (`gc`).
"""

from __future__ import annotations

import time
from collections.abc import Collection

from ..errors import StoreError
from .gc import CollectReport, survey
from .gc import collect as collect_program
from .store import Store

__all__ = ["collect"]


async def collect(store: Store, *, keep: Collection[str] = (), dry_run: bool = False) -> CollectReport:
    """Delete blobs that no name has needed for the grace time of the store.  Safe beside publishers.

    What is garbage now is put on a list, and deleted by a run after the grace time.  In a store without conditional
    writes only its one writer may collect.

    Args:
        keep: digests of blobs that are kept all the same.
        dry_run: tell what is garbage and what each name costs; write nothing.

    Raises:
        StoreBusyError: another run is at work.
        StoreError, StoreFormatError, DigestMismatchError: it cannot be told what is needed; nothing was deleted.
    """
    description = await store.describe()
    unknown = description.features.get("read-only-compatible", ())
    if unknown and not dry_run:
        raise StoreError(store.url, f"it uses features unknown to this version: {', '.join(unknown)}")
    if dry_run:
        return await store.run(survey(store.url, keep))
    return await store.run(collect_program(store.url, description.grace, clock=time.monotonic, keep=keep))
