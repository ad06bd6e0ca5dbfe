"""Content of repositories in stores: published once, fetched anywhere, collected beside publishers.

A store holds OCI artifacts whose layers are packs of objects; the same bytes live in a directory, behind a web server,
in an object store or a registry.  `open_store` opens one; `publish` and `fetch` move images; `collect` removes what no
name needs.  `table`, `documents`, `condemned` and `plan` are the formats and decisions, without I/O; `commit` and
`gc` are what must be right between two requests, as programs that yield requests (`protocol`).

Names are imported from here when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backends.base import BlobInfo, BlobStore, Stored
    from .condemned import Description
    from .copying import CopyResult, copy, pull_from, push_to, serve, ssh_command
    from .documents import Config, Descriptor, Manifest, Ref
    from .fetcher import FetchResult, fetch
    from .gc import CollectReport, RefCost
    from .maintenance import MirrorResult, collect, mirror, remove, write_index
    from .opening import open_store
    from .pacing import RateLimit
    from .publication import PublishResult
    from .publisher import publish, publish_layer
    from .repairing import StoreObjects, store_objects
    from .store import Store, StoredRef, Usage
    from .storecheck import StoreCheck, StoreFinding, check_store
    from .table import Entry, Table

__all__ = [
    "BlobInfo",
    "BlobStore",
    "CollectReport",
    "Config",
    "CopyResult",
    "Description",
    "Descriptor",
    "Entry",
    "FetchResult",
    "Manifest",
    "MirrorResult",
    "PublishResult",
    "RateLimit",
    "Ref",
    "RefCost",
    "Store",
    "StoreCheck",
    "StoreFinding",
    "StoreObjects",
    "Stored",
    "StoredRef",
    "Table",
    "Usage",
    "check_store",
    "collect",
    "copy",
    "fetch",
    "mirror",
    "open_store",
    "publish",
    "publish_layer",
    "pull_from",
    "push_to",
    "remove",
    "serve",
    "ssh_command",
    "store_objects",
    "write_index",
]

_HOMES = {
    "BlobInfo": ".backends.base",
    "BlobStore": ".backends.base",
    "CollectReport": ".gc",
    "Config": ".documents",
    "CopyResult": ".copying",
    "Description": ".condemned",
    "Descriptor": ".documents",
    "Entry": ".table",
    "FetchResult": ".fetcher",
    "Manifest": ".documents",
    "MirrorResult": ".maintenance",
    "PublishResult": ".publication",
    "RateLimit": ".pacing",
    "Ref": ".documents",
    "RefCost": ".gc",
    "Store": ".store",
    "StoreCheck": ".storecheck",
    "StoreFinding": ".storecheck",
    "StoreObjects": ".repairing",
    "Stored": ".backends.base",
    "StoredRef": ".store",
    "Table": ".table",
    "Usage": ".store",
    "check_store": ".storecheck",
    "collect": ".maintenance",
    "copy": ".copying",
    "fetch": ".fetcher",
    "mirror": ".maintenance",
    "open_store": ".opening",
    "publish": ".publisher",
    "publish_layer": ".publisher",
    "pull_from": ".copying",
    "push_to": ".copying",
    "remove": ".maintenance",
    "serve": ".copying",
    "ssh_command": ".copying",
    "store_objects": ".repairing",
    "write_index": ".maintenance",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | dict.fromkeys(__all__))
