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
    from .fetcher import FetchResult, fetch
    from .maintenance import collect
    from .opening import open_store
    from .publisher import PublishResult, publish, publish_layer
    from .store import Store, StoredRef

__all__ = [
    "FetchResult",
    "PublishResult",
    "Store",
    "StoredRef",
    "collect",
    "fetch",
    "open_store",
    "publish",
    "publish_layer",
]

_HOMES = {
    "FetchResult": ".fetcher",
    "PublishResult": ".publisher",
    "Store": ".store",
    "StoredRef": ".store",
    "collect": ".maintenance",
    "fetch": ".fetcher",
    "open_store": ".opening",
    "publish": ".publisher",
    "publish_layer": ".publisher",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | dict.fromkeys(__all__))
