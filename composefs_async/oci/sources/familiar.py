"""Names of images as people write them, ``alpine``, and whole, ``docker.io/library/alpine:latest``; no I/O."""

from __future__ import annotations

import re

__all__ = ["normalized_name"]

_DOCKER_HUB = "docker.io"
# github.com/distribution/reference, regexp.go: a path of lower case words, a tag.
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def normalized_name(name: str) -> str | None:
    """The whole name, with a registry and a tag; None if *name* is none that an image can have, or has a digest."""
    if "@" in name:
        return None
    domain, slash, rest = name.partition("/")
    if not slash or not ("." in domain or ":" in domain or domain == "localhost" or domain.lower() != domain):
        domain, rest = _DOCKER_HUB, name
    if domain == "index.docker.io":
        domain = _DOCKER_HUB
    path, colon, tag = rest.partition(":")
    if domain == _DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    tag = tag if colon else "latest"
    if not (_DOMAIN.fullmatch(domain) and _PATH.fullmatch(path) and _TAG.fullmatch(tag)):
        return None
    return f"{domain}/{path}:{tag}"
