"""composefs repositories for Python: async-first, shared with composefs-rs byte for byte.

A repository keeps files as *objects* named by their fs-verity digest, tar layers and OCI documents as *splitstreams*
(inline bytes, and references to objects), and file trees as EROFS *images*.  The architecture in one page, from the
bottom to the top; imports only go down, which a test enforces:

====================  =======================================================================================
`errors`, `digest`,   every exception; algorithms and `ObjectId`; what checks can find; names of OCI content in a
`findings`, `naming`, repository; values that operations return; events of progress
`results`, `progress`
`_native`             C code for digests and batches of objects, with Python twins; it only speeds up
`fsverity`,           formats: bytes in, bytes out, without descriptors and without await
`splitstream`,
`tree`, `erofs`
`_sys`                system calls: temporary files, links, flushes, locks, fs-verity ioctls, mounts, namespaces
`_repo`               the blocking repository: plain functions over one `RepoState`
`_maintenance`        reachability, garbage collection, checks, repair, usage, leases, upgrades
`_aio`                the only room that knows the event loop: worker threads, batches, handles
`repository`          `Repository`: each operation as ``x()`` and ``x_async()``, a few lines each
`oci`                 layers, images and tags: importing, sources, export, build; tar without I/O
`registry`            a client for registries; it knows no repository, and of `oci` the documents alone
`boot`                bootable images: SELinux labels, kernel arguments, boot entries, seals
`exchange`            stores for many machines: publish, fetch, garbage collection
`fleet`               conversion of many images into a store, by threads, Dask or shards
`testing`             a registry that fails as it is told, for tests of clients
`cli`                 the command line
====================  =======================================================================================

Four ideas carry it:

* File work has no readiness to wait for, so it is written once, blocking, and the async form runs it in a worker
  thread.  A hop costs more than a small object: single stores gather into batches, each one native call without
  the interpreter lock.
* Durable state changes only by link, or by symbolic link and rename, after a flush.  `Repository.register_stream`
  and what ends there say what a crash leaves.
* A layer is imported by a pipeline: worker threads take chunks through unpack, hash, split, store and finish.
  Memory is the buffers of a few chunks, whatever the layer's size.
* Nothing from outside is trusted: sizes are checked before they are allocated, digests before anything has a name.

Names are imported from here when they are first used, so that importing the package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import errors, oci, progress
    from ._aio.handles import Handle
    from ._aio.opening import Opening
    from ._repo.metadata import ErofsFormats, Metadata
    from ._repo.publish import Category
    from ._repo.rootless import RootlessMount
    from ._repo.scan import ScanOptions
    from ._repo.streams import OpenStream
    from .digest import Algorithm, ObjectId
    from .findings import Finding
    from .progress import ProgressCallback, ProgressEvent
    from .repository import Repository
    from .results import (
        Counters,
        FsckResult,
        GcResult,
        ImportStats,
        Lease,
        MountOptions,
        NamedReference,
        RepairResult,
        StoredObject,
        StoreOutcome,
        UpgradeResult,
        Usage,
    )
    from .splitstream import SplitstreamWriter
    from .tree.inodes import Directory
    from .tree.transform import XattrFilter

    __version__: str

__all__ = [
    "Algorithm",
    "Category",
    "Counters",
    "Directory",
    "ErofsFormats",
    "Finding",
    "FsckResult",
    "GcResult",
    "Handle",
    "ImportStats",
    "Lease",
    "Metadata",
    "MountOptions",
    "NamedReference",
    "ObjectId",
    "OpenStream",
    "Opening",
    "ProgressCallback",
    "ProgressEvent",
    "RepairResult",
    "Repository",
    "RootlessMount",
    "ScanOptions",
    "SplitstreamWriter",
    "StoreOutcome",
    "StoredObject",
    "UpgradeResult",
    "Usage",
    "XattrFilter",
    "errors",
    "oci",
    "progress",
]

_HOMES = {
    "Algorithm": ".digest",
    "Counters": ".results",
    "Category": "._repo.publish",
    "Directory": ".tree.inodes",
    "ErofsFormats": "._repo.metadata",
    "Finding": ".findings",
    "FsckResult": ".results",
    "GcResult": ".results",
    "Handle": "._aio.handles",
    "ImportStats": ".results",
    "Lease": ".results",
    "Metadata": "._repo.metadata",
    "MountOptions": ".results",
    "NamedReference": ".results",
    "ObjectId": ".digest",
    "OpenStream": "._repo.streams",
    "Opening": "._aio.opening",
    "ProgressCallback": ".progress",
    "ProgressEvent": ".progress",
    "RepairResult": ".results",
    "Repository": ".repository",
    "RootlessMount": "._repo.rootless",
    "ScanOptions": "._repo.scan",
    "SplitstreamWriter": ".splitstream",
    "StoreOutcome": ".results",
    "StoredObject": ".results",
    "UpgradeResult": ".results",
    "Usage": ".results",
    "XattrFilter": ".tree.transform",
}


_MODULES = ("errors", "oci", "progress")
"""Public modules that are imported when they are first used."""


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("composefs-async")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | dict.fromkeys(__all__))
