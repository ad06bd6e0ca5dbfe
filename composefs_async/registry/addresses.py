"""Which hosts a registry may send us to: realms and redirects must not reach into the network of whoever pulls; no I/O.

Owns the classes of addresses.  Names are not resolved: only literals can be told, and ``localhost``.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum

__all__ = ["HostClass", "classify", "may_lead_to"]

_METADATA = frozenset({"fd00:ec2::254", "100.100.100.200"})
"""Of clouds, outside the link-local range: Amazon's by IPv6, and Alibaba's."""


class HostClass(IntEnum):
    """How near a host is."""

    PUBLIC = 0
    """A name, or an address that is none of the others."""
    PRIVATE = 1
    """RFC 1918 and unique local addresses."""
    LOOPBACK = 2
    FORBIDDEN = 3
    """Link-local, unspecified, multicast, or a cloud's metadata service."""


def classify(host: str) -> HostClass:
    """The class of *host*, a name or a literal without a port and without brackets."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return HostClass.LOOPBACK
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return HostClass.LOOPBACK if _is_odd_loopback(name) else HostClass.PUBLIC
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if str(address) in _METADATA or address.is_link_local or address.is_unspecified or address.is_multicast:
        return HostClass.FORBIDDEN
    if address.is_loopback:
        return HostClass.LOOPBACK
    return HostClass.PRIVATE if address.is_private else HostClass.PUBLIC


def _is_odd_loopback(name: str) -> bool:
    """Numbers that resolvers take for an IPv4 address: ``2130706433``, ``0x7f.1``."""
    return bool(name) and all(part.isdigit() or part.startswith("0x") for part in name.split(".") if part)


def may_lead_to(origin: str, target: str, *, credentials: bool = False) -> bool:
    """Whether the registry on the host *origin* may send us to the host *target*.

    Args:
        credentials: are shown there, so that only a registry in a private network may name a private address.
    """
    if origin.lower() == target.lower():
        return True
    there = classify(target)
    if there is HostClass.PUBLIC or (there is HostClass.PRIVATE and not credentials):
        return True
    return there is classify(origin) and there is not HostClass.FORBIDDEN
