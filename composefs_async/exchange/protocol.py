"""Requests to a store as values, so that what must never go wrong between two of them is written without I/O.

`commit` and `gc` hold generators: they yield requests and are sent the answers.  Whoever drives them decides how
requests are made: in worker threads (`composefs_async.exchange.store`), or one at a time in an order of its own, which
is how tests interleave publishers and collections.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from .backends.base import BlobInfo, BlobStore, Buffer

__all__ = ["Delete", "Head", "List", "Many", "Program", "Put", "Read", "Request", "Swap", "Work", "perform", "run"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Read:
    """Read a key whole, at the origin; the answer is a `Stored` or None."""

    key: str
    limit: int


@dataclass(frozen=True, slots=True)
class Head:
    """Ask for size and time of a key; the answer is a `BlobInfo` or None."""

    key: str


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key whatever is there."""

    key: str
    data: Buffer


@dataclass(frozen=True, slots=True)
class Swap:
    """Write a key if it is as expected.

    The answer is a version, or the `PreconditionError` or `UnknownOutcomeError` that the write ended with.
    """

    key: str
    data: bytes
    expected: str | None


@dataclass(frozen=True, slots=True)
class List:
    """List keys; the answer is a list of `BlobInfo`."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove keys."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """Call a function in a worker thread; it may make requests of its own."""

    function: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Many:
    """Make several requests, in any order or at once; the answer is a list in their order."""

    requests: Sequence[Request]


Request: TypeAlias = Read | Head | Put | Swap | List | Delete | Work | Many
Program: TypeAlias = Generator[Request, Any, T]
"""Something that is done by requests; returns a T."""


def perform(store: BlobStore, request: Request) -> object:
    """Make one request that is no `Many`.  Blocks."""
    from ..errors import UnknownOutcomeError
    from .backends.base import PreconditionError

    match request:
        case Read(key, limit):
            return store.read(key, limit)
        case Head(key):
            return store.head(key)
        case Put(key, data):
            store.put(key, data)
        case Swap(key, data, expected):
            try:
                return store.swap(key, data, expected)
            except (PreconditionError, UnknownOutcomeError) as error:
                return error
        case List(prefix):
            return _listed(store, prefix)
        case Delete(keys):
            store.delete(keys)
        case Work(function):
            return function()
        case Many(requests):
            return [perform(store, each) for each in requests]
    return None


def _listed(store: BlobStore, prefix: str) -> list[BlobInfo]:
    return list(store.list(prefix))


def run(program: Program[T], store: BlobStore) -> T:
    """Run a program to its end, one request at a time.  Blocks."""
    answer: object = None
    try:
        while True:
            answer = perform(store, program.send(answer))
    except StopIteration as end:
        result: T = end.value
        return result
