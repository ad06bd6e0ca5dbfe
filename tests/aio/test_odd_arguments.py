"""What one caller gives that cannot be stored is an error for him, and for nobody else."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.repository import Repository
from composefs_async.results import StoredObject

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]


def released() -> memoryview:
    view = memoryview(b"x")
    view.release()
    return view


class Raising:
    def __len__(self) -> int:
        raise RuntimeError("odd")


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "str": lambda: "text",
    "empty str": lambda: "",
    "int": lambda: 7,
    "list": lambda: [1, 2],
    "object": Raising,
    "released": released,
    "gaps": lambda: memoryview(b"abcdef")[::2],
}


@pytest.mark.parametrize("first", [True, False], ids=["leads", "follows"])
@pytest.mark.parametrize("name", WRONG)
async def test_others_are_stored(name: str, first: bool, tmp_path: Path) -> None:
    async with Repository.init(tmp_path / "repo", insecure=True) as repo:
        outcomes: dict[str, object] = {}

        async def call(key: str, data: Any) -> None:
            try:
                outcomes[key] = (await repo.ensure_object_async(data)).id
            except (TypeError, ValueError, RuntimeError, BufferError) as error:
                outcomes[key] = error

        with anyio.fail_after(10):
            if first:
                await call("alone", WRONG[name]())
                assert isinstance(outcomes.pop("alone"), Exception)
            async with anyio.create_task_group() as tasks:
                for key, data in [("a", b"a"), ("wrong", WRONG[name]()), ("b", bytearray(b"b"))][:: 1 if first else -1]:
                    tasks.start_soon(call, key, data)
            await call("c", memoryview(b"c"))
        assert isinstance(outcomes.pop("wrong"), Exception)
        assert outcomes == {key: repo.ensure_object(key.encode()).id for key in ("a", "b", "c")}


async def test_views_of_other_items_than_bytes_are_stored_as_their_bytes(tmp_path: Path) -> None:
    async with Repository.init(tmp_path / "repo", insecure=True) as repo:
        numbers = array("I", [1, 2, 3])
        expected = repo.ensure_object(numbers.tobytes())
        found = await repo.ensure_object_async(memoryview(numbers))
        assert (found.id, found.size) == (expected.id, 12)
        assert [each.id for each in await repo.ensure_objects_async([memoryview(numbers)])] == [expected.id]


async def test_a_caller_that_is_cancelled_and_takes_his_view_back_harms_nobody(tmp_path: Path) -> None:
    async with Repository.init(tmp_path / "repo", insecure=True) as repo:
        outcomes: list[StoredObject] = []

        async def store(data: bytes) -> None:
            outcomes.append(await repo.ensure_object_async(data))

        async def store_view() -> None:
            with memoryview(bytearray(b"view")) as view:
                await repo.ensure_object_async(view)

        for turns in range(6):
            outcomes.clear()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store, b"one %d" % turns)
                async with anyio.create_task_group() as cancelled:
                    cancelled.start_soon(store_view)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    cancelled.cancel_scope.cancel()
                tasks.start_soon(store, b"two %d" % turns)
            assert len(outcomes) == 2


@pytest.mark.parametrize("name", WRONG)
async def test_many_at_once_raise_and_later_calls_work(name: str, tmp_path: Path) -> None:
    async with Repository.init(tmp_path / "repo", insecure=True) as repo:
        with anyio.fail_after(10):
            with pytest.raises((TypeError, ValueError, RuntimeError, BufferError)):
                await repo.ensure_objects_async([b"a", WRONG[name](), b"b"])
            with pytest.raises((TypeError, ValueError, RuntimeError, BufferError)):
                repo.ensure_objects([b"a", WRONG[name](), b"b"])
            assert len(await repo.ensure_objects_async([b"a", b"b"])) == 2
