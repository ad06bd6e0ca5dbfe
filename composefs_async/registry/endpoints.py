"""A registry as it is reached: host, scheme, and what has been learned about it.  No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from .gates import Gate
from .reference import DOCKER_HUB

__all__ = ["Endpoint"]

_HUB_CONTACT = "registry-1.docker.io"


@dataclass(slots=True)
class Endpoint:
    """One registry of one client."""

    host: str
    """As references and configuration have it, with its port."""
    insecure: bool
    logical: bool
    """The user has named it, and explicit credentials are for it."""
    gate: Gate = field(repr=False)
    scheme: str | None = None
    """Once it is known."""
    ranges: bool | None = None
    """Whether it gives parts of blobs, once that is known."""
    no_mounts: bool = False

    @property
    def contact(self) -> str:
        """The host that is connected to."""
        return _HUB_CONTACT if self.host == DOCKER_HUB else self.host

    @property
    def credentials_host(self) -> str:
        """The host in whose name credentials are kept."""
        return self.host
