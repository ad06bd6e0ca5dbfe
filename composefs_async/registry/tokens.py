"""Authorization: what a registry is shown, and where tokens come from (distribution, spec/auth).

Owns the choice among challenges, the requests to token servers, and the cache of tokens, in memory only.  A token and
a password go to the origin whose challenge they answer, or to the realm that it names, nowhere else.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

from anyio import Lock, current_time

from ..errors import AuthenticationError, TransportError
from .access import Credentials
from .addresses import may_lead_to
from .answers import ERROR_LIMIT, parse_error
from .challenge import Challenge
from .connections import Body, Connections
from .credentials import CredentialStore, Found
from .endpoints import Endpoint
from .retrying import RETRYABLE_STATUSES, FailedAttemptError, retry_after
from .secret import Secret
from .urls import Origin, add_query, origin_of, shown

__all__ = ["Authenticator"]

_CLIENT = "composefs-async"
_TOKEN_LIMIT = 1 << 20
_TOKEN_TIMEOUT = 30.0
_SHORTEST = 60.0
"""Seconds that a token is valid at least (distribution, spec/auth/token.md)."""

Attempt = Callable[[str, str, Callable[[], Awaitable[Secret]]], Awaitable[Secret]]
"""Runs attempts at something: what, host, and one attempt."""


@dataclass(frozen=True, slots=True)
class _Realm:
    """What a challenge says about a token server."""

    url: str
    service: str
    extra: tuple[str, ...]
    """Scopes that are no repository's, such as ``aws``."""


@dataclass(slots=True)
class _Token:
    text: Secret
    renew_at: float


@dataclass(slots=True)
class _Registry:
    """What is known of one origin."""

    realm: _Realm | None = None
    basic: bool = False
    tokens: dict[frozenset[str], _Token] = field(default_factory=dict[frozenset[str], _Token])
    refresh: Secret | None = None
    lock: Lock = field(default_factory=Lock)


