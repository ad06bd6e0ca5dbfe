"""Storing many objects in one call, natively without the GIL where that is built.

A batch is what one worker thread does between two looks at the event loop, so callers keep it short
(`MAX_ITEMS`, `MAX_BYTES`: a few milliseconds).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence

from .. import _native, fsverity
from ..digest import ObjectId
from ..errors import IntegrityError, VerityNotSupportedError
from ..results import StoredObject, StoreOutcome
from .objects import store_one
from .state import RepoState

__all__ = ["MAX_BYTES", "MAX_ITEMS", "NATIVE", "Buffer", "fill_batch", "results", "store_all", "store_batch"]

Buffer = bytes | bytearray | memoryview

MAX_ITEMS = 256
MAX_BYTES = 4 << 20

NATIVE = _native.BACKEND == "native"
if NATIVE:
    from .._native._core import store as _store

_INSECURE, _INSECURE_TRY, _SECURE = 0, 1, 2
_OUTCOMES = {outcome.value: outcome for outcome in StoreOutcome} | {255: StoreOutcome.STORED}
"""255: failed, which `failures` tells more of."""


def store_batch(state: RepoState, items: Sequence[Buffer]) -> list[StoredObject | Exception]:
    """Store each of *items* unless it is there; a failed one does not keep the others from being stored.

    Returns:
        In the order of *items*, what became of each.
    """
    with state.shared():
        state.require_writable()
        return _store_native(state, items) if NATIVE else _store_python(state, items)


def _store_native(state: RepoState, items: Sequence[Buffer]) -> list[StoredObject | Exception]:
    size = state.algorithm.digest_size
    mode = _SECURE if state.secure else _INSECURE if state.verity_works is False else _INSECURE_TRY
    ids, outcomes, failures, works = _store(state.objects_fd, items, state.algorithm.number, mode)
    if works == 0 and not state.secure:
        state.verity_works = False
    stored: list[StoredObject | Exception] = [
        StoredObject(ObjectId(ids[at : at + size]), len(item), _OUTCOMES[outcome])
        for at, item, outcome in zip(range(0, len(ids), size), items, outcomes, strict=True)
    ]
    for index, number, step in failures:
        object_id = ObjectId(ids[index * size : (index + 1) * size])
        stored[index] = _failure(state, object_id, number, step)
    return stored


def _failure(state: RepoState, object_id: ObjectId, number: int, step: str) -> Exception:
    what = f"object {object_id.hex()}"
    if number == errno.EBADMSG:
        return IntegrityError(f"{what} was written, but the kernel measures another digest")
    if step == "verity" and number in (errno.EOPNOTSUPP, errno.ENOTTY):
        return VerityNotSupportedError(what)
    return OSError(number, f"{os.strerror(number)} ({step})", f"{state.path}/objects/{object_id.path}")


def _store_python(state: RepoState, items: Sequence[Buffer]) -> list[StoredObject | Exception]:
    ids = fsverity.digest_many(items, state.algorithm)
    outcomes: list[StoredObject | Exception] = []
    for item, object_id in zip(items, ids, strict=True):
        try:
            outcomes.append(store_one(state, memoryview(item).cast("B"), object_id))
        except Exception as error:  # the caller gets it, as the outcome of this item
            outcomes.append(error)
    return outcomes


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
        batch.append(content)
        size += len(content)
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
