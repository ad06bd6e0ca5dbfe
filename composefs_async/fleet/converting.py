"""Conversion of many images: which steps, in which order, with which keys; and how far a run has come.

Owns the driver, which holds a few hundred bytes for each image under way.  Does not own running steps (`engines`).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

from anyio import CapacityLimiter, create_memory_object_stream, create_task_group
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from ..digest import Algorithm
from ..exchange import open_store
from ..oci import Platform
from ..progress import Message, ProgressCallback
from .engines import Engine, ThreadEngine
from .steps import ImagePlan, image_key, image_step, layer_key, layer_step, resolve_step

__all__ = ["Converted", "Status", "convert", "in_shard", "status", "store_name"]


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of one reference."""

    reference: str
    image_id: str | None
    """Id of the EROFS image, in hexadecimal."""
    error: str | None
    """One line; the exception's class first."""
    layers_converted: int
    layers_shared: int
    """Layers that the store had, or that came for another image."""


@dataclass(frozen=True, slots=True)
class Status:
    """One reference in the store."""

    reference: str
    name: str
    manifest_digest: str | None
    """Digest of the artifact; None if there is none yet."""


def store_name(reference: str) -> str:
    """The name in a store of what *reference* means: without its transport."""
    transport, colon, rest = reference.partition(":")
    return (rest.removeprefix("//") if colon and transport in ("docker", "oci", "oci-archive", "dir") else reference)[
        -180:
    ].lstrip("/")


def in_shard(reference: str, shard: tuple[int, int]) -> bool:
    """Whether *reference* belongs to shard i of n, counted from 0; each belongs to one."""
    number, count = shard
    return int.from_bytes(hashlib.sha256(reference.encode()).digest()[:8]) % count == number


async def convert(
    references: Iterable[str] | AsyncIterable[str],
    url: str,
    *,
    engine: Engine | None = None,
    algorithm: Algorithm = Algorithm.SHA512,
    in_flight: int = 200,
    shard: tuple[int, int] | None = None,
    platform: Platform | None = None,
    endpoint: str | None = None,
    name: Callable[[str], str] = store_name,
    progress: ProgressCallback | None = None,
) -> AsyncGenerator[Converted]:
    """Convert images into the store at *url*: each layer once, however many images and drivers there are.

    Yields in the order of completion, and never raises for one image.  What is in the store is not converted again, so
    that a run that was stopped is simply run again.  Close the iterator if it is left early.

    Args:
        engine: worker threads of this process if not given.
        in_flight: images whose steps are with the engine at once.
        shard: (i, n): only the i-th of n parts of the references, counted from 0.
        platform: to take from images of several; this machine's, or the worker's, if not given.
        name: of an image in the store.
    """
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(f"there is no shard {shard[0]} of {shard[1]}")
    run = _Run(url, engine or ThreadEngine(), algorithm, platform, endpoint, name, progress or _ignore)
    send, receive = create_memory_object_stream[Converted](0)
    async with create_task_group() as tasks, receive:
        tasks.start_soon(run.feed, tasks, references, shard, CapacityLimiter(in_flight), send)
        try:
            async for converted in receive:
                yield converted
        except GeneratorExit:  # closed early: the group must not take it for a failure
            return
        finally:
            tasks.cancel_scope.cancel()


def _ignore(event: object) -> None:
    pass


@dataclass(slots=True)
class _Run:
    url: str
    engine: Engine
    algorithm: Algorithm
    platform: Platform | None
    endpoint: str | None
    name: Callable[[str], str]
    report: ProgressCallback
    claimed: set[str] = field(default_factory=set[str])
    """Layers that have been counted."""

    async def feed(
        self,
        tasks: TaskGroup,
        references: Iterable[str] | AsyncIterable[str],
        shard: tuple[int, int] | None,
        limiter: CapacityLimiter,
        send: MemoryObjectSendStream[Converted],
    ) -> None:
        """Begin with each reference as soon as there is room."""
        async with send, aclosing(_each(references)) as each:
            async for reference in each:
                if shard is None or in_shard(reference, shard):
                    borrower = object()
                    await limiter.acquire_on_behalf_of(borrower)
                    tasks.start_soon(self._one, reference, limiter, borrower, send.clone())

    async def _one(
        self, reference: str, limiter: CapacityLimiter, borrower: object, send: MemoryObjectSendStream[Converted]
    ) -> None:
        async with send:
            try:
                converted = await self._convert(reference)
            except Exception as error:
                text = " ".join(f"{type(error).__name__}: {error}".split())
                converted = Converted(reference, None, text, 0, 0)
            finally:
                limiter.release_on_behalf_of(borrower)
            self.report(Message(f"{reference}: {converted.error or converted.image_id}"))
            await send.send(converted)

    async def _convert(self, reference: str) -> Converted:
        plan: ImagePlan = await self.engine.submit(f"resolve-{reference}", resolve_step, reference, self.platform)
        made: dict[str, bool] = {}

        async def layer(diff_id: str) -> None:
            wanted = next(each for each in plan.layers if each.diff_id == diff_id)
            key = layer_key(self.algorithm, diff_id)
            result = await self.engine.submit(
                key, layer_step, reference, wanted, self.url, self.algorithm, self.endpoint, self.platform
            )
            # Images that waited for the same step count it once.
            made[diff_id] = result.made and diff_id not in self.claimed
            self.claimed.add(diff_id)

        await _all(layer, dict.fromkeys(each.diff_id for each in plan.layers))
        name = self.name(reference)
        key = image_key(self.algorithm, name, plan.manifest_digest)
        done = await self.engine.submit(key, image_step, plan, name, self.url, self.algorithm, self.endpoint)
        count = sum(made.values())
        return Converted(reference, done.digest, None, count, len(made) - count)


async def _all(work: Callable[[str], object], items: Iterable[str]) -> None:
    """Do *work* for all items at once; the first failure ends the others."""
    try:
        async with create_task_group() as tasks:
            for item in items:
                tasks.start_soon(work, item)  # type: ignore[arg-type]
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


async def _each(references: Iterable[str] | AsyncIterable[str]) -> AsyncGenerator[str]:
    if isinstance(references, AsyncIterable):
        async for reference in references:
            yield reference
    else:
        for reference in references:
            yield reference


async def status(
    references: Iterable[str], url: str, *, endpoint: str | None = None, name: Callable[[str], str] = store_name
) -> AsyncIterator[Status]:
    """How far a run has come, by whomever: one request for each reference, in their order."""
    async with open_store(url, endpoint=endpoint) as store:
        await store.describe()
        for reference in references:
            found = await store.ref(name(reference))
            yield Status(reference, name(reference), found.digest if found else None)