class Authenticator:
    """Knows what to show to which registry.

    Args:
        attempt: repeats a request to a token server as others are repeated.
    """

    def __init__(self, connections: Connections, store: CredentialStore, attempt: Attempt) -> None:
        self._connections, self._store, self._attempt = connections, store, attempt
        self._registries: dict[tuple[Origin, bool], _Registry] = {}

    def _registry(self, endpoint: Endpoint, origin: Origin) -> _Registry:
        return self._registries.setdefault((origin, endpoint.logical), _Registry())

    async def known(self, endpoint: Endpoint, origin: Origin, path: str, scopes: Sequence[str]) -> str | None:
        """The header to begin with: None before the first challenge, so that it names realm and service."""
        registry = self._registry(endpoint, origin)
        if registry.basic:
            found = await self._find(endpoint, path)
            return None if found.credentials is None else _basic(found.credentials)
        if registry.realm is None:
            return None
        return await self._bearer(endpoint, origin, path, registry, scopes, None)

    async def answer(
        self,
        endpoint: Endpoint,
        origin: Origin,
        path: str,
        scopes: Sequence[str],
        challenges: Sequence[Challenge],
        refused: str | None,
    ) -> str:
        """The header that answers a 401.

        Args:
            refused: the header that was answered so.

        Raises:
            AuthenticationError: there is none, or not another one.
        """
        registry = self._registry(endpoint, origin)
        found = await self._find(endpoint, path)
        scope = " ".join(scopes)
        bearer = next((each for each in challenges if each.scheme == "bearer" and "realm" in each.parameters), None)
        if bearer is not None:
            wanted = tuple(bearer.parameters.get("scope", "").split())
            extra = tuple(each for each in wanted if not each.startswith(("repository:", "registry:")))
            url = _check_realm(endpoint, origin, bearer.parameters["realm"], scope)
            registry.realm = _Realm(url, bearer.parameters.get("service", ""), extra)
            registry.basic = False
            together = _union(wanted, scopes)
            header = await self._bearer(endpoint, origin, path, registry, together, refused)
            if header != refused:
                return header
        elif any(each.scheme == "basic" for each in challenges) and found.credentials is not None:
            if origin.scheme != "https" and not endpoint.insecure:
                raise AuthenticationError(endpoint.host, scope, reason="it wants a password without TLS")
            registry.basic = True
            shown_now = _basic(found.credentials)
            if shown_now is not None and shown_now != refused:
                return shown_now
        raise self.refusal(endpoint, scope, found, 401, _offers(challenges) if bearer is None else "", refused)

    def refusal(
        self, endpoint: Endpoint, scope: str, found: Found, status: int, said: str, header: str | None
    ) -> AuthenticationError:
        """The error for a refusal: what was said, what was shown, or where was looked."""
        shown_as = ""
        looked: tuple[str, ...] = ()
        if found.credentials is not None:
            user = found.credentials.username or "a token"
            shown_as = f"it was shown the credentials of {user} from {found.credentials.origin or 'the command line'}"
        else:
            looked = found.looked_in
        hint = ""
        if status == 403 and header is not None:
            hint = "the account may lack access, or the repository does not exist"
        reason = "; ".join(filter(None, (f"it answered {status}" + (f" {said}" if said else ""), shown_as, hint)))
        return AuthenticationError(endpoint.host, scope, looked, reason)

    async def found(self, endpoint: Endpoint, path: str) -> Found:
        """What the store has."""
        return await self._find(endpoint, path)

    async def _find(self, endpoint: Endpoint, path: str) -> Found:
        return await self._store.find(endpoint.credentials_host, path, logical=endpoint.logical)

    # -- tokens --------------------------------------------------------------------------------

    async def _bearer(
        self,
        endpoint: Endpoint,
        origin: Origin,
        path: str,
        registry: _Registry,
        scopes: Sequence[str],
        refused: str | None,
    ) -> str:
        found = await self._find(endpoint, path)
        if found.credentials is not None and found.credentials.registry_token is not None:
            return f"Bearer {found.credentials.registry_token.reveal()}"
        realm = registry.realm
        assert realm is not None
        wanted = _union(realm.extra, scopes)
        key = frozenset(wanted)
        async with registry.lock:
            token = _covering(registry.tokens, key)
            if token is not None and token.renew_at > current_time():
                header = f"Bearer {token.text.reveal()}"
                if header != refused:
                    return header
            registry.tokens = {each: kept for each, kept in registry.tokens.items() if kept is not token}

            async def fetch() -> Secret:
                return await self._fetch(endpoint, origin, registry, realm, wanted, found, key)

            text = await self._attempt("token", origin_of(realm.url).authority, fetch)
            return f"Bearer {text.reveal()}"

    async def _fetch(
        self,
        endpoint: Endpoint,
        origin: Origin,
        registry: _Registry,
        realm: _Realm,
        scopes: Sequence[str],
        found: Found,
        key: frozenset[str],
    ) -> Secret:
        credentials = found.credentials
        identity = registry.refresh or (credentials.identity_token if credentials else None)
        asked = current_time()
        if identity is not None:
            status, answer = await self._post(endpoint, realm, scopes, identity)
            if status in (404, 405):
                credentials = Credentials("<token>", identity, origin=credentials.origin if credentials else "")
                status, answer = await self._get(endpoint, realm, scopes, credentials)
        else:
            status, answer = await self._get(endpoint, realm, scopes, credentials)
        if status != 200:
            raise self.refusal(endpoint, " ".join(scopes), found, status, _said(answer), None)
        text, lifetime, refresh = _parse_token(realm, answer)
        if refresh is not None and identity is not None:
            registry.refresh = refresh
        registry.tokens[key] = _Token(text, asked + lifetime - max(10.0, lifetime / 10))
        return text

    async def _get(
        self, endpoint: Endpoint, realm: _Realm, scopes: Sequence[str], credentials: Credentials | None
    ) -> tuple[int, bytes]:
        parameters = [("service", realm.service)] if realm.service else []
        parameters += [("scope", scope) for scope in scopes]
        headers = {}
        if credentials is not None and credentials.username:
            if credentials.username != "<token>":
                parameters.append(("account", credentials.username))
            headers["Authorization"] = _basic(credentials) or ""
        return await self._request(endpoint, "GET", add_query(realm.url, parameters), headers, None)

    async def _post(
        self, endpoint: Endpoint, realm: _Realm, scopes: Sequence[str], identity: Secret
    ) -> tuple[int, bytes]:
        form = {
            "grant_type": "refresh_token",
            "service": realm.service,
            "client_id": _CLIENT,
            "scope": " ".join(scopes),
            "refresh_token": identity.reveal(),
        }
        content = urlencode(form).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(content))}
        return await self._request(endpoint, "POST", realm.url, headers, lambda: _once(content))

    async def _request(
        self, endpoint: Endpoint, method: str, url: str, headers: dict[str, str], body: Body | None
    ) -> tuple[int, bytes]:
        """Ask a token server; it may redirect nowhere."""
        host = origin_of(url).authority
        async with self._connections.send(
            method,
            url,
            {"Accept": "application/json", **headers},
            body,
            certificates_of=endpoint.host,
            clients=host == endpoint.contact,
            insecure=endpoint.insecure,
            patience=_TOKEN_TIMEOUT,
        ) as response:
            if 300 <= response.status < 400:
                raise TransportError(f"{shown(url)}: the token server redirects, which is not followed")
            answer = await response.read(_TOKEN_LIMIT if response.status == 200 else ERROR_LIMIT)
            if response.status in RETRYABLE_STATUSES:
                error = TransportError(f"{shown(url)}: the token server answered {response.status}")
                wait = retry_after(response.get("retry-after"), time.time())
                raise FailedAttemptError(error, f"{response.status} from {host}", after=wait)
            if answer is None and response.status == 200:
                raise TransportError(f"{shown(url)}: the token server answered more than {_TOKEN_LIMIT} bytes")
            return response.status, answer or b""


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _basic(credentials: Credentials) -> str | None:
    """The header of a name and a password; None if there are none."""
    if credentials.registry_token is not None:
        return f"Bearer {credentials.registry_token.reveal()}"
    if not credentials.username:
        return None
    pair = f"{credentials.username}:{credentials.password.reveal()}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _check_realm(endpoint: Endpoint, origin: Origin, realm: str, scope: str) -> str:
    """The URL of a token server, if credentials may go there."""
    try:
        target = origin_of(realm)
    except ValueError:
        raise AuthenticationError(endpoint.host, scope, reason="its token server has no valid URL") from None
    if "@" in realm.partition("://")[2].partition("/")[0]:
        raise AuthenticationError(endpoint.host, scope, reason="the URL of its token server has a user in it")
    if target.scheme == "http" and origin.scheme != "http":
        raise AuthenticationError(endpoint.host, scope, reason=f"its token server {shown(realm)} has no TLS")
    if not may_lead_to(origin.host, target.host, credentials=True):
        raise AuthenticationError(endpoint.host, scope, reason=f"its token server {shown(realm)} is in a private place")
    return realm.partition("#")[0]


