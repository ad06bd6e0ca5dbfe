"""The way to one host: how many at once, who is next, and pauses that hold for everybody."""

from __future__ import annotations

import anyio
import pytest

from composefs_async.registry.gates import Gate

pytestmark = pytest.mark.anyio


async def test_whoever_needs_it_most_goes_next() -> None:
    gate, order, needs = Gate(1), list[str](), {"a": 3, "b": 1, "c": 2}

    async def go(name: str) -> None:
        async with gate.enter(lambda: (needs[name], 0)):
            order.append(name)

    async with anyio.create_task_group() as tasks, gate.enter():
        for name in needs:
            tasks.start_soon(go, name)
        await anyio.wait_all_tasks_blocked()
        needs["a"] = 0  # asked when there is room, not before
    assert order == ["a", "b", "c"]


async def test_a_pause_holds_for_all_and_then_one_goes_at_a_time() -> None:
    gate, inside, most, begun = Gate(8), 0, 0, list[float]()
    start = anyio.current_time()
    gate.pause(0.05)

    async def go() -> None:
        nonlocal inside, most
        async with gate.enter():
            begun.append(anyio.current_time() - start)
            inside += 1
            most = max(most, inside)
            await anyio.wait_all_tasks_blocked()
            inside -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(go)
    assert min(begun) > 0.049  # loops count milliseconds
    assert most == 1
    for _ in range(3):
        gate.succeeded()
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(go)
    assert most == 8


async def test_who_is_cancelled_while_waiting_takes_no_place() -> None:
    gate = Gate(1)
    async with gate.enter():
        with anyio.move_on_after(0.01):
            async with gate.enter():
                pytest.fail("there was no room")
    gate.pause(10)
    with anyio.move_on_after(0.01):
        async with gate.enter():
            pytest.fail("it is closed")
    gate.pause(-10)
    gate = Gate(1)
    async with gate.enter():
        pass
