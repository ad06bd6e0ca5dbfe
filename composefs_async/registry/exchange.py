"""One request to a registry and its answer: redirects, authentication, attempts, limits and events.

Owns what lies between an endpoint of the protocol (`client`, `download`, `upload`) and a connection (`connections`).
An authorization goes to the origin that asked for it; whoever that redirects to gets none.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from anyio import sleep

from .._log import logger
from ..errors import ComposefsError, RegistryError, TransportError
from ..progress import ProgressCallback, RateLimit, RegistryWarning, Retrying
from .access import Access, Surroundings, Transfer
from .addresses import may_lead_to
from .answers import (
    ERROR_LIMIT,
    RateStatus,
    Said,
    error_of,
    is_denied,
    parse_error,
    parse_rate_limit,
)
from .challenge import Challenge, parse_challenges
from .connections import Body, Connections, Response
from .credentials import CredentialStore
from .endpoints import Endpoint
from .gates import FIRST, Gate, Priority
from .retrying import RETRYABLE_CODES, RETRYABLE_STATUSES, Budget, FailedAttemptError, retry_after
from .tokens import Authenticator
from .urls import Origin, origin_of, resolve_location, shown
from .warnings_header import parse_warnings

__all__ = ["EXPIRED", "Exchange", "Reply", "Request", "repository_path"]

_log = logger("registry")

T = TypeVar("T")

EXPIRED = frozenset({400, 401, 403, 404, 410})
"""Answers of a place that was redirected to, when a signed URL is no longer good."""
_REDIRECTS = 5
_FOLLOWED = frozenset({301, 302, 303, 307, 308})
_KEEPING_METHOD = frozenset({307, 308})
_AUTHORIZATIONS = 3
"""How often one request is sent at most because it was answered with 401."""


@dataclass(slots=True)
class Request:
    """A request to a registry."""

    what: str
    """For messages: ``manifest docker://…``."""
    endpoint: Endpoint
    method: str
    target: str
    """Path and query below the registry's root, or an absolute URL that the registry gave."""
    path: str = ""
    """Of the repository, which credentials may depend on."""
    scopes: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: Body | None = None
    """Made anew for each attempt."""
    patience: float | None = None
    """Seconds until the answer begins, in place of the usual time."""
    priority: Priority = FIRST
    once: bool = False
    """There is no other attempt."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that has been read."""

    response: Response
    body: bytes = field(repr=False)

    @property
    def status(self) -> int:
        """Status code of the answer."""
        return self.response.status

    def get(self, name: str) -> str | None:
        """A header, by its name in lower case."""
        return self.response.get(name)


