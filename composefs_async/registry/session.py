"""What everything that one client does has in common: its configuration, its connections, and where images may be had.

Owns reading the configuration, once, and the way from a reference to the registries that are asked for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from .._aio.to_thread import in_thread
from ..errors import ComposefsError, ImagePolicyError
from ..progress import Message, ProgressCallback, SourceChosen
from .access import Access, Surroundings, Transfer
from .credentials import CredentialStore
from .endpoints import Endpoint
from .exchange import Exchange
from .policy import Policy, SigstoreKey, docker_scopes, load_policy
from .reference import Reference
from .registries_conf import load_registries_conf

__all__ = ["Place", "Session"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """One registry that may have a repository."""

    endpoint: Endpoint
    path: str
    """Path of the repository there."""
    mirror: bool = False

    @property
    def name(self) -> str:
        """Host and path, for messages."""
        return f"{self.endpoint.host}/{self.path}"

    def scopes(self, actions: str = "pull") -> tuple[str, ...]:
        """What a token must allow."""
        return (f"repository:{self.path}:{actions}",)


class Session:
    """Made by `open`; `aclose` closes its connections."""

    def __init__(
        self, access: Access, transfer: Transfer, progress: ProgressCallback | None, around: Surroundings
    ) -> None:
        self.access: Access = access
        self.transfer: Transfer = transfer
        self.around: Surroundings = around
        self.report: ProgressCallback = progress or _ignore
        self._conf = load_registries_conf(around, access.registries_conf)
        self._policy: Policy | None = None
        self._policy_loaded = False
        self._store = CredentialStore(access, around, self._conf.credential_helpers)
        self.exchange: Exchange = Exchange(access, transfer, around, self._store, self._report)
        self._chosen: set[tuple[str, str]] = set()
        self.received: int = 0
        """Bytes of blobs that have come over the network."""

    @classmethod
    async def open(cls, access: Access, transfer: Transfer, progress: ProgressCallback | None) -> Session:
        """Read the configuration.

        Raises:
            TransportError: it cannot be understood.
        """
        around = Surroundings.of(access)
        return await in_thread(lambda: cls(access, transfer, progress, around))

    async def aclose(self) -> None:
        """Close all connections."""
        await self.exchange.aclose()

    def _report(self, event: object) -> None:
        self.warn()
        self.report(event)  # type: ignore[arg-type]

    def warn(self) -> None:
        """Tell what has been noticed about files with credentials."""
        while self._store.warnings:
            self.report(Message(self._store.warnings.pop()))

    # -- places --------------------------------------------------------------------------------

    def places(self, reference: Reference, *, push: bool = False) -> list[Place]:
        """The registries to ask, in order: mirrors first, the one that *reference* names last.

        Raises:
            RegistryError: the configuration blocks the reference.
        """
        found = []
        for location in self._conf.locations(reference, push=push):
            logical = location.host == reference.domain
            endpoint = self.exchange.endpoint(location.host, insecure=location.insecure, logical=logical)
            found.append(Place(endpoint, location.path, location.mirror))
        return found

    def host(self, host: str) -> Endpoint:
        """The registry *host* itself, for what is no repository's."""
        insecure = self._conf.is_insecure(host)
        return self.exchange.endpoint(host, insecure=insecure, logical=True)

    async def first(self, reference: Reference, ask: Callable[[Place], Awaitable[T]]) -> tuple[Place, T]:
        """The answer of the first place that has one.

        Raises:
            ComposefsError: none has; the error of the last one, which the reference names, with the others' as notes.
        """
        failures: list[tuple[Place, ComposefsError]] = []
        for place in self.places(reference):
            try:
                result = await ask(place)
            except ImagePolicyError:
                raise
            except ComposefsError as error:
                failures.append((place, error))
            else:
                self._note_source(reference, place)
                return place, result
        self.warn()
        for place, failure in failures[:-1]:
            self.report(Message(f"mirror {place.name}: {failure}"))
        raise failures[-1][1]

    def _note_source(self, reference: Reference, place: Place) -> None:
        self.warn()
        if (reference.name, place.endpoint.host) not in self._chosen:
            self._chosen.add((reference.name, place.endpoint.host))
            self.report(SourceChosen(str(reference), place.endpoint.host, place.mirror))

    # -- policy --------------------------------------------------------------------------------

    async def demands(self, reference: Reference) -> tuple[Policy | None, list[SigstoreKey]]:
        """What the policy wants of an image before it is taken.

        Raises:
            ImagePolicyError: it rejects the image, or wants what cannot be checked.
        """
        policy = await self.policy()
        if policy is None:
            return None, []
        return policy, policy.check(str(reference), "docker", docker_scopes(reference))

    async def policy(self) -> Policy | None:
        """The policy that holds; None if there is none."""
        if not self._policy_loaded:
            self._policy = await in_thread(lambda: load_policy(self.access, self.around))
            self._policy_loaded = True
        return self._policy


def _ignore(event: object) -> None:
    pass
