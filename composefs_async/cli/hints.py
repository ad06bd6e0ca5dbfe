"""What was probably meant: commands known by other words, and images named as other programs name them."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

__all__ = ["meant_commands", "meant_reference"]

_PROGRAM = "composefs-async"
_MOST = 3
_CLOSE = 0.75
"""How alike a word must be to a command of the group, so that no other group is looked at."""

# Words of podman, docker, skopeo, umoci, ostree and git, and what does that here.
_FOREIGN = {
    "build": "create-image",
    "check": "fsck",
    "commit": "create-image",
    "delete": "oci untag",
    "df": "du",
    "export": "oci dump",
    "history": "oci layers",
    "image": "oci images",
    "image history": "oci layers",
    "image inspect": "oci inspect",
    "image list": "oci images",
    "image ls": "oci images",
    "image mount": "oci mount",
    "image prune": "gc",
    "image pull": "oci pull",
    "image push": "oci push",
    "image rm": "oci untag",
    "image tag": "oci tag",
    "image tree": "oci layers",
    "image unmount": "umount",
    "image untag": "oci untag",
    "info": "doctor",
    "list": "oci images",
    "list-tags": "oci tags",
    "load": "oci pull",
    "ls": "oci images",
    "prune": "gc",
    "repair": "fsck",
    "rm": "oci untag",
    "rmi": "oci untag",
    "save": "oci push",
    "show": "oci inspect",
    "system df": "du",
    "system prune": "gc",
    "unmount": "umount",
    "unpack": "oci mount",
    "verify": "fsck",
}

_BOOTC = ("registry", "ostree-unverified-registry", "ostree-remote-registry", "ostree-image-signed", "http", "https")
"""Prefixes of what is in a registry, for programs of bootc and rpm-ostree, and in browsers."""
_HOST = re.compile(r"(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9.-]+(?=:[0-9]+/))(?::[0-9]+)?/[^/].*")
_SHORT = re.compile(r"[a-z0-9]+(?:[._/-][a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9._-]*)?(?:@sha256:[0-9a-f]{64})?")


def meant_commands(group: str, words: list[str], names: Collection[str], elsewhere: Collection[str]) -> list[str]:
    """The commands that *words* may stand for: a name of the group, or a whole line.

    Args:
        group: the command path without the program's name, empty at the top.
        words: what stands behind it on the command line.
        names: of the commands in the group.
        elsewhere: other commands as their paths, such as ``oci pull``.
    """
    word = words[0]
    for known in (" ".join(words[:2]), word):
        if (meant := _FOREIGN.get(known, "")) in elsewhere:
            return [_from(group, meant)]
    last: dict[str, list[str]] = {}
    for path in sorted(elsewhere, key=lambda path: path.count(" ")):
        last.setdefault(path.rpartition(" ")[2], []).append(_from(group, path))
    if word in last:
        return last[word][:_MOST]
    own = get_close_matches(word, names, cutoff=_CLOSE)
    return own or [path for close in get_close_matches(word, last) for path in last[close]][:_MOST]


def _from(group: str, path: str) -> str:
    """How the command *path* is called: by its name alone if it is in the same group."""
    above, _, name = path.rpartition(" ")
    return name if above == group else f"{_PROGRAM} {path}"


def meant_reference(text: str) -> str:
    """The reference in our spelling that *text*, which is none, stands for in other programs; empty if unknown."""
    prefix, colon, rest = text.partition(":")
    if colon and prefix in _BOOTC:
        rest = rest.removeprefix("docker://").lstrip("/").removeprefix("registry:")
        return f"docker://{rest}" if rest else ""
    if _HOST.fullmatch(text):
        return f"docker://{text}"
    if _SHORT.fullmatch(text):
        name = text if "/" in text else f"library/{text}"
        return f"docker://docker.io/{name}"
    return ""
