"""One large blob on its way into its spool: over several connections at once, read in order while it comes.

Owns which part is asked for next, of whom, and what is done when an answer is not what it should be.  Attempts begin
anew whenever something has come.  A server that breaks off is asked for the rest; one that cannot give parts is asked
for all, within a bound; when one has failed for good, the next place that may have the blob goes on.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from anyio import Event, create_task_group, current_time
from anyio.abc import TaskGroup

from .._aio.groups import single_error
from .._aio.to_thread import in_thread
from ..errors import ComposefsError, RegistryError, TransportError
from .connections import Response
from .download_parts import Fetched, Observer, Pace, Part, Redirect, lifetime
from .exchange import EXPIRED, Request, repository_path
from .ranges import Answer, RangeSet, Verdict, judge, range_header
from .reference import check_digest
from .retrying import PROGRESS, FailedAttemptError
from .session import Place, Session
from .spool import Spool

__all__ = ["Download", "Fetched"]

_WRITE_SIZE = 512 << 10
"""Bytes that are gathered for one way to a worker thread."""
_SAVE_SECONDS, _SAVE_BYTES = 0.25, 4 << 20
_REPORT_SECONDS = 0.1
_IN_MEMORY = 16 << 20
"""Bytes that a blob in memory may be ahead of whoever reads it."""
_FORGOTTEN = 8 << 20
"""Bytes that are given back at once of what is in memory."""
_RENEWALS = 3
"""How often a blob may be asked of the registry again because a URL that it redirected to is no longer good."""


class Download:
    """Brings one blob.

    Args:
        places: the first is asked first; the others may have the blob, too.
        single: use one connection and ask for no parts.
    """

    def __init__(
        self,
        session: Session,
        places: Sequence[Place],
        digest: str,
        size: int,
        spool: Spool,
        observe: Observer,
        *,
        single: bool = False,
    ) -> None:
        self._session, self._places = session, list(places)
        self.digest: str = check_digest(digest)
        self.size: int = size
        self.spool: Spool = spool
        self._observe, self._single = observe, single
        self._transfer = session.transfer
        self._look_ahead = min(self._transfer.look_ahead, _IN_MEMORY if spool.forgets else self._transfer.look_ahead)
        self._forgotten = 0
        self._parts: list[Part] = []
        self._reader = 0
        self._changed = Event()
        self._error: BaseException | None = None
        self._at = 0  # of the places
        self._wanted: list[tuple[int, int]] = [(0, size)]
        self._failures: list[str] = []
        self._redirect: Redirect | None = None
        self._renewals, self._wrong_sizes, self._skipped = 0, 0, 0
        self._workers = 0
        self._tasks: TaskGroup | None = None
        self._begun = False
        self.received: int = 0
        """Bytes from the network."""
        self._reported = 0.0
        self._saved_at, self._saved_bytes, self._saving = 0.0, 0, False
        self.hosts: set[str] = set()
        """That have sent something."""

    # -- for the reader ------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bring the blob while the block runs, once somebody waits for it."""
        with single_error():
            async with create_task_group() as tasks:
                self._tasks = tasks
                try:
                    yield
                finally:
                    tasks.cancel_scope.cancel()

    async def wait(self, offset: int) -> int:
        """Wait until the byte at *offset* is there.

        Returns:
            Up to where there is no gap; the size if *offset* is it.

        Raises:
            ComposefsError, OSError: the download has failed.
        """
        self._begin()
        if offset > self._reader:
            self._reader = offset
            self._notify()
        if self.spool.forgets and offset - self._forgotten >= _FORGOTTEN:
            self._forgotten = offset
            await in_thread(lambda: self.spool.forget(offset))
        while True:
            end = self.spool.present.end_from(offset)
            if end > offset or offset >= self.size:
                return end
            if self._error is not None:
                raise self._error
            await self._changed.wait()

    def want(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Bring these parts of the blob, in their order, and nothing else from now on."""
        self._wanted = list(ranges)
        if self._begun:
            self._add_workers(self._transfer.connections)
        self._notify()

    async def bring(self, start: int, end: int) -> int:
        """Wait, as `wait` does, until a part that is wanted is there; returns up to where there is no gap."""
        found = await self.wait(start)
        while found < end:
            found = await self.wait(found)
        return found

    @property
    def gives_parts(self) -> bool:
        """Whether the place that is asked gives parts of blobs, as far as is known."""
        return self._places[self._at].endpoint.ranges is not False

    @property
    def can_be_read_again(self) -> bool:
        """All that has come is still there."""
        return not self.spool.forgets

    async def finish(self) -> None:
        """Wait until all is there, however far the reader is."""
        while self.spool.present.total < self.size:
            await self.wait(self.spool.present.end_from(0))

    def _begin(self) -> None:
        assert self._tasks is not None
        if not self._begun:
            self._begun = True
            self._add_workers(1 if self._places[0].endpoint.ranges is None else self._transfer.connections)

    def _add_workers(self, most: int) -> None:
        assert self._tasks is not None
        if not self._is_parallel:
            most = 1
        while self._workers < most and self._error is None:
            self._workers += 1
            self._tasks.start_soon(self._work)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = Event()

    # -- what comes next -----------------------------------------------------------------------

    @property
    def _is_parallel(self) -> bool:
        large = self.size > self._transfer.parallel_size or self._wanted != [(0, self.size)]
        return not self._single and large and self.gives_parts

    async def _work(self) -> None:
        try:
            while (part := await self._next()) is not None:
                try:
                    await self._bring(part)
                finally:
                    self._parts.remove(part)
                    self._notify()
        except (ComposefsError, OSError) as error:
            if self._error is None:
                self._error = error
            self._notify()
        finally:
            self._workers -= 1

    async def _next(self) -> Part | None:
        """The part to bring next; None if there is nothing more to do for this task."""
        while self._error is None:
            parallel = self._is_parallel
            if self._parts and not parallel:
                return None
            part = self._first_missing(parallel)
            if part is None:
                return None
            if part.start < self._reader + self._look_ahead or not self._parts:
                self._parts.append(part)
                return part
            await self._changed.wait()
        return None

    def _first_missing(self, parallel: bool) -> Part | None:
        taken = RangeSet(self.spool.present.as_list())
        for part in self._parts:
            taken.add(part.start, part.end)
        for wanted in self._wanted:
            for start, end in taken.gaps(*wanted)[:1]:
                chunk = self._transfer.chunk_size
                until = min(end, (start // chunk + 1) * chunk) if parallel else end
                return Part(start, until)
        return None

    def _priority(self) -> tuple[int, int]:
        """Whose reader is closest to waiting goes first, then who has the most to come."""
        present = self.spool.present
        return present.end_from(self._reader) - self._reader, present.total - self.size

    # -- one part ------------------------------------------------------------------------------

    async def _bring(self, part: Part) -> None:
        budget, before = self._session.exchange.budget(), part.start
        while part.start < part.end:
            if not self._is_parallel and self._parts[0] is not part:
                return  # to the task that goes on alone
            place = self._places[self._at]
            what = f"blob {self.digest} of {place.name}"
            try:
                await self._attempt(place, what, part)
            except FailedAttemptError as failure:
                if part.start - before >= PROGRESS:
                    budget.renew()
                before = part.start
                try:
                    await self._session.exchange.pause(budget, failure, what, place.endpoint.host)
                except TransportError as error:
                    self._give_up(place, error)
                    budget = self._session.exchange.budget()
            except ComposefsError as error:
                self._give_up(place, error)
                budget = self._session.exchange.budget()

    def _give_up(self, place: Place, error: ComposefsError) -> None:
        """Go on with the next place, unless another task has done so; *error* is for when there is none."""
        if self._places[self._at] is not place:
            return
        if self._at + 1 == len(self._places):
            raise error
        self._failures.append(str(error))
        self._at += 1
        self._redirect, self._renewals, self._wrong_sizes = None, 0, 0

    async def _attempt(self, place: Place, what: str, part: Part) -> None:
        endpoint = place.endpoint
        whole = part.start == 0 and part.end == self.size
        asked = not whole and endpoint.ranges is not False
        redirect = self._usable_redirect(place)
        request = Request(
            what,
            endpoint,
            "GET",
            redirect.url if redirect else repository_path(place.path, f"blobs/{self.digest}"),
            place.path,
            place.scopes(),
            {"Range": range_header(part.start, part.end)} if asked else {},
            priority=self._priority,
        )
        async with self._session.exchange.open(request) as response:
            elsewhere = response.redirected or redirect is not None
            if elsewhere and response.status in EXPIRED:
                self._renew(what, response)
                return
            verdict = judge(
                response.status,
                response.get_all("content-range"),
                response.content_length,
                part.start,
                part.end,
                self.size,
                asked,
            )
            if elsewhere and redirect is None and verdict.answer in (Answer.PART, Answer.WHOLE):
                self._redirect = Redirect(place, response.url, current_time() + lifetime(response.url))
            await self._use(request, place, part, response, verdict)

    def _usable_redirect(self, place: Place) -> Redirect | None:
        redirect = self._redirect
        if redirect is None or redirect.place is not place or redirect.until <= current_time():
            return None
        return redirect

    def _renew(self, what: str, response: Response) -> None:
        self._redirect = None
        self._renewals += 1
        if self._renewals > _RENEWALS:
            message = "the place that the registry redirects to refuses, again and again"
            raise RegistryError(what, response.status, "", host=response.host, message=message)

    async def _use(self, request: Request, place: Place, part: Part, response: Response, verdict: Verdict) -> None:
        endpoint = place.endpoint
        match verdict.answer:
            case Answer.PART:
                if endpoint.ranges is None:
                    endpoint.ranges = True
                    self._add_workers(self._transfer.connections)
                self._session.exchange.succeeded(request, response)
                await self._take(request.what, response, part, verdict.end)
            case Answer.WHOLE:
                await self._take_whole(request, place, part, response)
            case Answer.NO_RANGES:
                endpoint.ranges = False
            case Answer.WRONG_SIZE:
                self._wrong_sizes += 1
                if self._wrong_sizes > 1 or response.status == 200:
                    message = f"the registry says {verdict.size} bytes, the manifest {self.size}"
                    raise RegistryError(request.what, response.status, "", host=response.host, message=message)
            case Answer.REFUSED:
                raise await self._session.exchange.refusal(request, response)

    async def _take_whole(self, request: Request, place: Place, part: Part, response: Response) -> None:
        if "Range" in request.headers:
            place.endpoint.ranges = False
            if self._parts[0] is not part:
                return  # all that is missing comes over one connection from now on
        part.end = self.size
        skip = part.start
        if skip:
            if self._skipped + skip > self.size:
                message = f"it gives no parts of blobs, so that the rest of {self.size} bytes cannot be had"
                raise RegistryError(request.what, response.status, "", host=response.host, message=message)
            self._skipped += skip
        self._session.exchange.succeeded(request, response)
        await self._take(request.what, response, part, self.size, skip=skip)

    async def _take(self, what: str, response: Response, part: Part, end: int, skip: int = 0) -> None:
        """Write what comes, up to *end*; what has come stays, whatever happens."""
        pieces: list[bytes] = []
        waiting = 0
        pace = Pace(self._session)
        self.hosts.add(response.host)
        try:
            while piece := await response.next_chunk():
                self._count(len(piece))
                pace.check(len(piece), self._workers)
                data, skip = (piece[skip:], max(0, skip - len(piece))) if skip else (piece, 0)
                room = end - part.start - waiting
                too_much = len(data) > room
                pieces.append(data[:room] if too_much else data)
                waiting += len(pieces[-1])
                if too_much:
                    message = "more comes than was asked for"
                    raise RegistryError(what, response.status, "", host=response.host, message=message)
                if waiting >= _WRITE_SIZE:
                    written, pieces, waiting = pieces, [], 0
                    await self._write(part, written)
        finally:
            if waiting and self._error is None:
                await self._write(part, pieces)
        if part.start < end:
            raise FailedAttemptError(TransportError(f"{response.host}: the connection broke"), "the connection broke")

    async def _write(self, part: Part, pieces: list[bytes]) -> None:
        offset, size = part.start, sum(map(len, pieces))
        await in_thread(lambda: self.spool.write(offset, pieces))
        self.spool.present.add(offset, offset + size)
        part.start += size
        self._notify()
        await self._save()

    async def _save(self) -> None:
        now, total = time.monotonic(), self.spool.present.total
        due = now - self._saved_at >= _SAVE_SECONDS or total - self._saved_bytes >= _SAVE_BYTES
        if self.spool.lasting and due and not self._saving:
            self._saving, self._saved_at, self._saved_bytes = True, now, total
            try:
                snapshot = self.spool.present.as_list()
                await in_thread(lambda: self.spool.save(snapshot))
            finally:
                self._saving = False

    def _count(self, size: int) -> None:
        self.received += size
        self._session.received += size
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self.report()

    def report(self) -> None:
        """Tell how far it has come."""
        wanted = sum(end - start for start, end in self._wanted)
        self._observe(Fetched(self.received, self.spool.resumed, wanted, len(self._parts)))
