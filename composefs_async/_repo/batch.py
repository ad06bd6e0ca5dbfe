"""Storing many objects in one call, natively without the GIL where that is built.

A batch is what one worker thread does between two looks at the event loop, so callers keep it short
(`MAX_ITEMS`, `MAX_BYTES`: a few milliseconds).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from .. import _native, fsverity
from ..digest import ObjectId
from ..errors import IntegrityError, VerityNotSupportedError
from ..results import StoredObject, StoreOutcome
from .objects import store_one
from .state import RepoState

__all__ = [
    "MAX_BYTES",
    "MAX_ITEMS",
    "NATIVE",
    "Buffer",
    "StoredBatch",
    "fill_batch",
    "learn_support",
    "native_failure",
    "results",
    "steady",
    "store_all",
    "store_batch",
    "store_whole_batch",
    "verity_mode",
]

Buffer = bytes | bytearray | memoryview

MAX_ITEMS = 256
MAX_BYTES = 4 << 20

NATIVE = _native.BACKEND == "native"
if NATIVE:
    from .._native._core import store as _store

_INSECURE, _INSECURE_TRY, _SECURE = 0, 1, 2
_FAILED = 255  # also in what native code gives; the failures tell more
_OUTCOMES = {outcome.value: outcome for outcome in StoreOutcome} | {_FAILED: StoreOutcome.STORED}


def steady(item: Buffer) -> Buffer:
    """*item* in a form that others can be stored together with: of bytes, and valid whatever its owner does.

    Raises:
        TypeError, ValueError: it is nothing that has bytes, or a view that was released or has gaps.
    """
    if type(item) is bytes:
        return item
    view = memoryview(item)
    return view if view.format == "B" and view.ndim == 1 and view.c_contiguous else view.cast("B")


def store_batch(state: RepoState, items: Sequence[Buffer]) -> list[StoredObject | Exception]:
    """Store each of *items* unless it is there; a failed one does not keep the others from being stored.

    Returns:
        In the order of *items*, what became of each.
    """
    with state.shared():
        state.require_writable()
        ids, outcomes, failures = _store_each(state, items)
    stored: list[StoredObject | Exception] = [
        StoredObject(object_id, item.nbytes if isinstance(item, memoryview) else len(item), _OUTCOMES[outcome])
        for object_id, item, outcome in zip(ids, items, outcomes, strict=True)
    ]
    for index, error in failures:
        stored[index] = error
    return stored


class StoredBatch(NamedTuple):
    """Objects that are all in place, in the order in which they were given."""

    ids: list[ObjectId]
    outcomes: Sequence[int]
    """A `StoreOutcome` for each."""


def store_whole_batch(state: RepoState, items: Sequence[Buffer], ids: list[ObjectId] | None = None) -> StoredBatch:
    """Store items for a caller to whom one failure is the end: costs less for each than `store_batch`.

    Args:
        ids: of the items, if they are known; the native code, which hashes itself, is not used then.

    Raises:
        the first error; the other items are stored all the same.
    """
    with state.shared():
        state.require_writable()
        ids, outcomes, failures = _store_each(state, items, ids)
    for _, error in failures:
        raise error
    return StoredBatch(ids, outcomes)


_Stored: TypeAlias = tuple[list[ObjectId], Sequence[int], list[tuple[int, Exception]]]
"""For each item its id and a `StoreOutcome` or `_FAILED`, and of those that failed the index and the error."""


def _store_each(state: RepoState, items: Sequence[Buffer], ids: list[ObjectId] | None = None) -> _Stored:
    stored = _store_native(state, items) if NATIVE and ids is None else _store_python(state, items, ids)
    sizes = [item.nbytes if isinstance(item, memoryview) else len(item) for item in items]
    state.stored.add(sizes, stored[1])
    return stored


def _store_native(state: RepoState, items: Sequence[Buffer]) -> _Stored:
    raw, outcomes, failures, works = _store(state.objects_fd, items, state.algorithm.number, verity_mode(state))
    learn_support(state, works)
    ids = ObjectId.unpack(raw, state.algorithm)
    failed = [(index, native_failure(state, ids[index], number, step)) for index, number, step in failures]
    return ids, outcomes, failed


def verity_mode(state: RepoState) -> int:
    """What native code is to do about fs-verity."""
    return _SECURE if state.secure else _INSECURE if state.verity_works is False else _INSECURE_TRY


def learn_support(state: RepoState, works: int) -> None:
    """Remember what native code found out about fs-verity."""
    if works == 0 and not state.secure:
        state.verity_works = False


def native_failure(state: RepoState, object_id: ObjectId, number: int, step: str) -> Exception:
    """The error for an object that native code could not store."""
    what = f"object {object_id.hex()}"
    if number == errno.EBADMSG:
        return IntegrityError(f"{what} was written, but the kernel measures another digest")
    if step == "verity" and number in (errno.EOPNOTSUPP, errno.ENOTTY):
        return VerityNotSupportedError(what)
    if step == "reopen" and number == errno.ENOENT:
        return FileNotFoundError(number, "it is not mounted, and is needed for fs-verity", "/proc")
    return OSError(number, f"{os.strerror(number)} ({step})", f"{state.path}/objects/{object_id.path}")


def _store_python(state: RepoState, items: Sequence[Buffer], ids: list[ObjectId] | None = None) -> _Stored:
    if ids is None:
        ids = fsverity.digest_many(items, state.algorithm)
    outcomes: list[int] = []
    failures: list[tuple[int, Exception]] = []
    for item, object_id in zip(items, ids, strict=True):
        try:
            outcomes.append(store_one(state, memoryview(item).cast("B"), object_id))
        except Exception as error:  # the caller gets it, as the outcome of this item
            failures.append((len(outcomes), error))
            outcomes.append(_FAILED)
    return ids, outcomes, failures


def store_all(state: RepoState, contents: Iterable[Buffer]) -> list[StoredObject]:
    """Store *contents* one batch after the other, and raise the first error at the end."""
    outcomes: list[StoredObject | Exception] = []
    iterator = iter(contents)
    while batch := fill_batch(iterator):
        outcomes += store_batch(state, batch)
    return results(outcomes)


def fill_batch(contents: Iterator[Buffer]) -> list[Buffer]:
    """The next few of *contents*; empty at its end."""
    batch: list[Buffer] = []
    size = 0
    for content in contents:
        batch.append(steady(content))
        size += len(batch[-1])
        if len(batch) >= MAX_ITEMS or size >= MAX_BYTES:
            break
    return batch


def results(outcomes: Iterable[StoredObject | Exception]) -> list[StoredObject]:
    """The outcomes if none is an error; otherwise raises the first that is."""
    stored: list[StoredObject] = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        stored.append(outcome)
    return stored
