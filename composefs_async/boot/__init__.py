"""Bootable images: labels of SELinux, kernel arguments, unified kernel images, and boot entries.

From the bottom to the top:

==============  ==================================================================================================
`byteset`,      regular expressions of policies, rewritten for Python's engine and for RE2
`regex`
`matching`      which of thousands of them match a path
`policy`        an SELinux policy: the label of a path, without SELinux
`labels`        the policy in a tree, and labels for all of it
`transform`     the tree of an operating system as a machine boots it
==============  ==================================================================================================

Names are imported from here when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .labels import find_policy, label_tree, remove_labels
    from .policy import Policy, Specification
    from .transform import transform_for_boot

__all__ = [
    "Policy",
    "Specification",
    "find_policy",
    "label_tree",
    "remove_labels",
    "transform_for_boot",
]

_HOMES = {
    "Policy": "policy",
    "Specification": "policy",
    "find_policy": "labels",
    "label_tree": "labels",
    "remove_labels": "labels",
    "transform_for_boot": "transform",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{home}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | dict.fromkeys(__all__))
