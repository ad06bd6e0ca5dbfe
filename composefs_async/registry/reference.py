"""References to images in registries: ``docker://HOST/PATH[:TAG][@DIGEST]``; no I/O.

Owns the grammar of names, tags and digests, and the completion of short forms (github.com/distribution/reference).
Does not own which host is asked in the end (`registries_conf`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..errors import InvalidNameError

__all__ = ["DOCKER_HUB", "TRANSPORT", "Reference", "check_digest", "check_tag_name", "parse_reference"]

TRANSPORT = "docker://"
DOCKER_HUB = "docker.io"

_PATH_LIMIT = 255
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_QUOTED = 160


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of a registry, and perhaps what is meant in it.  Complete: nothing is left to defaults."""

    domain: str
    """The registry's host, with a port if one was given, as the user wrote it."""
    path: str
    """Path of the repository."""
    tag: str | None = None
    digest: str | None = None
    """Decides if there is a tag, too."""

    @property
    def name(self) -> str:
        """Host and repository."""
        return f"{self.domain}/{self.path}"

    @property
    def which(self) -> str:
        """What manifests are asked for by: the digest, else the tag."""
        return self.digest or self.tag or "latest"

    @property
    def canonical(self) -> str:
        """Without the transport."""
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return f"{TRANSPORT}{self.canonical}"

    def with_digest(self, digest: str) -> Reference:
        """The reference with *digest* in the place of its own."""
        return replace(self, digest=digest)

    def with_tag(self, tag: str) -> Reference:
        """The reference with *tag* in the place of its own, and without a digest."""
        return replace(self, tag=check_tag_name(tag), digest=None)


def parse_reference(text: str, *, default_tag: str | None = "latest") -> Reference:
    """Parse ``docker://NAME[:TAG][@DIGEST]``.

    Args:
        default_tag: if there is neither tag nor digest; None for the name of a repository.

    Raises:
        InvalidNameError: *text* is anything else; the message says what is wrong with it.
    """
    if not text.startswith(TRANSPORT):
        meant = text.removeprefix("docker:").lstrip("/")
        hint = f"; did you mean {TRANSPORT}{_brief(meant)}?" if meant and "://" not in text else ""
        raise InvalidNameError(
            _brief(text), f"not a reference to a registry, which is spelled docker://HOST/NAME[:TAG]{hint}"
        )
    rest = text[len(TRANSPORT) :]
    _check_common_mistakes(text, rest)
    name, at, digest = rest.partition("@")
    if at:
        _check(text, lambda: check_digest(digest))
    tag = None
    head, colon, last = name.rpartition(":")
    if colon and "/" not in last:
        name, tag = head, last
        if not _TAG.fullmatch(tag):
            raise InvalidNameError(_brief(text), f"{tag[:_QUOTED]!r} is not a tag")
    domain, path = _split(name)
    _check_name(text, domain, path)
    if tag is None and not at:
        tag = default_tag
    return Reference(domain, path, tag, digest if at else None)


def check_digest(digest: str) -> str:
    """Return *digest* if it may stand in a URL or a file name.

    Raises:
        ValueError: it is not sha256, sha384 or sha512 with as many hexadecimal digits as that has, in lower case.
    """
    algorithm, colon, digits = digest.partition(":")
    length = _DIGEST_LENGTHS.get(algorithm)
    if not colon or length is None:
        raise ValueError(f"digest {digest[:_QUOTED]!r} is none of sha256, sha384 and sha512")
    if len(digits) != length or digits.strip("0123456789abcdef"):
        raise ValueError(f"digest {digest[:_QUOTED]!r} has not {length} hexadecimal digits in lower case")
    return digest


def check_tag_name(tag: str) -> str:
    """Return *tag* if a registry can have it.

    Raises:
        InvalidNameError: it cannot.
    """
    if not _TAG.fullmatch(tag):
        raise InvalidNameError(tag[:_QUOTED], "a tag has 1 to 128 letters, digits, '_', '.' and '-'")
    return tag


def _check(text: str, check: object) -> None:
    try:
        check()  # type: ignore[operator]
    except ValueError as error:
        raise InvalidNameError(_brief(text), str(error)) from None


def _check_common_mistakes(text: str, rest: str) -> None:
    what = _brief(text)
    if not rest:
        raise InvalidNameError(what, "the name is missing: docker://HOST/NAME[:TAG]")
    if any(char.isspace() for char in text):
        raise InvalidNameError(what, "a reference has no spaces")
    if "://" in rest:
        raise InvalidNameError(what, "give no scheme: docker://HOST/NAME[:TAG]")
    if "?" in rest or "#" in rest:
        raise InvalidNameError(what, "a reference has no '?' and no '#'")
    if _IMAGE_ID.fullmatch(rest):
        raise InvalidNameError(what, "this looks like the id of an image; registries know names, and digests after '@'")


def _split(name: str) -> tuple[str, str]:
    """Domain and path, completed as Docker does."""
    first, slash, rest = name.partition("/")
    is_domain = slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first)
    domain, path = (first, rest) if is_domain else (DOCKER_HUB, name)
    if domain == "index.docker.io":
        domain = DOCKER_HUB
    if domain == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    return domain, path


def _check_name(text: str, domain: str, path: str) -> None:
    what = _brief(text)
    found = _DOMAIN.fullmatch(domain)
    if not found:
        raise InvalidNameError(what, f"{domain[:_QUOTED]!r} is not the name of a host")
    if found["port"] and not 1 <= int(found["port"]) <= 65535:
        raise InvalidNameError(what, f"{found['port']} is not a port")
    if path.lower() != path:
        raise InvalidNameError(what, f"names of repositories are lower case: {path[:_QUOTED]!r}")
    if path.endswith("/") or "//" in path or not path:
        raise InvalidNameError(what, "a part of the name is empty")
    if {".", ".."} & set(path.split("/")):
        raise InvalidNameError(what, "'.' and '..' are no parts of a name")
    if not _PATH.fullmatch(path):
        raise InvalidNameError(what, f"{path[:_QUOTED]!r} is not the name of a repository")
    if len(path) > _PATH_LIMIT:
        raise InvalidNameError(what, f"the name has {len(path)} characters, more than {_PATH_LIMIT}")


def _brief(text: str) -> str:
    shown = text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"
    return shown if shown.isprintable() and shown else repr(shown)
