"""How registries are reached, and how much is transferred at once: the parameters of everything in this room.

Owns the values that users give, and the environment that they leave out.  Every default is what podman would do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .secret import Secret

__all__ = ["Access", "Credentials", "Surroundings", "Transfer"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a registry is shown.  Secrets are not in its text."""

    username: str = ""
    password: Secret = field(default_factory=lambda: Secret(""))
    identity_token: Secret | None = None
    """To be exchanged for access tokens."""
    registry_token: Secret | None = None
    """An access token itself; sent as it is."""
    origin: str = ""
    """Where it comes from, for messages."""

    @classmethod
    def anonymous(cls) -> Credentials:
        """Show nothing, whatever is stored."""
        return cls()

    @classmethod
    def basic(cls, username: str, password: str, origin: str = "") -> Credentials:
        """A name and a password."""
        return cls(username, Secret(password), origin=origin)

    @classmethod
    def token(cls, text: str, origin: str = "") -> Credentials:
        """An access token."""
        return cls(registry_token=Secret(text), origin=origin)

    @property
    def is_anonymous(self) -> bool:
        """True if there is neither a password nor a token."""
        return not (self.username or self.password or self.identity_token or self.registry_token)


@dataclass(frozen=True, slots=True)
class Access:
    """How registries are reached."""

    credentials: Credentials | None = None
    """For the registry that a reference names, never for its mirrors; None looks where podman and docker keep them."""
    authfile: Path | None = None
    """The only file that credentials are looked for in."""
    tls_verify: bool | None = None
    """False tolerates certificates that are not valid, and HTTP without TLS; None leaves it to registries.conf."""
    cert_dir: Path | None = None
    """Directory of certificates for the registry, in place of ``certs.d``."""
    registries_conf: Path | None = None
    policy: Path | Literal["insecure"] | None = None
    """A policy.json; ``"insecure"`` accepts everything."""
    bootc_auth: bool = False
    """Look also where bootc and ostree keep credentials."""
    environ: Mapping[str, str] | None = None
    """In place of the process's environment."""
    user_agent: str = ""
    """Follows ours in the header ``User-Agent``."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """How content is transferred."""

    connections: int = 8
    """To each host at once."""
    chunk_size: int = 16 << 20
    """Bytes of a blob that are asked for at once; from 64 KiB to 1 GiB."""
    parallel_size: int = 32 << 20
    """Larger blobs come over several connections at once."""
    look_ahead: int = 256 << 20
    """Bytes that a blob may be ahead of whoever unpacks it."""
    retries: int = 5
    """After a failure, unless something has been achieved meanwhile."""
    retry_delay: float = 0.5
    """Seconds; grows with each attempt."""
    spool: bool = True
    """Keep what has arrived in files, so that the next pull goes on from there after this one was killed."""
    spool_directory: Path | None = None
    """In place of one inside the repository."""
    keep_blobs: bool = False
    """Keep layers also as they were shipped, so that they can be pushed bit for bit."""
    link: Literal["auto", "require", "none"] = "auto"
    """Share content with the files of a store on the same file system (reflinks): where possible, everywhere, never."""
    partial: bool = True
    """Of zstd:chunked layers fetch only the files that the repository lacks."""
    partial_size: int = 1 << 20
    """Smaller layers are fetched whole."""
    connect_timeout: float = 15.0
    """Seconds for a connection, and for TLS on it."""
    header_timeout: float = 60.0
    """Seconds until an answer begins."""
    idle_timeout: float = 30.0
    """Seconds without a byte after which a connection counts as broken."""

    def __post_init__(self) -> None:
        if self.connections < 1 or not 64 << 10 <= self.chunk_size <= 1 << 30 or self.retries < 0:
            raise ValueError("connections must be at least 1, chunk_size from 64 KiB to 1 GiB, retries not negative")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where configuration is looked for: the environment, and the user."""

    variables: Mapping[str, str]
    """Variables of the environment."""
    uid: int
    root: Path = Path("/")
    """Root of the system's files; tests give their own."""

    @classmethod
    def of(cls, access: Access) -> Surroundings:
        """The environment of this process, unless *access* says otherwise."""
        environ = os.environ if access.environ is None else access.environ
        return cls(environ, os.geteuid())

    def get(self, name: str) -> str | None:
        """A variable that is set and not empty."""
        return self.variables.get(name) or None

    @property
    def home(self) -> Path:
        """Home directory of the user, as ``HOME`` says; a path that does not exist if it is not set."""
        return Path(self.get("HOME") or "/nonexistent")

    @property
    def config_home(self) -> Path:
        """Directory of the user's configuration, as ``XDG_CONFIG_HOME`` says or ``~/.config``."""
        found = self.get("XDG_CONFIG_HOME")
        return Path(found) if found else self.home / ".config"

    @property
    def runtime(self) -> Path | None:
        """Directory of the session, as ``XDG_RUNTIME_DIR`` says; None if it is not set."""
        found = self.get("XDG_RUNTIME_DIR")
        return Path(found) if found else None

    def system(self, path: str) -> Path:
        """A file of the system."""
        return self.root / path.lstrip("/")

    def containers_directories(self) -> list[Path]:
        """The directories of containers' configuration, the most special one first."""
        return [self.config_home / "containers", self.system("etc/containers"), self.system("usr/share/containers")]
