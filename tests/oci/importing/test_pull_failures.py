"""A pull where the machine does not give what it asks for: hidden files, leases that stay, full disks, no threads."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async._maintenance import leases, state_dir
from composefs_async.digest import Algorithm
from composefs_async.oci import Platform, PullResult, pull
from composefs_async.oci.catalogue import open_image
from composefs_async.oci.importing import pull as pulling
from composefs_async.progress import Message, ProgressEvent
from composefs_async.repository import Repository

LAYOUTS = Path(__file__).parents[2] / "vectors" / "layouts"
PLATFORM = Platform("linux", "amd64")

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True).close()
    return tmp_path / "repo"


async def pulled(path: Path) -> tuple[PullResult, list[str]]:
    """The result, and the messages."""
    events: list[ProgressEvent] = []
    async with Repository.open_path(path) as repo:
        result = await pull(repo, f"oci:{LAYOUTS}/basic", tag="basic", platform=PLATFORM, progress=events.append)
        assert open_image(repo, "basic").manifest.digest == result.manifest_digest
        assert (await repo.fsck_async()).ok
    return result, [event.text for event in events if isinstance(event, Message)]


def all_leases(path: Path) -> list[str]:
    return [each.name for each in (path / ".composefs-async").glob("leases/*")]


# -- leases ------------------------------------------------------------------------------------


async def test_a_hidden_boot_id_is_told_once_and_nothing_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_BOOT_ID", "/nowhere/boot_id")
    _, messages = await pulled(path)
    assert messages == ["the boot id of this machine is hidden: an import that is interrupted begins anew"]
    assert all_leases(path) == []


async def test_layers_are_not_believed_where_the_boot_id_is_hidden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = f"sha256:{64 * '0'}"
    async with Repository.open_path(path) as repo:
        state = repo._state
        monkeypatch.setattr(leases, "_BOOT_ID", "/nowhere/boot_id")
        lease = leases.begin(state, digest, "somewhere")
        lease.finished(digest, repo.ensure_object(b"x" * 100).id)
        assert leases.begin(state, digest, "somewhere").lease.layers == {}
        assert (await repo.gc_async()).objects_leased == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
async def test_a_lease_that_cannot_be_removed_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def remove(state: object, name: str) -> bool:
        raise OSError(number, os.strerror(number), f"{path}/{name}")

    monkeypatch.setattr(state_dir, "remove", remove)
    result, [message] = await pulled(path)
    assert result.manifest_digest in message
    assert message.endswith(f".json: {os.strerror(number)}")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("step", ["make_missing", "publish_image"])
async def test_a_full_disk_says_what_it_keeps_and_how_to_get_rid_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    def full(*_: object) -> Any:
        raise OSError(number, os.strerror(number), f"{path}/objects")

    monkeypatch.setattr(pulling, step, full)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        await pulled(path)
    [name] = all_leases(path)
    digest = name.removesuffix(".json")
    assert (caught.value.errno, caught.value.filename) == (number, f"{path}/objects")
    assert f"'composefs-async leases drop {digest}'" in str(caught.value)
    held = sum(object_.stat().st_size for object_ in (path / "objects").glob("*/*"))
    assert held > 0
    assert f"; {held} bytes that were stored are kept for another try, until" in str(caught.value)
    async with Repository.open_path(path) as repo:
        assert await repo.drop_lease_async(digest)
        await repo.gc_async()
    assert list((path / "objects").glob("*/*")) == []


# -- threads -----------------------------------------------------------------------------------


@pytest.fixture
def thread_limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """So many more threads can be started, and then no more."""
    start = threading.Thread.start

    def limit(count: int) -> None:
        left = [count]

        def limited(thread: threading.Thread) -> None:
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)

    return limit


def test_upkeep_works_with_the_threads_that_it_gets(path: Path, thread_limit: Callable[[int], None]) -> None:
    anyio.run(pulled, path)
    with Repository.open_path(path) as repo:
        thread_limit(6)  # of three pools in turn and their fellows
        assert repo.gc().objects_removed == 0
        assert repo.fsck(metadata_only=True).ok
        thread_limit(0)
        for work in (repo.gc, repo.fsck):
            with pytest.raises(OSError, match="No thread can be started") as caught:
                work()
            assert caught.value.errno == errno.EAGAIN


async def test_no_thread_for_an_async_call_is_an_error_of_the_system(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_sync(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async with Repository.open_path(path) as repo:
        with monkeypatch.context() as patch:
            patch.setattr("anyio.to_thread.run_sync", run_sync)
            with pytest.raises(OSError, match="No thread can be started"):
                await repo.ensure_object_async(b"content")
        assert (await repo.ensure_object_async(b"content")).size == 7


# -- the command line --------------------------------------------------------------------------


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "composefs_async", "--repo", str(path), *arguments]


@pytest.mark.parametrize("progress", ["plain", "json", "bars"])
def test_a_standard_error_that_cannot_be_written_ends_nothing(path: Path, progress: str) -> None:
    arguments = command(path, "oci", "pull", f"oci:{LAYOUTS}/basic", "basic", "--progress", progress)
    victim = None
    for each in (arguments, command(path, "fsck", "--repair", str(LAYOUTS), "--progress", progress)):
        with open("/dev/full", "w") as full:
            done = subprocess.run(each, stdout=subprocess.PIPE, stderr=full, timeout=60, check=False)
        assert done.returncode == 0, done
        victim = victim or next((path / "objects").glob("*/*"))
    assert anyio.run(partial(pulled, path))


HIDING = {
    "all of /proc": "mount -t tmpfs none /proc",
    "/proc/sys": "mount -t tmpfs none /proc/sys",
    "all but processes": "mount -t proc -o subset=pid none /proc",
}


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_a_pull_works_where_proc_is_hidden(path: Path, hide: str) -> None:
    """As in containers."""
    script = f'{hide} && exec "$0" "$@"'
    arguments = command(path, "oci", "pull", f"oci:{LAYOUTS}/basic", "basic")
    if subprocess.run(["unshare", "-m", "sh", "-c", hide], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, *arguments], capture_output=True, timeout=60, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("boot id") == 1
    assert anyio.run(partial(pulled, path))
