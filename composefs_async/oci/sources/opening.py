"""From a reference, ``TRANSPORT:REST``, to the source that it names.

Owns the table of transports.  Each is a module of this package that has the functions of `Transport`.  The source that
a reference opens knows which image is meant, so that `ImageSource.resolve` needs neither tag nor digest.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractAsyncContextManager
from typing import Protocol, cast

from ...errors import InvalidNameError
from ..limits import Limits
from .base import ImageSource

__all__ = ["Transport", "check_reference", "is_reference", "open_source", "transport_of"]

_TRANSPORTS: dict[str, str] = {
    "oci": ".layout",
    "oci-archive": ".archive",
    "docker-archive": ".archive",
    "archive": ".archive",
    "dir": ".directory",
    "docker-daemon": ".daemon",
    "containers-storage": ".storage.source",
    "docker-overlay2": ".storage.docker",
    "tarball": ".tarball",
    "docker": ".registry",
}


class Transport(Protocol):
    """What the module of a transport offers."""

    def check_reference(self, reference: str, /) -> None:
        """Check the spelling of a reference that begins with the name of the transport.  May look at files.

        Raises:
            InvalidNameError: it is not spelled as the transport's references are.
        """
        ...

    def open_reference(self, reference: str, limits: Limits, /) -> AbstractAsyncContextManager[ImageSource]:
        """Return what opens the source that a reference means, and closes it; nothing happens before.

        Raises:
            InvalidNameError: when it is opened, as `check_reference`.
        """
        ...


def is_reference(text: str) -> bool:
    """Whether *text* begins with the name of a transport."""
    return text.partition(":")[0] in _TRANSPORTS and ":" in text


def transport_of(reference: str) -> str:
    """The name of the transport that *reference* begins with.

    Raises:
        InvalidNameError: it begins with none that is known.
    """
    name, colon, _ = reference.partition(":")
    if not colon or name not in _TRANSPORTS:
        known = ", ".join(f"{each}:" for each in _TRANSPORTS)
        raise InvalidNameError(reference, f"not a reference to an image, which begins with one of {known}")
    return name


def open_source(reference: str, limits: Limits | None = None) -> AbstractAsyncContextManager[ImageSource]:
    """Return a context manager that opens the source which *reference* means, and closes it.

    Args:
        limits: what an image may make us do; the size of documents matters here.

    Raises:
        InvalidNameError: *reference* is not spelled right; perhaps only when it is opened.
    """
    return _transport(reference).open_reference(reference, limits or Limits())


def check_reference(reference: str) -> str:
    """Return *reference* if it is spelled right.  Blocks: it may depend on the files that there are.

    Raises:
        InvalidNameError: it is not.
    """
    _transport(reference).check_reference(reference)
    return reference


def _transport(reference: str) -> Transport:
    return cast("Transport", importlib.import_module(_TRANSPORTS[transport_of(reference)], __package__))
