"""What gc tells of itself while it works."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from composefs_async._maintenance.gc import collect
from composefs_async.errors import RepositoryInUseError
from composefs_async.progress import CollectProgress, Message, ProgressEvent
from composefs_async.repository import Repository

from ..maintenance.garbage import everything, image, objects, store, stream

NODES, GARBAGE = 3, 5
"""Streams and images that are followed, and objects that go."""


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", insecure=True) as repository:
        layer = stream(repository, "layer", ["kept"])
        stream(repository, "config", named={"layer": layer, "composefs.image": image(repository, [])}, reference="r")
        store(repository, *(f"garbage {number}" for number in range(GARBAGE)))
        yield repository


def collected(repo: Repository, *, dry_run: bool = False) -> list[tuple[str, int, int]]:
    events: list[ProgressEvent] = []
    repo.gc(dry_run=dry_run, progress=events.append)
    return [(each.stage, each.done, each.total) for each in events if isinstance(each, CollectProgress)]


def test_stages_come_in_their_order_and_to_their_end(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_FOLLOWED", 1)
    monkeypatch.setattr(collect, "_BATCH", 1)
    monkeypatch.setattr(collect.shards, "WORKERS", 1)
    followed = [("follow", number, 0) for number in range(1, NODES + 1)]
    compared = [("compare", number, 256) for number in range(1, 257)]
    removed = [("remove", number, GARBAGE) for number in range(1, GARBAGE + 1)]
    found = [*followed, ("follow", NODES, 0), ("follow", NODES, NODES), *compared]
    assert collected(repo, dry_run=True) == found
    assert collected(repo) == found + removed
    assert collected(repo) == found


def test_there_is_not_an_event_for_each_object(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect.shards, "WORKERS", 2)
    repo.ensure_objects(b"%d" % number for number in range(2000))
    events = collected(repo)
    assert events[-1] == ("remove", 2000 + GARBAGE, 2000 + GARBAGE)
    assert len([each for each in events if each[0] == "remove"]) <= 128
    assert len([each for each in events if each[0] == "follow"]) == 1


def test_that_it_waits_is_told_once(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_PATIENCE", 0.0)
    events: list[ProgressEvent] = []
    with Repository.open_path(repo.path), pytest.raises(RepositoryInUseError):
        repo.gc(timeout=0.05, progress=events.append)
    assert [each for each in events if isinstance(each, Message)] == [
        Message("waiting for others who use the repository")
    ]
    monkeypatch.undo()
    events.clear()
    repo.gc(progress=events.append)
    assert [each for each in events if isinstance(each, Message)] == []


@pytest.mark.parametrize("stage", ["follow", "compare", "remove"])
def test_what_the_callback_raises_ends_it(stage: str, repo: Repository) -> None:
    class Enough(Exception):  # noqa: N818
        pass

    def report(event: ProgressEvent) -> None:
        if isinstance(event, CollectProgress) and event.stage == stage:
            raise Enough

    before, kept = everything(repo), objects(repo)
    with pytest.raises(Enough):
        repo.gc(progress=report)
    assert (everything(repo) == before) is (stage != "remove")
    repo.gc()
    assert objects(repo) == {each for each in kept if "garbage" not in each}


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leaks")
async def test_the_async_form_reports_in_the_loop(tmp_path: Path) -> None:
    here: list[int] = []
    repo = await Repository.init_async(tmp_path / "repo", insecure=True)
    async with repo:
        await repo.ensure_object_async(b"garbage")
        with anyio.fail_after(60):
            result = await repo.gc_async(progress=lambda event: here.append(threading.get_ident()))
    assert result.objects_removed == 1
    assert {*here} == {threading.get_ident()}
