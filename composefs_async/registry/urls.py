"""URLs of registries: how they are taken apart, put together and shown; no I/O.

What is shown has neither query nor user: signed URLs are secrets.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

__all__ = ["Origin", "add_query", "origin_of", "resolve_location", "shown"]

_PORTS = {"http": 80, "https": 443}
_LIMIT = 16 << 10


@dataclass(frozen=True, slots=True)
class Origin:
    """Who is spoken to: tokens and passwords are for one of them alone."""

    scheme: str
    host: str
    """In lower case, without brackets."""
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if _PORTS[self.scheme] == self.port else f":{self.port}")

    @property
    def authority(self) -> str:
        """Host, and port if it is an unusual one."""
        return str(self).partition("://")[2]


def origin_of(url: str) -> Origin:
    """The origin of an absolute http or https URL.

    Raises:
        ValueError: it is anything else.
    """
    if len(url) > _LIMIT or not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise ValueError("the URL is malformed")
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("the URL is not one of http or https")
    port = parts.port
    return Origin(parts.scheme, parts.hostname.lower(), _PORTS[parts.scheme] if port is None else port)


def resolve_location(base: str, location: str) -> str:
    """Where ``Location`` leads from *base*; without a fragment.

    Raises:
        ValueError: it is no http or https URL, or has a user in it.
    """
    # What browsers do, and servers count on: a space or a letter of another alphabet is escaped.
    escaped = quote(location.strip(), safe="%/:?#[]@!$&'()*+,;=~-._")
    url = urljoin(base, escaped)
    parts = urlsplit(url)
    origin_of(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL has a user in it")
    return urlunsplit(parts._replace(fragment=""))


def add_query(url: str, parameters: list[tuple[str, str]]) -> str:
    """*url* with more parameters behind those that it has."""
    parts = urlsplit(url)
    query = "&".join(filter(None, (parts.query, urlencode(parameters))))
    return urlunsplit(parts._replace(query=query, fragment=""))


def shown(url: str) -> str:
    """*url* for messages."""
    try:
        parts = urlsplit(url)
        text = f"{origin_of(url)}{parts.path}"
    except ValueError:
        return "a malformed URL"
    return text if len(text) <= 300 else f"{text[:300]}…"
