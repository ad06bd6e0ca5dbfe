"""Bootable images: labels of SELinux, kernel arguments, unified kernel images, and boot entries.

From the bottom to the top:

==============  ==================================================================================================
`byteset`,      regular expressions of policies, rewritten for Python's engine and for RE2
`regex`
`matching`      which of thousands of them match a path
`policy`        an SELinux policy: the label of a path, without SELinux
`labels`        the policy in a tree, and labels for all of it
`disagreements` files to which ``restorecon`` would give another label
`transform`     the tree of an operating system as a machine boots it
`kargs`         kernel arguments that name an image
`os_release`,   what a kernel image and a boot entry say
`uki`,
`entries`
`reading`,      bootable trees of directories, of images in repositories and in image directories
`trees`,
`layouts`
`images`        bootable images of OCI images in a repository
`variants`,     why an image has not the digest that is expected
`explain`
`check`         whether a kernel image boots what is in a repository
`sealing`       digests of images in manifests, and their signatures
`plan`,         a machine made ready to boot: which files, written whole or not at all, and the state of a deployment
`bootfiles`,
`state`,
`prepare`
==============  ==================================================================================================

Names are imported from here when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .check import Against, CheckResult, check_boot, check_boot_async
    from .disagreements import Disagreement, find_disagreements
    from .entries import BootEntry, EntryText, KernelEntry, TextEntry, UkiEntry, find_entries
    from .explain import BootExplanation, explain_boot
    from .images import (
        FoundBootImage,
        ensure_boot_image,
        ensure_boot_image_async,
        find_boot_image,
        find_boot_image_async,
        remove_boot_image,
        remove_boot_image_async,
    )
    from .kargs import Karg, choose_karg, format_karg, parse_kargs, replace_kargs, split_arguments
    from .labels import find_policy, label_tree, remove_labels
    from .layouts import imported_image
    from .os_release import OsRelease, parse_os_release
    from .policy import Policy, Specification
    from .prepare import (
        PreparedBoot,
        UnpreparedBoot,
        prepare_boot,
        prepare_boot_async,
        unprepare_boot,
        unprepare_boot_async,
    )
    from .sealing import SealCheck, Sealed, Signer, check_seals, check_seals_async, require_seals, seal_layout
    from .transform import transform_for_boot
    from .trees import directory_boot_tree, directory_boot_tree_async, image_boot_tree, image_boot_tree_async
    from .uki import Uki, read_at, read_uki
    from .variants import Variant, find_variant

__all__ = [
    "Against",
    "BootEntry",
    "BootExplanation",
    "CheckResult",
    "Disagreement",
    "EntryText",
    "FoundBootImage",
    "Karg",
    "KernelEntry",
    "OsRelease",
    "Policy",
    "PreparedBoot",
    "SealCheck",
    "Sealed",
    "Signer",
    "Specification",
    "TextEntry",
    "Uki",
    "UkiEntry",
    "UnpreparedBoot",
    "Variant",
    "check_boot",
    "check_boot_async",
    "check_seals",
    "check_seals_async",
    "choose_karg",
    "directory_boot_tree",
    "directory_boot_tree_async",
    "ensure_boot_image",
    "ensure_boot_image_async",
    "explain_boot",
    "find_boot_image",
    "find_boot_image_async",
    "find_disagreements",
    "find_entries",
    "find_policy",
    "find_variant",
    "format_karg",
    "image_boot_tree",
    "image_boot_tree_async",
    "imported_image",
    "label_tree",
    "parse_kargs",
    "parse_os_release",
    "prepare_boot",
    "prepare_boot_async",
    "read_at",
    "read_uki",
    "remove_boot_image",
    "remove_boot_image_async",
    "remove_labels",
    "replace_kargs",
    "require_seals",
    "seal_layout",
    "split_arguments",
    "transform_for_boot",
    "unprepare_boot",
    "unprepare_boot_async",
]

_HOMES = {
    "Against": "check",
    "BootEntry": "entries",
    "BootExplanation": "explain",
    "CheckResult": "check",
    "Disagreement": "disagreements",
    "EntryText": "entries",
    "FoundBootImage": "images",
    "Karg": "kargs",
    "KernelEntry": "entries",
    "OsRelease": "os_release",
    "Policy": "policy",
    "PreparedBoot": "prepare",
    "SealCheck": "sealing",
    "Sealed": "sealing",
    "Signer": "sealing",
    "Specification": "policy",
    "TextEntry": "entries",
    "Uki": "uki",
    "UkiEntry": "entries",
    "UnpreparedBoot": "prepare",
    "Variant": "variants",
    "check_boot": "check",
    "check_boot_async": "check",
    "check_seals": "sealing",
    "check_seals_async": "sealing",
    "choose_karg": "kargs",
    "directory_boot_tree": "trees",
    "directory_boot_tree_async": "trees",
    "ensure_boot_image": "images",
    "ensure_boot_image_async": "images",
    "explain_boot": "explain",
    "find_boot_image": "images",
    "find_boot_image_async": "images",
    "find_disagreements": "disagreements",
    "find_entries": "entries",
    "find_policy": "labels",
    "find_variant": "variants",
    "format_karg": "kargs",
    "image_boot_tree": "trees",
    "image_boot_tree_async": "trees",
    "imported_image": "layouts",
    "label_tree": "labels",
    "parse_kargs": "kargs",
    "parse_os_release": "os_release",
    "prepare_boot": "prepare",
    "prepare_boot_async": "prepare",
    "read_at": "uki",
    "read_uki": "uki",
    "remove_boot_image": "images",
    "remove_boot_image_async": "images",
    "remove_labels": "labels",
    "replace_kargs": "kargs",
    "require_seals": "sealing",
    "seal_layout": "sealing",
    "split_arguments": "kargs",
    "transform_for_boot": "transform",
    "unprepare_boot": "prepare",
    "unprepare_boot_async": "prepare",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{home}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | dict.fromkeys(__all__))
