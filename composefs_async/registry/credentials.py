"""Which credentials belong to a registry: everything that podman, docker and bootc read, in one order.

Owns the order of places.  Does not own the syntax of a file (`auth_files`), nor talking to helpers (`helpers`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._aio.to_thread import in_thread
from ..errors import TransportError
from .access import Access, Credentials, Surroundings
from .auth_files import FILE_LIMIT, AuthFile, HelperNeeded, encode_entry, hub_key, parse_auth_file
from .helpers import ask_helper, erase_from_helper

__all__ = ["CredentialStore", "Found", "auth_file_paths", "forget_credentials", "login_file", "store_credentials"]

FILES = "containers-auth.json"
"""What stands for the files among ``credential-helpers`` of registries.conf."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search."""

    credentials: Credentials | None
    looked_in: tuple[str, ...]
    """Everything that was looked at and had nothing, up to what had it."""


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    required: bool = False
    legacy: bool = False


@dataclass(slots=True)
class CredentialStore:
    """Looks credentials up; what has been found is kept for its own lifetime.

    Args:
        helpers: ``credential-helpers`` of registries.conf.
    """

    access: Access
    around: Surroundings
    helpers: Sequence[str] | None = None
    warnings: list[str] = field(default_factory=list[str])
    """For people; filled while searching."""
    _known: dict[tuple[str, str], Found] = field(default_factory=dict[tuple[str, str], Found])

    async def find(self, host: str, path: str, *, logical: bool) -> Found:
        """The credentials for the repository *path* of *host*.

        Args:
            logical: it is the host that the user named, which explicit credentials are for.

        Raises:
            TransportError: a file cannot be read or understood.
            AuthenticationError: a helper fails.
        """
        given = self.access.credentials
        if given is not None and (logical or given.is_anonymous):
            return Found(None if given.is_anonymous else given, ("the command line",))
        key = (host, path)
        if key not in self._known:
            self._known[key] = await self._search(host, path)
        return self._known[key]

    async def _search(self, host: str, path: str) -> Found:
        looked: list[str] = []
        for helper in self.helpers or (FILES,):
            if helper == FILES:
                found = await self._search_files(host, path, looked)
            else:
                found = await ask_helper(helper, hub_key(host), self.around.variables, "registries.conf")
                looked.append(f"docker-credential-{helper}")
            if found is not None:
                return Found(found, tuple(looked))
        return Found(None, tuple(looked))

    async def _search_files(self, host: str, path: str, looked: list[str]) -> Credentials | None:
        for place in _places(self.access, self.around):
            file = await in_thread(lambda place=place: self._load(place))  # type: ignore[misc]
            looked.append(str(place.path))
            for found in file.find(host, path) if file is not None else ():
                if isinstance(found, Credentials):
                    return found
                credentials = await ask_helper(found.name, found.server, self.around.variables, str(place.path))
                if credentials is not None:
                    return credentials
        return None

    def _load(self, place: _Place) -> AuthFile | None:
        try:
            with open(place.path, "rb") as file:
                status = os.fstat(file.fileno())
                content = file.read(FILE_LIMIT + 1)
        except OSError as error:
            if place.required or not isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
                raise TransportError(f"{place.path}: {error.strerror}") from None
            return None
        if status.st_mode & 0o077 and status.st_uid == self.around.uid and os.path.isfile(place.path):
            self.warnings.append(f"{place.path} can be read by others; chmod 600 it")
        return parse_auth_file(content, str(place.path), legacy=place.legacy)


def auth_file_paths(access: Access, around: Surroundings) -> list[Path]:
    """The files that are looked at, in their order."""
    return [place.path for place in _places(access, around)]


def _places(access: Access, around: Surroundings) -> list[_Place]:
    if access.authfile is not None:
        return [_Place(Path("/dev/stdin") if str(access.authfile) == "-" else access.authfile, required=True)]
    if file := around.get("REGISTRY_AUTH_FILE"):
        return [_Place(Path(file))]
    if directory := around.get("DOCKER_CONFIG"):
        return [_Place(Path(directory) / "config.json")]
    places = [*(_bootc_place(around) if access.bootc_auth else ()), _Place(login_file(access, around))]
    places += [
        _Place(around.config_home / "containers/auth.json"),
        _Place(around.home / ".docker/config.json"),
        _Place(around.home / ".dockercfg", legacy=True),
    ]
    return places


def _bootc_place(around: Surroundings) -> list[_Place]:
    """The first that exists, in the order of bootc's code."""
    if around.uid == 0:
        names = [around.system(f"{top}/ostree/auth.json") for top in ("run", "etc", "usr/lib")]
    else:
        runtime = [around.runtime / "ostree/auth.json"] if around.runtime else []
        names = [*runtime, around.config_home / "ostree/auth.json"]
    return [_Place(path) for path in names if path.exists()][:1]


def login_file(access: Access, around: Surroundings) -> Path:
    """The file that ``login`` writes."""
    if access.authfile is not None:
        return access.authfile
    if file := around.get("REGISTRY_AUTH_FILE"):
        return Path(file)
    runtime = around.runtime or around.system(f"run/containers/{around.uid}")
    return runtime / "containers/auth.json" if around.runtime else runtime / "auth.json"


# -- login and logout --------------------------------------------------------------------------


async def store_credentials(path: Path, key: str, username: str, password: str) -> None:
    """Write an entry into a file, atomically and readable by its owner alone; everything else in it stays."""

    def change(document: dict[str, Any]) -> bool:
        document.setdefault("auths", {})[key] = encode_entry(username, password)
        return True

    await in_thread(lambda: _change(path, change))


async def forget_credentials(access: Access, around: Surroundings, key: str) -> bool:
    """Remove the entry for *key* from the file that ``login`` writes, and from the helper that the file names.

    Returns:
        Whether there was one.
    """
    path = login_file(access, around)

    def change(document: dict[str, Any]) -> bool:
        auths = document.get("auths")
        return isinstance(auths, dict) and auths.pop(key, None) is not None

    removed = await in_thread(lambda: path.exists() and _change(path, change))
    if await in_thread(path.exists):
        file = parse_auth_file(await in_thread(path.read_bytes), str(path))
        for found in file.find(key.partition("/")[0], key.partition("/")[2]):
            if isinstance(found, HelperNeeded):
                removed |= await erase_from_helper(found.name, found.server, around.variables, str(path))
    return removed


def _change(path: Path, change: Any) -> bool:
    content = path.read_bytes() if path.exists() else b"{}"
    parse_auth_file(content, str(path))
    document: dict[str, Any] = json.loads(content or b"{}")
    if not change(document):
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file, indent="\t")
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return True
