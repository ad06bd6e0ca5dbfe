from __future__ import annotations

import threading
from collections.abc import Sequence

import anyio
import pytest

from composefs_async._aio.coalesce import Coalescer

pytestmark = pytest.mark.anyio


def doubled(items: Sequence[int]) -> list[int | Exception]:
    return [ValueError(item) if item % 10 == 3 else item * 2 for item in items]


def coalescer(run: object, tokens: int = 1, max_items: int = 64, max_weight: int = 10**9) -> Coalescer[int, int]:
    return Coalescer(
        run,  # type: ignore[arg-type]
        anyio.CapacityLimiter(tokens),
        max_items=max_items,
        max_weight=max_weight,
        weigh=lambda item: item,
    )


async def test_each_caller_gets_its_own_outcome_and_batches_never_exceed_the_tokens() -> None:
    live = peak = 0
    mutex = threading.Lock()
    sizes: list[int] = []

    def run(items: Sequence[int]) -> list[int | Exception]:
        nonlocal live, peak
        with mutex:
            live += 1
            peak = max(peak, live)
            sizes.append(len(items))
        found = doubled(items)
        with mutex:
            live -= 1
        return found

    submit, got = coalescer(run, tokens=2).submit, {}

    async def call(item: int) -> None:
        try:
            got[item] = await submit(item)
        except ValueError as error:
            got[item] = error.args[0]

    async with anyio.create_task_group() as tasks:
        for item in range(1000):
            tasks.start_soon(call, item)
    assert got == {item: item if item % 10 == 3 else item * 2 for item in range(1000)}
    assert peak <= 2
    assert sum(sizes) == 1000
    assert max(sizes) == 64


@pytest.mark.parametrize(
    ("count", "weight", "batches"),
    [(10, 40, [1, 3, 3, 3]), (4, 50, [2, 2])],
    ids=["the last goes beyond it", "just reached"],
)
async def test_a_batch_takes_no_more_than_the_weight_allows(count: int, weight: int, batches: list[int]) -> None:
    sizes: list[int] = []

    def run(items: Sequence[int]) -> list[int | Exception]:
        sizes.append(len(items))
        return doubled(items)

    submit = coalescer(run, max_weight=100).submit
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(submit, weight)
    assert sorted(sizes) == batches


async def test_nobody_joins_the_batch_of_a_leader_that_was_cancelled_before_it_ran() -> None:
    batches = coalescer(doubled, max_items=10**9)  # a full batch takes nobody either
    async with batches._limiter:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await batches.submit(1)
    with anyio.fail_after(10):
        assert await batches.submit(2) == 4


async def test_a_lone_call_does_not_wait_for_others() -> None:
    assert await coalescer(doubled).submit(21) == 42


async def test_followers_of_a_cancelled_leader_are_served() -> None:
    limiter_holder, got = object(), {}
    subject = coalescer(doubled)

    async def call(item: int) -> None:
        got[item] = await subject.submit(item)

    async with anyio.create_task_group() as tasks:
        await subject._limiter.acquire_on_behalf_of(limiter_holder)
        with anyio.CancelScope() as leader:
            async with anyio.create_task_group() as leading:
                leading.start_soon(call, 0)
                await anyio.wait_all_tasks_blocked()
                for item in (1, 2, 4):
                    tasks.start_soon(call, item)
                await anyio.wait_all_tasks_blocked()
                leader.cancel()
        await anyio.wait_all_tasks_blocked()
        subject._limiter.release_on_behalf_of(limiter_holder)
    assert got == {1: 2, 2: 4, 4: 8}


async def test_an_error_of_the_whole_batch_reaches_all_of_it() -> None:
    def run(items: Sequence[int]) -> list[int | Exception]:
        raise OSError(28, "No space left on device")

    submit, errors = coalescer(run).submit, []

    async def call(item: int) -> None:
        try:
            await submit(item)
        except OSError as error:
            errors.append(error.errno)

    async with anyio.create_task_group() as tasks:
        for item in range(5):
            tasks.start_soon(call, item)
    assert errors == [28] * 5


async def test_what_is_wrong_with_an_item_is_its_callers_alone() -> None:
    def weigh(item: int) -> int:
        if item < 0:
            raise TypeError(item)
        return item

    submit = Coalescer(doubled, anyio.CapacityLimiter(1), max_items=64, max_weight=10**9, weigh=weigh).submit
    got: dict[int, object] = {}

    async def call(item: int) -> None:
        try:
            got[item] = await submit(item)
        except TypeError as error:
            got[item] = error

    with anyio.fail_after(5):
        await call(-1)  # the first, which would lead
        async with anyio.create_task_group() as tasks:
            for item in (-2, 1, -3, 2):
                tasks.start_soon(call, item)
        await call(4)
    assert {item: outcome for item, outcome in got.items() if item > 0} == {1: 2, 2: 4, 4: 8}
    assert all(isinstance(got[item], TypeError) for item in (-1, -2, -3))


async def test_who_comes_while_a_batch_runs_is_in_the_next() -> None:
    begun, go = threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def run(items: Sequence[int]) -> list[int | Exception]:
        batches.append(list(items))
        if len(batches) == 1:
            begun.set()
            assert go.wait(5)
        return doubled(items)

    submit, got = coalescer(run, tokens=2).submit, dict[int, int]()

    async def call(item: int) -> None:
        got[item] = await submit(item)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, 1)
        await anyio.to_thread.run_sync(begun.wait)
        tasks.start_soon(call, 2)
        while len(batches) < 2:
            await anyio.lowlevel.checkpoint()
        go.set()
    assert (batches, got) == ([[1], [2]], {1: 2, 2: 4})
