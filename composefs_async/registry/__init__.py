"""Registries (OCI distribution specification) on asyncio, uvloop and trio; needs no repository.

`RegistryClient` resolves references, reads manifests, lists tags and referrers, fetches, pushes and copies.  `Access`
says how registries are reached, `Transfer` how content is transferred.

Names are imported from here when they are first used, so that nobody waits for the network's modules without need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .access import Access, Credentials, Transfer
    from .answers import RateStatus
    from .client import RegistryClient
    from .content import Content
    from .copying import Copied
    from .manifests import FetchedDocument
    from .reading import Resolved
    from .reference import Reference, parse_reference

__all__ = [
    "Access",
    "Content",
    "Copied",
    "Credentials",
    "FetchedDocument",
    "RateStatus",
    "Reference",
    "RegistryClient",
    "Resolved",
    "Transfer",
    "parse_reference",
]

_HOMES = {
    "Access": ".access",
    "Content": ".content",
    "Copied": ".copying",
    "Credentials": ".access",
    "FetchedDocument": ".manifests",
    "RateStatus": ".answers",
    "Reference": ".reference",
    "RegistryClient": ".client",
    "Resolved": ".reading",
    "Transfer": ".access",
    "parse_reference": ".reference",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | dict.fromkeys(__all__))
