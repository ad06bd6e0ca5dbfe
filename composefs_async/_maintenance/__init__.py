"""Looking after a repository: what is reachable, garbage collection, checking, repair, usage, upgrades.

Plain functions over one `RepoState`, all of which block.  `composefs_async.repository` makes them methods.  Nothing
here stores what users bring (`composefs_async._repo`) or knows of OCI documents (`composefs_async.oci`).

The modules that `composefs_async.repository` calls are imported when they are first used: whoever only reads or cleans
should not wait for those that check and repair.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import leases, refs, reset, upgrade, usage
    from .fsck import check
    from .gc import collect
    from .repair import apply

__all__ = ["apply", "check", "collect", "leases", "refs", "reset", "upgrade", "usage"]

_HOMES = {"apply": ".repair.apply", "check": ".fsck.check", "collect": ".gc.collect"}


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(_HOMES.get(name, f".{name}"), __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
