"""composefs repositories for Python: async-first, shared with composefs-rs byte for byte.

A repository keeps files as *objects* named by their fs-verity digest, tar layers and OCI documents as *splitstreams*
(inline bytes, and references to objects), and file trees as EROFS *images*.  The architecture in one page, from the
bottom to the top; imports only go down, which a test enforces:

====================  =======================================================================================
`errors`, `digest`,   every exception; algorithms and `ObjectId`; what operations return, and while they run
`results`,            report; what checks can find, and what maintenance reports; names of OCI content
`progress`,
`naming`,
`findings`, `reports`
`_native`             C code for digests and batches of objects, with Python twins; only speeds up
`fsverity`,           formats: bytes in, bytes out.  No descriptor, no await
`splitstream`,
`tree`, `erofs`
`_sys`                the machine: temporary files, links, flushes, locks, fs-verity ioctls, mounts
`_repo`               the blocking repository: plain functions over one `RepoState`
`_maintenance`       looking after it: garbage collection, checking, repair, usage, upgrades
`_aio`                the only place that knows there is an event loop: thread hops, coalescing, handles
`repository`          `Repository`: each operation as ``x()`` and ``x_async()``, a few lines each
`oci`                 layers, images, tags; sources of images; parsers that know no I/O
`boot`                bootable images: SELinux labels, kernel arguments, boot entries
`exchange`            content in stores: published, fetched, collected beside publishers
`cli`                 the command line; uses what is public
====================  =======================================================================================

Four ideas carry it:

* File work has no readiness to wait for, so it is written once, blocking, and the async form runs it in a worker
  thread.  A hop costs more than a small object: single stores gather into batches, each one native call without
  the interpreter lock.
* Durable state changes only by link, or by symbolic link and rename, after a flush.  `Repository.register_stream`
  and what ends there say what a crash leaves.
* A layer is imported by a conveyor: carriers move chunks through unpack, hash, split, store and finish.
  Memory is the buffers of a few chunks, whatever the layer's size.
* Nothing that came from outside is believed: sizes before they are allocated, digests before anything has a name.

Names are imported from here when they are first used, so that importing the package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import errors
    from ._aio.handles import Handle
    from ._repo.metadata import ErofsFormats
    from .digest import Algorithm, ObjectId
    from .repository import Repository
    from .results import ImportStats, StoredObject, StoreOutcome

    __version__: str

__all__ = [
    "Algorithm",
    "ErofsFormats",
    "Handle",
    "ImportStats",
    "ObjectId",
    "Repository",
    "StoreOutcome",
    "StoredObject",
    "errors",
]

_HOMES = {
    "Algorithm": ".digest",
    "ErofsFormats": "._repo.metadata",
    "Handle": "._aio.handles",
    "ImportStats": ".results",
    "ObjectId": ".digest",
    "Repository": ".repository",
    "StoreOutcome": ".results",
    "StoredObject": ".results",
}


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module(".errors", __name__)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("composefs-async")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | dict.fromkeys(__all__))
