"""Sources that never wait, and pieces that hold nothing, do not keep the event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from composefs_async.oci import import_layer
from composefs_async.repository import Repository

pytestmark = pytest.mark.anyio
NOTHING = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("piece", [b"", b"x"])
async def test_an_import_from_it_can_be_cancelled(piece: bytes, tmp_path: Path) -> None:
    taken = 0

    async def source() -> AsyncGenerator[bytes]:
        nonlocal taken
        while taken < 1_000_000:
            taken += 1
            yield piece

    async with aclosing(source()) as pieces:
        with Repository.init(tmp_path / "repo", insecure=True) as repo, anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(import_layer, repo, NOTHING, pieces)
                while taken < 100:
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
    assert scope.cancelled_caught
    assert taken < 400_000


async def test_pieces_that_hold_nothing_are_passed_over(tmp_path: Path) -> None:
    async def source() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b""
        yield bytes(10240)
        yield b""

    diff_id = "sha256:84ff92691f909a05b224e1c56abb4864f01b4f8e3c854e4bb4c7baf1d3f6d652"
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        result = await import_layer(repo, diff_id, source())
        assert b"".join(repo.merge_splitstream("", result.stream_id)) == bytes(10240)
