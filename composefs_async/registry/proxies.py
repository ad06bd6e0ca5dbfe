"""Which proxy a host is reached through, by the variables that Go's programs obey; no I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from .addresses import HostClass, classify

__all__ = ["proxy_for"]


def proxy_for(environ: Mapping[str, str], scheme: str, host: str, port: int) -> str | None:
    """The URL of the proxy for ``scheme://host:port``; None for none.

    Loopback is never reached through a proxy.  ``HTTP_PROXY`` in upper case is not believed where a request may have
    set it: in a CGI program.
    """
    if classify(host) is HostClass.LOOPBACK or _is_excepted(_get(environ, "no_proxy") or "", host, port):
        return None
    variable = f"{scheme}_proxy"
    found = environ.get(variable)
    if not found and not (scheme == "http" and "REQUEST_METHOD" in environ):
        found = environ.get(variable.upper())
    found = found or _get(environ, "all_proxy")
    if not found:
        return None
    return found if "://" in found else f"http://{found}"


def _get(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name) or environ.get(name.upper()) or None


def _is_excepted(exceptions: str, host: str, port: int) -> bool:
    host = host.lower().rstrip(".")
    return any(_matches(each.strip().lower(), host, port) for each in exceptions.split(",") if each.strip())


def _matches(pattern: str, host: str, port: int) -> bool:
    if pattern == "*":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if "/" in pattern:
        try:
            return address is not None and address in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    name, colon, wanted = pattern.rpartition(":")
    if colon and wanted.isdigit() and ":" not in name.strip("[]"):
        if int(wanted) != port:
            return False
        pattern = name
    pattern = pattern.strip("[]")
    if address is not None:
        return pattern == str(address) or pattern == host
    pattern = pattern.removeprefix("*")
    if pattern.startswith("."):
        return host.endswith(pattern) or host == pattern[1:]
    return host == pattern or host.endswith(f".{pattern}")
