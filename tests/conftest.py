"""Fixtures for all tests: the event loops, real programs, and checks for blocking calls and leaks."""

from __future__ import annotations

import fcntl
import gc
import importlib
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from blockbuster import BlockBuster, BlockBusterFunction

import composefs_async

TOOLS = (
    "cfsctl",
    "cfsctl-2026-04",
    "mkcomposefs",
    "composefs-info",
    "fsverity",
    "skopeo",
    "umoci",
    "podman",
    "docker-registry",
)

# Blocking calls of ours that BlockBuster does not know by itself.
MORE_BLOCKING: list[tuple[ModuleType, str]] = [
    *((os, name) for name in ("open", "fstat", "lstat", "pread", "pwrite", "fsync", "fdatasync", "sync", "utime")),
    *((os, name) for name in ("copy_file_range", "truncate", "ftruncate", "fchmod", "unlink", "makedirs")),
    *((fcntl, name) for name in ("flock", "lockf", "ioctl")),
]


MEMORY = "/dev/shm"


def pytest_configure() -> None:
    # Programs that tests start must import the package that is tested, not what stands in the working directory.
    os.environ["PYTHONSAFEPATH"] = "1"
    # Nearly every test flushes its file system, which should not wait for what others write to a disk.
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)


def pytest_report_header() -> str:
    native = os.environ.get("COMPOSEFS_ASYNC_NATIVE") or "auto"
    missing = [name for name in TOOLS if not shutil.which(name)]
    return f"COMPOSEFS_ASYNC_NATIVE: {native}; not on PATH: {', '.join(missing) or 'nothing'}"


ASKED_FOR = {"vm": "boots a virtual machine", "stress": "takes minutes"}


def pytest_collection_finish() -> None:
    """Thousands of tests are many objects, and every collection that `no_leaks` asks for would look at them all."""
    # Its plugin would import it at the end, and then not find who refers to what is frozen.
    importlib.import_module("hypothesis")
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with a marker run when asked for, by COMPOSEFS_ASYNC_VM=1 or -m vm; those of stress likewise."""
    for marker, why in ASKED_FOR.items():
        variable = f"COMPOSEFS_ASYNC_{marker.upper()}"
        if os.environ.get(variable) != "1" and marker not in config.getoption("markexpr"):
            skip = pytest.mark.skip(reason=f"{why}: asked for by {variable}=1 or -m {marker}")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(skip)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(
            ("asyncio", {"use_uvloop": True}),
            id="uvloop",
            marks=pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"),
        ),
        pytest.param(("trio", {}), id="trio"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """A test marked ``anyio`` runs once on each of these."""
    loop: tuple[str, dict[str, object]] = request.param
    return loop


@pytest.fixture(scope="session")
def tool() -> Callable[[str], Path]:
    """``tool("cfsctl")`` is the path of that program, or skips the test and says what is missing."""

    def find(name: str) -> Path:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not on PATH")
        return Path(path).absolute()

    return find


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """In the place of `tmp_path` where it has to be a file system that files can be mounted from."""
    with tempfile.TemporaryDirectory(prefix="composefs-async-tests-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def may_mount() -> None:
    """Skips the test where mounts are not allowed, and says why."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff"))
    if not effective >> 21 & 1:  # linux/capability.h, CAP_SYS_ADMIN
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    known = Path("/proc/filesystems").read_text().split()
    for name in ("erofs", "overlay"):
        if name not in known:
            pytest.skip(f"the kernel has no {name}")


@pytest.fixture(scope="session")
def acl() -> bytes:
    """A POSIX access control list with a further user, as the kernel and setfacl(1) have it in an attribute."""
    # linux/posix_acl_xattr.h: version 2, then tag, permissions and id of the owner, a user, the group, mask and others.
    entries = (1, 6, -1), (2, 7, 1000), (4, 4, -1), (16, 7, -1), (32, 4, -1)
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


UNSHARE = """
import ctypes
CLONE_NEWUSER = 0x10000000  # linux/sched.h
if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
    raise SystemExit(1)
print(flush=True)
input()
"""


@pytest.fixture
def user_namespace(may_mount: None) -> Iterator[str]:
    """The path of one in which the users 0 to 9 are 1000 to 1009 outside."""
    command = [sys.executable, "-c", UNSHARE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("user namespaces cannot be made here")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 1000 10\n")
        yield f"/proc/{process.pid}/ns/user"
        process.stdin.write("\n")


@pytest.fixture
def no_blocking() -> Iterator[BlockBuster]:
    """A blocking call below a frame of composefs_async on the event loop raises BlockingError.

    Effective on asyncio and uvloop only: BlockBuster asks asyncio for the running loop, which trio is not.
    Calls in worker threads, in the test itself and inside C code are not looked at.
    """
    guard = BlockBuster(scanned_modules="composefs_async")
    for module, name in MORE_BLOCKING:
        guard.functions.setdefault(
            f"{module.__name__}.{name}",
            BlockBusterFunction(module, name, scanned_modules="composefs_async"),
        )
    guard.activate()
    try:
        yield guard
    finally:
        guard.deactivate()


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found


def _lasting_threads(before: set[threading.Thread]) -> list[str]:
    """Threads begun since that do not end; those that wait in trio's cache for work are not counted."""
    started = [thread for thread in threading.enumerate() if thread not in before]
    lasting = [thread for thread in started if not thread.name.startswith("Trio thread ")]
    for thread in lasting:
        thread.join(5)
    return [thread.name for thread in lasting if thread.is_alive()]


def preloading(*libraries: Path) -> dict[str, str]:
    """The environment of a process with these libraries, behind what sanitizers need if there are any."""
    kept = {name: os.environ[name] for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "LD_PRELOAD") if name in os.environ}
    names = ":".join(filter(None, [kept.get("LD_PRELOAD"), *map(str, libraries)]))
    return kept | ({"LD_PRELOAD": names} if names else {})


@pytest.fixture
def installed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that begin anew import the package of this one, not a checkout that was never built, and the tests."""
    installed, checkout = Path(composefs_async.__file__).parents[1], Path(__file__).parents[1]
    monkeypatch.setattr(sys, "path", [str(installed), *sys.path, str(checkout)])


@pytest.fixture(scope="session")
def _signal_pipe_of_libuv() -> None:
    """libuv opens one pipe for the whole process with its first loop and keeps it."""
    if importlib.util.find_spec("uvloop"):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture
def no_leaks(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, _signal_pipe_of_libuv: None
) -> Iterator[None]:
    """The test must leave no open descriptor, no thread and nothing in the directory for temporary files.

    Ask for it with ``usefixtures``, so that it is set up before, and looks after, the event loop.
    """
    temporary = tmp_path_factory.mktemp("no-leaks")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    gc.collect()
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    gc.collect()
    left = [f"thread {name}" for name in _lasting_threads(threads)]
    left += [f"descriptor {fd}: {to}" for fd, to in sorted(_descriptors().items()) if descriptors.get(fd) != to]
    # A loop of an earlier test, whose runner ends late, opens and closes these while others run.
    left = [each for each in left if not each.endswith(("anon_inode:[eventfd]", "anon_inode:[eventpoll]"))]
    left += [f"temporary file {name}" for name in sorted(os.listdir(temporary))]
    assert left == []