def _union(first: Sequence[str], then: Sequence[str]) -> tuple[str, ...]:
    """*first* as it is, and what it does not contain."""
    found = list(first)
    for scope in then:
        if not any(_contains(each, scope) for each in found):
            found.append(scope)
    return tuple(dict.fromkeys(found))


def _contains(scope: str, other: str) -> bool:
    name, _, actions = scope.rpartition(":")
    other_name, _, wanted = other.rpartition(":")
    return name == other_name and set(wanted.split(",")) <= set(actions.split(","))


def _covering(tokens: dict[frozenset[str], _Token], wanted: frozenset[str]) -> _Token | None:
    """A token that was asked for with at least those scopes."""
    for scopes, token in tokens.items():
        if all(any(_contains(scope, each) for scope in scopes) for each in wanted):
            return token
    return None


def _parse_token(realm: _Realm, answer: bytes) -> tuple[Secret, float, Secret | None]:
    what = shown(realm.url)
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        raise TransportError(f"{what}: the token server's answer is not JSON") from None
    if not isinstance(document, dict):
        raise TransportError(f"{what}: the token server's answer is not an object")
    text = document.get("token") or document.get("access_token")
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or " " in text:
        raise TransportError(f"{what}: the token server gave no token")
    lifetime, refresh = document.get("expires_in"), document.get("refresh_token")
    seconds = float(lifetime) if isinstance(lifetime, int | float) and 0 < lifetime < 1e9 else _SHORTEST
    return Secret(text), max(_SHORTEST, seconds), Secret(refresh) if isinstance(refresh, str) and refresh else None


def _said(body: bytes) -> str:
    said = parse_error(body)
    return " ".join(filter(None, (said.code, said.message)))


def _offers(challenges: Sequence[Challenge]) -> str:
    schemes = dict.fromkeys(each.scheme for each in challenges)
    return f"and offers {', '.join(schemes)}" if schemes else "and says not how to be asked"
