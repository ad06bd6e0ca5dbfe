"""What writes waits for an operation that has the repository alone, as it would for another process's."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from composefs_async.digest import Algorithm
from composefs_async.errors import RepositoryInUseError
from composefs_async.oci import catalogue, import_layer, pull
from composefs_async.oci.platforms import Platform
from composefs_async.repository import Repository, state_of
from composefs_async.results import StoreOutcome
from composefs_async.splitstream import OCI_LAYER

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
PLATFORM = Platform("linux", "amd64")
BASIC = "sha256:8e66440a93d68590e713aa309c3bc6651670904597e64480b0acccc87cb89f21"
NOTHING = f"sha256:{hashlib.sha256(b'').hexdigest()}"


class Nothing:
    async def read(self, size: int, /) -> bytes:
        return b""


async def spawned(repo: Repository) -> object:
    return await repo.spawn_finalize_object_tmpfile(await repo.create_object_tmpfile_async(), 0)


async def finalized(repo: Repository) -> object:
    return await repo.finalize_object_tmpfile_async(await repo.create_object_tmpfile_async(), 0)


async def written(repo: Repository) -> object:
    return await repo.write_stream_async(repo.create_stream(OCI_LAYER), "new", "mine")


async def ensured(repo: Repository) -> object:
    return await repo.ensure_stream_async("there", OCI_LAYER, lambda writer: None, "mine")


WRITERS: dict[str, Callable[[Repository], Awaitable[object]]] = {
    "ensure_object": lambda repo: repo.ensure_object_async(b"x"),
    "ensure_objects": lambda repo: repo.ensure_objects_async([b"x", b"y"]),
    "finalize_object_tmpfile": finalized,
    "spawn_finalize_object_tmpfile": spawned,
    "scan_directory": lambda repo: repo.scan_directory_async(LAYOUTS / "one"),
    "write_stream": written,
    "ensure_stream": ensured,
    "register_stream": lambda repo: repo.register_stream_async(repo.has_stream("there"), "new"),  # type: ignore[arg-type]
    "name_stream": lambda repo: repo.name_stream_async("there", "mine"),
    "unname_stream": lambda repo: repo.unname_stream_async("old"),
    "write_image": lambda repo: repo.write_image_async(b"x", "mine"),
    "add_reference": lambda repo: repo.add_reference_async("streams", "mine", "there"),
    "rename_reference": lambda repo: repo.rename_reference_async("streams", "old", "mine"),
    "remove_reference": lambda repo: repo.remove_reference_async("streams", "old"),
    "tag": lambda repo: catalogue.tag_async(repo, BASIC, "mine"),
    "untag": lambda repo: catalogue.untag_async(repo, "basic"),
    "import_layer": lambda repo: import_layer(repo, NOTHING, Nothing()),
    "pull": lambda repo: pull(repo, f"oci:{LAYOUTS}/one", tag="mine", platform=PLATFORM),
    "gc": lambda repo: repo.gc_async(),
}


@pytest.fixture
async def repo(tmp_path: Path) -> Repository:
    made = Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True)
    made.write_stream(made.create_stream(OCI_LAYER), "there", "old")
    await pull(made, f"oci:{LAYOUTS}/basic", tag="basic", platform=PLATFORM)
    made.ensure_object(b"garbage")
    return made


def everything(path: Path) -> list[str]:
    return sorted(str(entry) for entry in path.rglob("*") if not entry.is_dir() and "reach" not in entry.parts)


@pytest.mark.parametrize("name", WRITERS)
async def test_what_writes_waits_for_an_operation_that_is_alone(name: str, repo: Repository, tmp_path: Path) -> None:
    done = False

    async def work() -> None:
        nonlocal done
        await WRITERS[name](repo)
        done = True

    before = everything(tmp_path)
    async with repo, anyio.create_task_group() as tasks:
        with repo.exclusive("a test"):
            tasks.start_soon(work)
            while not done and not state_of(repo)._waiting:
                await anyio.lowlevel.checkpoint()
            assert not done
            assert everything(tmp_path) == before
    assert done
    assert everything(tmp_path) != before or name in ("unname_stream", "remove_reference", "untag")


async def test_a_wait_for_operations_of_the_same_handle_can_be_cancelled(repo: Repository) -> None:
    with repo, state_of(repo).shared():
        with anyio.move_on_after(0.02) as scope:
            await repo.gc_async()
        assert scope.cancelled_caught


async def test_one_operation_is_alone_at_a_time(repo: Repository) -> None:
    """A second thread of the handle would find the lock taken already, and by itself."""

    def second() -> None:
        with pytest.raises(RepositoryInUseError, match="the second"), repo.exclusive("the second", timeout=0):
            raise AssertionError("it is not alone")

    with repo, repo.exclusive("the first"):
        await anyio.to_thread.run_sync(second)


async def test_who_waits_for_the_end_of_one_operation_goes_before_the_next(repo: Repository) -> None:
    """A collection works in slices; without this nobody else would come to his turn before its end."""
    async with repo, anyio.create_task_group() as tasks:
        with repo.exclusive("the first"):
            tasks.start_soon(repo.ensure_object_async, b"x")
            while not state_of(repo)._waiting:
                await anyio.lowlevel.checkpoint()
        # The first has ended, and whoever waits may not have been told yet.
        with repo.exclusive("the second"):
            assert repo.ensure_object(b"x").outcome is StoreOutcome.PRESENT
