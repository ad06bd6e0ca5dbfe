"""Mounts of images by all ways, on kernels that allow it: as root."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from composefs_async._sys import mount_api
from composefs_async._sys.loop import loop_device
from composefs_async._sys.mount import Backing, KernelOptions, Layering, attach, mount_composefs, mount_erofs, unmount
from composefs_async.digest import Algorithm
from composefs_async.erofs.writer import build_image
from composefs_async.errors import MountError
from composefs_async.fsverity import digest
from composefs_async.tree import Directory, ExternalFile, InlineFile, Special, Symlink

pytestmark = pytest.mark.usefixtures("no_leaks")

LARGE = bytes(range(256)) * 40
CONTENT = {b"inline": b"inside", b"large": LARGE, b"empty": b""}


@dataclass
class Parts:
    """An image file and its objects, both open."""

    image: int
    objects: int


@pytest.fixture
def tmp_path(disk_path: Path) -> Path:
    """Files of tmpfs cannot be mounted without a loop device."""
    return disk_path


@pytest.fixture(params=[0, 1, 2], ids=lambda version: f"layout {version}")
def parts(request: pytest.FixtureRequest, tmp_path: Path, may_mount: None) -> Iterator[Parts]:
    object_id = digest(LARGE, Algorithm.SHA256)
    place = tmp_path / "objects" / object_id.path
    place.parent.mkdir(parents=True)
    place.write_bytes(LARGE)
    external = ExternalFile(0o100640, 1, 3, 4, 9_000_000_000, (), len(LARGE), object_id)
    children = {
        b"inline": InlineFile(0o100644, 1, 1, 2, 5_000_000_000, ((b"user.x", b"y"),), b"inside"),
        b"empty": InlineFile(0o100600, 1, 0, 0, 0, (), b""),
        b"link": Symlink(0o120777, 1, 0, 0, 0, (), b"large"),
        b"pipe": Special(0o010644, 1, 0, 0, 0),
        b"directory": Directory(0o40700, 2, 0, 0, 0, (), {b"large": external}),
        b"large": external,
    }
    image = tmp_path / "image"
    root = Directory(0o40755, 3, 0, 0, 0, (), dict(children))
    image.write_bytes(build_image(root, version=request.param))
    made = Parts(os.open(image, os.O_RDONLY), os.open(tmp_path / "objects", os.O_PATH | os.O_DIRECTORY))
    yield made
    os.close(made.image)
    os.close(made.objects)


def read(directory: int, path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY, dir_fd=directory)
    with open(fd, "rb") as file:
        return file.read()


def loops(below: Path) -> list[str]:
    """Loop devices over files below a directory; others are those of tests that run at the same time."""
    found = []
    for device in Path("/sys/block").glob("loop*"):
        try:
            backing = (device / "loop/backing_file").read_text()
        except OSError:  # it is free, or became so meanwhile
            continue
        if backing.startswith(f"{below}/"):
            found.append(device.name)
    return found


def require_way(backing: Backing, layering: Layering) -> None:
    """Skip the test where the machine cannot mount in this way, which is then one of the others' turn."""
    if backing is Backing.LOOP and not os.path.exists("/dev/loop-control"):
        pytest.skip("there is no /dev/loop-control")
    major, minor = (int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    for needed, way in (((6, 12), Backing.FILE), ((6, 15), Layering.DESCRIPTORS), ((6, 7), Layering.STRINGS)):
        if way in (backing, layering) and (major, minor) < needed:
            pytest.skip(f"the kernel is older than {needed[0]}.{needed[1]}")


def mounts(below: Path) -> list[str]:
    """Lines of the mount table that name something below a directory."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{below}/" in line]


@pytest.fixture
def nothing_left(may_mount: None, tmp_path: Path) -> Iterator[None]:
    """The test must leave no mount and no loop device of its files."""
    yield
    assert (loops(tmp_path), mounts(tmp_path)) == ([], [])


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("backing", Backing)
@pytest.mark.parametrize("layering", Layering)
def test_each_way_mounts_the_whole_image(parts: Parts, backing: Backing, layering: Layering) -> None:
    require_way(backing, layering)
    options = KernelOptions(backings=(backing,), layerings=(layering,))
    mount = mount_composefs(parts.image, "test", parts.objects, options)
    try:
        assert sorted(os.listdir(f"/proc/self/fd/{mount}")) == [
            "directory",
            "empty",
            "inline",
            "large",
            "link",
            "pipe",
        ]
        assert {name: read(mount, os.fsdecode(name)) for name in CONTENT} == CONTENT
        assert read(mount, "directory/large") == LARGE
        assert os.readlink("link", dir_fd=mount) == "large"
        status = os.stat("large", dir_fd=mount)
        found = (status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_size)
        assert found == (stat.S_IFREG | 0o640, 2, 3, 4, 9_000_000_000, len(LARGE))
        assert os.getxattr(f"/proc/self/fd/{mount}/inline", "user.x") == b"y"
    finally:
        os.close(mount)


@pytest.mark.usefixtures("nothing_left")
def test_a_mount_is_read_only(parts: Parts) -> None:
    mount = mount_composefs(parts.image, "test", parts.objects, KernelOptions())
    try:
        with pytest.raises(OSError, match="Read-only") as caught:
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=mount)
        assert caught.value.errno == errno.EROFS
    finally:
        os.close(mount)


@pytest.mark.usefixtures("nothing_left")
def test_changes_go_to_the_upper_directory(parts: Parts, tmp_path: Path) -> None:
    paths = [tmp_path / "upper", tmp_path / "work"]
    for path in paths:
        path.mkdir()
    upper, work = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in paths)
    try:
        options = KernelOptions(upper=upper, work=work, read_write=True)
        mount = mount_composefs(parts.image, "test", parts.objects, options)
        try:
            with open(f"/proc/self/fd/{mount}/large", "ab") as file:
                file.write(b"more")
            assert read(mount, "large") == LARGE + b"more"
        finally:
            os.close(mount)
    except MountError as error:
        pytest.skip(f"the file system of tmp_path cannot be an upper layer: {error}")
    finally:
        os.close(upper)
        os.close(work)
    assert (tmp_path / "upper" / "large").read_bytes() == LARGE + b"more"


@pytest.mark.usefixtures("nothing_left")
def test_directories_that_cannot_be_upper_and_work_are_refused(parts: Parts, tmp_path: Path) -> None:
    upper = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    work = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(MountError, match="on one file system that can be an upper layer") as caught:
            mount_composefs(parts.image, "test", parts.objects, KernelOptions(upper=upper, work=work, read_write=True))
    finally:
        os.close(upper)
        os.close(work)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.usefixtures("nothing_left")
def test_verity_refuses_an_object_that_nothing_guards(parts: Parts) -> None:
    mount = mount_composefs(parts.image, "test", parts.objects, KernelOptions(verity=True))
    try:
        assert read(mount, "inline") == b"inside"
        with pytest.raises(OSError, match="Input/output") as caught:
            read(mount, "large")
        assert caught.value.errno == errno.EIO
    finally:
        os.close(mount)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("layering", [Layering.DESCRIPTORS, Layering.JOINED])
@pytest.mark.parametrize("backing", Backing)
def test_a_hundred_mounts_leave_nothing_behind(
    parts: Parts, tmp_path: Path, backing: Backing, layering: Layering
) -> None:
    require_way(backing, layering)
    place = tmp_path / "place"
    place.mkdir()
    options = KernelOptions(backings=(backing,), layerings=(layering,))
    for count in range(100):
        mount = mount_composefs(parts.image, f"test-{count}", parts.objects, options)
        if count % 2:
            attach(mount, str(place))
        os.close(mount)
        if count % 2:
            assert (place / "large").read_bytes() == LARGE
            unmount(str(place))
        assert os.listdir(place) == []


@pytest.mark.usefixtures("nothing_left")
def test_an_attached_mount_outlives_its_descriptor_until_it_is_unmounted(parts: Parts, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    mount = mount_composefs(parts.image, "shown-name", parts.objects, KernelOptions())
    attach(mount, str(place))
    os.close(mount)
    assert "composefs:shown-name" in mounts(tmp_path)[0]
    with open(place / "large", "rb"):
        with pytest.raises(MountError) as caught:
            unmount(str(place))
        assert caught.value.errno == errno.EBUSY
        unmount(str(place), lazy=True)
    assert os.listdir(place) == []


@pytest.mark.usefixtures("nothing_left")
def test_a_long_name_is_cut_in_the_mount_table_only(parts: Parts, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    mount = mount_composefs(parts.image, "n" * 1000, parts.objects, KernelOptions())
    attach(mount, str(place))
    os.close(mount)
    (line,) = mounts(tmp_path)
    assert 100 < line.count("n") < 1000
    assert (place / "large").read_bytes() == LARGE
    unmount(str(place))


@pytest.mark.usefixtures("nothing_left", "may_mount")
@pytest.mark.parametrize("backing", Backing)
def test_what_is_no_image_is_refused(tmp_path: Path, backing: Backing) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(MountError) as caught:
            mount_erofs(fd, "zeros", KernelOptions(backings=(backing,)))
    finally:
        os.close(fd)
    assert (caught.value.errno, caught.value.what) == (errno.EINVAL, "zeros")


@pytest.mark.usefixtures("nothing_left", "may_mount")
def test_an_unknown_file_system_is_refused() -> None:
    with pytest.raises(MountError) as caught:
        mount_api.Context("nosuchfs", "thing")
    assert caught.value.errno == errno.ENODEV


@pytest.mark.usefixtures("nothing_left", "may_mount")
def test_a_refused_parameter_is_reported_in_the_words_of_the_kernel() -> None:
    with mount_api.Context("overlay", "thing") as context, pytest.raises(MountError) as caught:
        context.set_string("nosuchkey", "on")
    assert caught.value.log == "overlay: Unknown parameter 'nosuchkey'"


@pytest.mark.usefixtures("nothing_left")
def test_a_mountpoint_that_is_not_there_is_named(parts: Parts, tmp_path: Path) -> None:
    mount = mount_composefs(parts.image, "test", parts.objects, KernelOptions())
    try:
        with pytest.raises(FileNotFoundError, match="missing"):
            attach(mount, str(tmp_path / "missing"))
    finally:
        os.close(mount)


@pytest.mark.usefixtures("nothing_left", "may_mount")
def test_unmounting_what_is_not_mounted_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MountError, match=f"^unmounting {tmp_path}: Invalid argument .nothing is mounted there.$"):
        unmount(str(tmp_path))


@pytest.mark.usefixtures("may_mount")
def test_loop_devices_are_free_after_the_block(tmp_path: Path) -> None:
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("there is no /dev/loop-control")
    path = tmp_path / "file"
    path.write_bytes(b"block" * 4096)
    fd = os.open(path, os.O_RDONLY)
    try:
        with loop_device(fd, "file") as device:
            assert len(loops(tmp_path)) == 1
            with open(device, "rb") as file:
                assert file.read(10) == b"blockblock"
            with pytest.raises(OSError, match=r"permitted|Read-only|denied"), open(device, "r+b", buffering=0) as file:
                file.write(b"x" * 4096)
    finally:
        os.close(fd)
    assert loops(tmp_path) == []


WITHOUT_PRIVILEGE = """
import os, sys
from composefs_async._sys.mount import KernelOptions, mount_erofs
from composefs_async.errors import MountError
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    mount_erofs(0, "image", KernelOptions())
except MountError as error:
    print(error.errno, error)
"""


def test_without_privilege_the_error_says_what_is_missing() -> None:
    command = [sys.executable, "-c", WITHOUT_PRIVILEGE]
    result = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    message = "mounting image: Operation not permitted (mounting needs the capability CAP_SYS_ADMIN)"
    assert result.stdout == f"{errno.EPERM} {message}\n"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("path", "number", "said"),
    [
        ("/proc/self/ns/user", errno.EPERM, "must not be that of the file system"),
        ("/proc/self/ns/net", errno.EINVAL, "the descriptor is of no user namespace"),
        ("/dev/null", errno.EINVAL, "the descriptor is of no user namespace"),
    ],
)
def test_what_maps_no_owners_is_refused(parts: Parts, path: str, number: int, said: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(MountError, match=said) as caught:
            mount_composefs(parts.image, "test", parts.objects, KernelOptions(idmap=fd))
    finally:
        os.close(fd)
    assert caught.value.errno == number


@pytest.mark.usefixtures("nothing_left")
def test_owners_are_mapped_as_a_user_namespace_maps_them(parts: Parts, user_namespace: str) -> None:
    with open(user_namespace, "rb") as namespace:
        mount = mount_composefs(parts.image, "test", parts.objects, KernelOptions(idmap=namespace.fileno()))
    try:
        status = os.stat("large", dir_fd=mount)
        assert (status.st_uid, status.st_gid) == (1003, 1004)
        assert read(mount, "large") == LARGE
    finally:
        os.close(mount)
