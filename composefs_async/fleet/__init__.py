"""Many images into a store by many machines: each layer once, images composed from streams, no database.

`convert` drives the steps (`steps`) over an `Engine`: worker threads or Dask (`dask`); jobs of an array take shards.
The state of a run is the store: a run that begins again finds what has been done.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .converting import Converted, Status, convert, in_shard, status, store_name
    from .engines import Engine, ThreadEngine

__all__ = ["Converted", "Engine", "Status", "ThreadEngine", "convert", "in_shard", "status", "store_name"]

_HOMES = {
    "Converted": ".converting",
    "Engine": ".engines",
    "Status": ".converting",
    "ThreadEngine": ".engines",
    "convert": ".converting",
    "in_shard": ".converting",
    "status": ".converting",
    "store_name": ".converting",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | dict.fromkeys(__all__))
