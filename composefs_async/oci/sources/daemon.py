"""Images of a running Docker, or podman's service: ``docker-daemon:NAME:TAG``, ``NAME@DIGEST`` or ``sha256:ID``.

Owns the references and the two requests: what the image is, and its archive, which is read once as it comes.  Only Unix
sockets are spoken to.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

from ...errors import ImageNotFoundError, InvalidNameError, OciError, TransportError
from ..importing.layers import ImportRun
from ..importing.one_pass import OnePassArchive, ReadOnce, Received
from ..jsondoc import DOCUMENT_LIMIT, brief, parse_json
from ..limits import Limits
from ..platforms import Platform
from .archive_image import ArchiveWanted
from .environment import variable
from .unix_http import Answer, request

__all__ = ["DaemonSource", "check_reference", "open_reference", "socket_path"]

_SOCKET = "/var/run/docker.sock"
_ID = re.compile(r"sha256:[0-9a-f]{64}")
_LAST = re.compile(r"[^/]+[:@][^/]+")


def check_reference(reference: str) -> None:
    """Check the spelling of ``docker-daemon:NAME:TAG``, ``docker-daemon:NAME@DIGEST`` or ``docker-daemon:sha256:ID``.

    Raises:
        InvalidNameError: *reference* is not spelled so; a name alone would bring all its tags.
    """
    rest = reference.partition(":")[2]
    if not _ID.fullmatch(rest) and not _LAST.fullmatch(rest.rpartition("/")[2]):
        raise InvalidNameError(reference, "say which image: docker-daemon:NAME:TAG, NAME@DIGEST or sha256:ID")


@asynccontextmanager
async def open_reference(reference: str, limits: Limits) -> AsyncIterator[DaemonSource]:
    """An image of the daemon that DOCKER_HOST names; nothing is asked before it is pulled.

    Raises:
        InvalidNameError: as `check_reference`.
        TransportError: DOCKER_HOST is no Unix socket.
    """
    check_reference(reference)
    yield DaemonSource(reference.partition(":")[2], limits, socket_path())


def socket_path() -> str:
    """The socket of the daemon.

    Raises:
        TransportError: DOCKER_HOST is of another kind.
    """
    host = variable("DOCKER_HOST")
    if host is None:
        return _SOCKET
    if not host.startswith("unix://"):
        raise TransportError(f"DOCKER_HOST is {host}: only unix:// is supported; pipe 'docker save' into '-' instead")
    return host.removeprefix("unix://")


class DaemonSource(ReadOnce):
    """One image of a daemon, which is read once, by `pull`."""

    def __init__(self, name: str, limits: Limits, path: str = _SOCKET) -> None:
        super().__init__(f"docker-daemon:{name}")
        self._name, self._limits, self._path = name, limits, path

    async def receive(self, run: ImportRun, platform: Platform | None) -> Received:
        """Store the layers as the daemon sends them; see `OnePassSource`.

        Raises:
            ImageNotFoundError: the daemon has no such image.
            TransportError: it cannot be asked, or refuses.
            As `ImageSource.resolve`.
        """
        target = f"/images/{quote(self._name, safe='')}"
        async with request(self._path, "GET", f"{target}/json") as answer:
            config_digest, diff_ids = self._described(await self._checked(answer))
        wanted = ArchiveWanted("docker-archive", self.reference, config_digest=config_digest)
        query = f"?platform={quote(_platform_json(platform), safe='')}" if platform is not None else ""
        async with request(self._path, "GET", f"{target}/get{query}") as answer:
            if answer.status != 200:
                await self._checked(answer)
            archive = OnePassArchive(answer.body, wanted, self._limits, known=diff_ids)
            return await archive.receive(run, None)

    def _described(self, raw: bytes) -> tuple[str, tuple[str, ...]]:
        """The image id, which is the digest of the config, and the diff_ids."""
        document = parse_json(raw, f"answer of {self._path}")
        found, rootfs = document.get("Id", str) or "", document.child("RootFS")
        digest = found if found.startswith("sha256:") else f"sha256:{found}"
        if not _ID.fullmatch(digest):
            raise OciError(f"answer of {self._path}", f"{brief(found)} is no id of an image")
        return digest, tuple(rootfs.list_of("Layers", str) or ()) if rootfs is not None else ()

    async def _checked(self, answer: Answer) -> bytes:
        raw = await answer.read(DOCUMENT_LIMIT)
        if answer.status == 200:
            return raw
        try:
            said = parse_json(raw, "").get("message", str) or ""
        except OciError:
            said = ""
        if answer.status == 404:
            raise ImageNotFoundError(self.reference, reason=said)
        raise TransportError(f"{self.reference}: the daemon answered {answer.status} {said}".rstrip())


def _platform_json(platform: Platform) -> str:
    variant = f',"variant":"{platform.variant}"' if platform.variant else ""
    return f'{{"os":"{platform.os}","architecture":"{platform.architecture}"{variant}}}'