class Exchange:
    """What all requests of one client share; closed by `aclose`."""

    def __init__(
        self,
        access: Access,
        transfer: Transfer,
        around: Surroundings,
        store: CredentialStore,
        report: ProgressCallback,
    ) -> None:
        self.access: Access = access
        self.transfer: Transfer = transfer
        self.report: ProgressCallback = report
        self.connections: Connections = Connections(access, transfer, around)
        self.authenticator: Authenticator = Authenticator(self.connections, store, self.attempts)
        self._endpoints: dict[tuple[str, bool, bool], Endpoint] = {}
        self._warned: set[str] = set()
        self.rates: dict[str, RateStatus] = {}
        """The last status of each host."""

    async def aclose(self) -> None:
        """Close all connections."""
        await self.connections.aclose()

    def endpoint(self, host: str, *, insecure: bool, logical: bool) -> Endpoint:
        """The registry on *host*; the same object for equal arguments."""
        if self.access.tls_verify is not None:
            insecure = not self.access.tls_verify
        key = (host, insecure, logical)
        if key not in self._endpoints:
            self._endpoints[key] = Endpoint(host, insecure, logical, Gate(self.transfer.connections))
        return self._endpoints[key]

    # -- attempts ------------------------------------------------------------------------------

    async def attempts(self, what: str, host: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat *attempt* while it fails in a way that may pass.

        Raises:
            TransportError: it fails for good; or what *attempt* raises besides.
        """
        budget = self.budget()
        while True:
            try:
                return await attempt()
            except FailedAttemptError as failure:
                await self.pause(budget, failure, what, host)

    def budget(self) -> Budget:
        """A fresh one."""
        return Budget(self.transfer.retries, self.transfer.retry_delay)

    async def pause(self, budget: Budget, failure: FailedAttemptError, what: str, host: str) -> None:
        """Wait until the next attempt, and report why.

        Raises:
            TransportError: there is none; it names *what* and the number of attempts.
        """
        try:
            delay = budget.next_delay(failure)
        except TransportError as error:
            text = str(error) if what in str(error) else f"{what}: {error}"
            if budget.failures:
                text += f" ({budget.failures + 1} attempts in a row)"
            error.args = (text,)
            raise
        self.report(Retrying(what, host, budget.failures, self.transfer.retries, delay, failure.reason))
        _log.warning("%s: %s is tried again in %.1f s: %s", host, what, delay, failure.reason)
        await sleep(delay)

    async def fetch(self, request: Request, limit: int, *, fine: frozenset[int] = frozenset({200})) -> Reply:
        """The whole answer, whose status is one of *fine*.

        Raises:
            ImageNotFoundError, AuthenticationError, RegistryError, TransportError
        """

        async def attempt() -> Reply:
            async with self.open(request) as response:
                if response.status not in fine:
                    error = await self.refusal(request, response)
                    if response.redirected and response.status in EXPIRED and isinstance(error, ComposefsError):
                        # The registry may redirect to another URL, or one that is good for longer.
                        raise FailedAttemptError(
                            RegistryError(request.what, response.status, "", host=response.host, message="redirected"),
                            f"{response.status} from {response.host}",
                        )
                    raise error
                self.succeeded(request, response)
                if request.method == "HEAD" or response.status == 204:
                    return Reply(response, b"")
                body = await response.read(limit)
                if body is None:
                    raise RegistryError(
                        request.what, response.status, "", host=response.host,
                        message=f"the answer is larger than the limit of {limit} bytes",
                    )  # fmt: skip
                return Reply(response, body)

        if request.once:
            try:
                return await attempt()
            except FailedAttemptError as failure:
                raise failure.error from failure
        return await self.attempts(request.what, request.endpoint.contact, attempt)

    # -- one attempt ---------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Response]:
        """Send once, follow redirects and answer challenges; whatever status comes in the end.

        Raises:
            FailedAttemptError: there is no answer.
            AuthenticationError: the registry wants what we have not.
        """
        async with request.endpoint.gate.enter(request.priority), AsyncExitStack() as stack:
            response = await self._reach(request, stack)
            for text in parse_warnings(response.get_all("warning")):
                if text not in self._warned:
                    self._warned.add(text)
                    self.report(RegistryWarning(request.endpoint.host, text))
            self._note_rate(request, response)
            yield response

    async def _reach(self, request: Request, stack: AsyncExitStack) -> Response:
        """Send to an endpoint; the first time, one that is insecure may turn out to speak no TLS."""
        endpoint = request.endpoint
        if endpoint.scheme is not None or not endpoint.insecure:
            endpoint.scheme = endpoint.scheme or "https"
            return await stack.enter_async_context(self._authorized(request, endpoint.scheme))
        try:
            response = await stack.enter_async_context(self._authorized(request, "https", probing=True))
            endpoint.scheme = "https"
        except FailedAttemptError as failure:
            if not failure.unconnected:
                raise
            response = await stack.enter_async_context(self._authorized(request, "http"))
            endpoint.scheme = "http"
        return response

    @asynccontextmanager
    async def _authorized(self, request: Request, scheme: str, *, probing: bool = False) -> AsyncIterator[Response]:
        endpoint = request.endpoint
        base = f"{scheme}://{endpoint.contact}"
        url = request.target if "://" in request.target else f"{base}{request.target}"
        origin, home = origin_of(url), origin_of(base)
        trusted = origin == home
        header = None
        if trusted:
            header = await self.authenticator.known(endpoint, origin, request.path, request.scopes)
        for _ in range(_AUTHORIZATIONS):
            async with self._redirected(request, url, header if trusted else None, probing=probing) as response:
                if response.status != 401 or response.redirected or not trusted:
                    yield response
                    return
                challenges = parse_challenges(response.get_all("www-authenticate"))
                await response.read(ERROR_LIMIT)
            if not challenges:
                challenges = await self._ping_challenges(request, base)
            header = await self.authenticator.answer(endpoint, origin, request.path, request.scopes, challenges, header)
        found = await self.authenticator.found(endpoint, request.path)
        raise self.authenticator.refusal(endpoint, " ".join(request.scopes), found, 401, "again and again", header)

    async def _ping_challenges(self, request: Request, base: str) -> list[Challenge]:
        async with self._redirected(request, f"{base}/v2/", None, method="GET") as response:
            return parse_challenges(response.get_all("www-authenticate"))

    @asynccontextmanager
    async def _redirected(
        self, request: Request, url: str, header: str | None, *, method: str | None = None, probing: bool = False
    ) -> AsyncIterator[Response]:
        endpoint = request.endpoint
        method = method or request.method
        first = origin_of(url)
        headers = {"Docker-Distribution-API-Version": "registry/2.0", **request.headers}
        for step in range(_REDIRECTS + 1):
            origin = origin_of(url)
            authorization = {"Authorization": header} if header is not None and origin == first else {}
            async with self.connections.send(
                method,
                url,
                {**headers, **authorization},
                request.body,
                certificates_of=endpoint.host,
                clients=origin.authority == endpoint.contact,
                insecure=endpoint.insecure,
                probing=probing,
                patience=request.patience,
            ) as response:
                response.redirected = step > 0
                location = self._location(request, method, response)
                if location is None:
                    yield response
                    return
                await response.read(ERROR_LIMIT)
            url = self._checked_target(request, first, url, location)
        raise RegistryError(request.what, 0, "", host=endpoint.host, message=f"more than {_REDIRECTS} redirects")

    def _location(self, request: Request, method: str, response: Response) -> str | None:
        followed = _FOLLOWED if method in ("GET", "HEAD") else _KEEPING_METHOD
        return response.get("location") if response.status in followed else None

    def _checked_target(self, request: Request, first: Origin, base: str, location: str) -> str:
        try:
            url = resolve_location(base, location)
        except ValueError as error:
            raise self._bad_redirect(request, f"redirects to what is no URL: {error}") from None
        target = origin_of(url)
        if target.scheme == "http" and origin_of(base).scheme == "https":
            raise self._bad_redirect(request, f"redirects to {shown(url)}, which has no TLS")
        if not may_lead_to(first.host, target.host):
            raise self._bad_redirect(request, f"redirects to {shown(url)}, in a private place")
        return url

    def _bad_redirect(self, request: Request, message: str) -> RegistryError:
        return RegistryError(request.what, 0, "", host=request.endpoint.host, message=message)

    def check_location(self, request: Request, response: Response, location: str) -> str:
        """The URL that an upload goes on at; relative ones start from the one that was asked."""
        return self._checked_target(request, origin_of(response.url), response.url, location)

    # -- what answers mean ---------------------------------------------------------------------

    async def refusal(self, request: Request, response: Response) -> ComposefsError | FailedAttemptError:
        """The exception for an answer that is not fine; the body is read up to a limit."""
        body = b"" if request.method == "HEAD" else await response.read(ERROR_LIMIT)
        said = parse_error(body)
        if is_denied(response.status, said):
            return await self._denied(request, response, said)
        error = error_of(request.what, response.host, response.status, said)
        if response.status not in RETRYABLE_STATUSES and said.code not in RETRYABLE_CODES:
            return error
        if isinstance(error, RegistryError) and response.status == 429:
            error = await self._limited(request, response, said)
        wait = retry_after(response.get("retry-after"), time.time())
        if response.status == 429 or wait is not None:
            request.endpoint.gate.pause(min(wait or 0.0, 120.0))
        if not isinstance(error, TransportError):
            return error
        return FailedAttemptError(error, f"{response.status} from {response.host}", after=wait)

    async def _denied(self, request: Request, response: Response, said: Said) -> ComposefsError:
        scope = " ".join(request.scopes)
        found = await self.authenticator.found(request.endpoint, request.path)
        text = " ".join(filter(None, (said.code, said.message)))
        header = "shown" if found.credentials is not None else None
        return self.authenticator.refusal(request.endpoint, scope, found, response.status, text, header)

    async def _limited(self, request: Request, response: Response, said: Said) -> RegistryError:
        found = await self.authenticator.found(request.endpoint, request.path)
        rate = self.rates.get(response.host)
        who = "with credentials" if found.credentials is not None else "without credentials"
        wait = retry_after(response.get("retry-after"), time.time())
        later = f"come back in {wait:.0f} s" if wait else ""
        message = "; ".join(filter(None, (said.message, f"asked {who}", str(rate) if rate else "", later)))
        return RegistryError(request.what, 429, said.code, host=response.host, message=message)

    def succeeded(self, request: Request, response: Response) -> None:
        """Note that the host is well."""
        request.endpoint.gate.succeeded()

    def _note_rate(self, request: Request, response: Response) -> None:
        names = ("ratelimit-limit", "ratelimit-remaining", "docker-ratelimit-source")
        rate = parse_rate_limit(*map(response.get, names))
        if rate is None:
            return
        if response.host not in self.rates:
            self.report(RateLimit(request.endpoint.host, rate.limit, rate.remaining, rate.window, rate.source))
        self.rates[response.host] = rate


def repository_path(path: str, rest: str) -> str:
    """The target of a request about a repository."""
    return f"/v2/{path}/{rest}"
