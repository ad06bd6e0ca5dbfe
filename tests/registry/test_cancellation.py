"""Whoever is cancelled leaves nothing behind: no connection, no task, no lock; and the client goes on working."""

from __future__ import annotations

import errno
import json
import os
import random
import time
from pathlib import Path

import pytest
from anyio import create_task_group, move_on_after

from composefs_async import Repository, oci
from composefs_async._maintenance import spools
from composefs_async.registry.access import Access
from composefs_async.registry.client import RegistryClient
from composefs_async.registry.spool import Spool
from composefs_async.repository import state_of
from composefs_async.testing.registry import FakeRegistry

from .conftest import QUICK, RANGES, SmallImage

pytestmark = pytest.mark.anyio


async def test_a_client_goes_on_after_a_thousand_cancellations(image: SmallImage, access: Access) -> None:
    registry = FakeRegistry()
    image.put(registry)
    chance = random.Random(1)

    async def one(client: RegistryClient, seconds: float) -> None:
        with move_on_after(seconds):
            await client.manifest(f"docker://{registry.address}/a/b:1")

    async with registry.serving() as host, RegistryClient(access, QUICK) as client:
        await client.resolve(f"docker://{host}/a/b:1")
        for _ in range(50):
            async with create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(one, client, chance.uniform(0, 0.02))
        assert (await client.resolve(f"docker://{host}/a/b:1")).digest == image.digest
    assert registry.open == 0


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.2, 0.4])
async def test_a_pull_that_is_cancelled_can_be_done_again(
    seconds: float, repo: Repository, image: SmallImage, access: Access
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    registry.rate = 4e6
    async with registry.serving() as host:
        with move_on_after(seconds):
            await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=RANGES)
        registry.rate = None
        result = await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=RANGES)
    assert result.manifest_digest == image.digest
    assert result.bytes_fetched + result.bytes_resumed <= image.size


async def test_two_pulls_at_once_fetch_each_layer_once(repo: Repository, image: SmallImage, access: Access) -> None:
    registry = FakeRegistry()
    image.put(registry)
    async with registry.serving() as host, create_task_group() as tasks:
        for tag in ("x", "y"):

            async def pull(tag: str = tag) -> None:
                await oci.pull(repo, f"docker://{host}/a/b:1", tag=tag, access=access, transfer=QUICK)

            tasks.start_soon(pull)
    assert registry.count(f"GET .*/blobs/{image.layers[1]}") == 1


STATES = {
    "of another boot": {"boot": "x"},
    "of another size": {"size": 5},
    "of another blob": {"digest": f"sha256:{64 * 'b'}"},
    "expired": {"expires": 1.0},
    "beyond the file": {"present": [[0, 60]]},
    "backwards": {"present": [[9, 3]]},
    "of another version": {"version": 2},
    "not a state": {"present": "x"},
}


@pytest.mark.parametrize("change", [{}, *STATES.values()], ids=["as it was", *STATES])
def test_a_spool_is_used_again_unless_its_state_cannot_be_believed(change: dict[str, object], tmp_path: Path) -> None:
    digest = f"sha256:{64 * 'a'}"
    spool = Spool.open(tmp_path, digest, 100, "r")
    assert spool is not None
    spool.write(10, [b"x" * 20, b"y" * 20])
    spool.present.add(10, 50)
    spool.close()
    state = tmp_path / f"sha256-{64 * 'a'}.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), **change}))
    again = Spool.open(tmp_path, digest, 100, "r")
    assert again is not None
    assert (again.resumed, again.present.as_list()) == ((0, []) if change else (40, [(10, 50)]))
    again.close()


def test_a_collection_of_garbage_removes_spools_that_have_expired(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(repo.path) / spools.DIRECTORY
    made = {}
    for name in "abc":
        spool = Spool.open(directory, f"sha256:{64 * name}", 100, "r")
        assert spool is not None
        spool.write(0, [b"x" * 50])
        spool.present.add(0, 50)
        made[name] = spool
    made["a"].close()
    made["b"].close()
    made["c"].save([(0, 50)])  # and stays open
    (directory / f"sha256-{64 * 'd'}.json").write_text("{}")
    assert repo.usage().leftovers.size > 150
    assert Spool.open(directory, f"sha256:{64 * 'c'}", 100, "r") is None
    spools.expire(state_of(repo))
    names = sorted(path.name for path in directory.iterdir())
    assert names == sorted(f"sha256-{64 * name}{suffix}" for name in "abc" for suffix in ("", ".json"))
    later = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    repo.gc()
    names = sorted(path.name for path in directory.iterdir())
    assert names == sorted(f"sha256-{64 * 'c'}{suffix}" for suffix in ("", ".json"))
    made["c"].drop()
    assert list(directory.iterdir()) == []


def test_a_disk_that_is_full_keeps_what_was_noted_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = f"sha256:{64 * 'a'}"
    spool = Spool.open(tmp_path, digest, 100, "r")
    assert spool is not None
    spool.write(0, [b"x" * 40])
    spool.present.add(0, 40)
    spool.save([(0, 20)])

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(OSError, match=r"No space.*60 bytes are missing"):
        spool.write(40, [b"x"])
    spool.close()
    monkeypatch.undo()
    again = Spool.open(tmp_path, digest, 100, "r")
    assert again is not None
    assert again.present.as_list() == [(0, 20)]
    again.drop()
    assert list(tmp_path.iterdir()) == []
