"""Machines made ready to boot: which files are written, in which order, what a stop leaves, and the way back."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async import Algorithm, Repository
from composefs_async.boot import check_boot, ensure_boot_image, prepare_boot, unprepare_boot
from composefs_async.errors import BootError, StreamNotFoundError
from composefs_async.oci import pull
from composefs_async.oci.catalogue import open_image, untag

from ..maintenance.crashing import every_interruption, interrupt
from .conftest import B1_FILES, layer_of, write_layout
from .portable import kernel_image, make_uki

B1_ID = "8931c60a67cd196968759bede6c2ad1392710963e6f851380dcd4e515e860cc2"
KARG = f"composefs.digest=?v1-sha256-12:{B1_ID}"
KERNEL, INITRD = b"KERNEL" * 1000, b"INITRD" * 500
MODULES = "usr/lib/modules/6.1.0-demo"
CONF = f"""# File created by composefs
title Demo OS 7
version 7
sort-key demo
linux /6.1.0-demo/vmlinuz
initrd /6.1.0-demo/initramfs.img
options {KARG}
"""


def everything(top: Path) -> dict[str, bytes | str | None]:
    """All files, links and directories below *top*."""
    return {
        str(path.relative_to(top)): path.read_bytes() if path.is_file() and not path.is_symlink() else _target(path)
        for path in sorted(top.rglob("*"))
    }


def _target(path: Path) -> str | None:
    return os.readlink(path) if path.is_symlink() else None


def files_of(top: Path) -> dict[str, bytes]:
    return {path: content for path, content in everything(top).items() if isinstance(content, bytes)}


def times(top: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in top.rglob("*")}


class Machine:
    """A repository, a boot partition and what is beside them."""

    def __init__(self, top: Path) -> None:
        self.top, self.boot = top, top / "boot"
        self.boot.mkdir(parents=True)
        self.repo = Repository.init(top / "composefs", algorithm=Algorithm.SHA256, insecure=True)

    def pull(self, files: dict[str, Any] | None = None, tag: str = "demo", **more: Any) -> None:
        layer = layer_of({**(dict(B1_FILES) if files is None else files), **more})
        anyio.run(partial(pull, self.repo, write_layout(self.top / f"layout-{tag}", layer, tag), tag=tag))

    def prepare(self, tag: str = "demo", **options: Any) -> Any:
        return prepare_boot(self.repo, tag, self.boot, **options)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "machine")
    yield made
    made.repo.close()


# -- plain kernels -----------------------------------------------------------------------------


def test_a_plain_kernel(machine: Machine) -> None:
    machine.pull()
    done = machine.prepare()
    assert files_of(machine.boot) == {
        "6.1.0-demo/vmlinuz": KERNEL,
        "6.1.0-demo/initramfs.img": INITRD,
        "loader/entries/6.1.0-demo.conf": CONF.encode(),
    }
    assert (done.image.hex(), done.karg, done.reference) == (B1_ID, KARG, f"boot/{B1_ID}")
    assert done.written == ("6.1.0-demo/vmlinuz", "6.1.0-demo/initramfs.img", "loader/entries/6.1.0-demo.conf")
    assert done.boot_digest == hashlib.sha256(KERNEL + INITRD).hexdigest()
    assert done.state == str(machine.top / "state/deploy" / B1_ID)
    state = {path: Path(done.state, path).stat().st_mode & 0o777 for path in ("var", "etc", "etc/upper", "etc/work")}
    assert state == {"var": 0o755, "etc": 0o755, "etc/upper": 0o755, "etc/work": 0o700}
    entry = machine.boot / "loader/entries/6.1.0-demo.conf"
    assert check_boot(machine.repo, entry).problems == ()


def test_a_second_time_changes_nothing(machine: Machine) -> None:
    machine.pull()
    machine.prepare(cmdline=["rw"])
    before = times(machine.top)
    done = machine.prepare(cmdline=["rw"])
    assert done.written == ()
    assert times(machine.top) == before


def test_a_file_that_was_changed_is_written_again(machine: Machine) -> None:
    machine.pull()
    machine.prepare()
    (machine.boot / "6.1.0-demo/vmlinuz").write_bytes(b"k" + KERNEL[1:])
    assert machine.prepare().written == ("6.1.0-demo/vmlinuz",)
    assert (machine.boot / "6.1.0-demo/vmlinuz").read_bytes() == KERNEL


def test_gc_keeps_what_is_prepared(machine: Machine) -> None:
    machine.pull()
    machine.prepare()
    untag(machine.repo, "demo")
    machine.repo.gc()
    assert machine.repo.named_images() == [(f"boot/{B1_ID}", B1_ID)]
    assert check_boot(machine.repo, machine.boot / "loader/entries/6.1.0-demo.conf").problems == ()
    done = unprepare_boot(machine.repo, B1_ID, machine.boot)
    assert (done.reference, len(done.removed)) == (True, 3)
    machine.repo.gc()
    assert machine.repo.has_image(B1_ID) is None


def test_a_dry_run_writes_nothing(machine: Machine) -> None:
    machine.pull()
    before = everything(machine.top)
    done = machine.prepare(dry_run=True)
    assert (done.image.hex(), done.written, done.dry_run) == (B1_ID, tuple(path for path, _ in done.files), True)
    assert dict(done.files) == {
        "6.1.0-demo/vmlinuz": 6000,
        "6.1.0-demo/initramfs.img": 3000,
        "loader/entries/6.1.0-demo.conf": len(CONF),
    }
    assert everything(machine.top) == before


def test_names_and_arguments_can_be_chosen(machine: Machine) -> None:
    machine.pull()
    machine.prepare(entry_id="mine", cmdline=["rw", 'a="b c"', "rw=1"], sysroot=machine.boot)
    conf = (machine.boot / "loader/entries/mine.conf").read_text()
    assert conf.splitlines()[-3:] == [
        "linux /mine/vmlinuz",
        "initrd /mine/initramfs.img",
        f'options {KARG} rw a="b c" rw=1',
    ]
    assert (machine.boot / "state/deploy" / B1_ID).is_dir()


def test_what_the_image_does_not_say_of_itself(machine: Machine) -> None:
    machine.pull({name: content for name, content in B1_FILES.items() if "os-release" not in name})
    machine.prepare()
    lines = (machine.boot / "loader/entries/6.1.0-demo.conf").read_text().splitlines()
    assert lines[1:4] == ["title Linux", "version 6.1.0-demo", "sort-key linux"]


# -- entries of type 1 -------------------------------------------------------------------------

ENTRY = f"title X\nlinux /boot/vmlinuz-7\noptions quiet composefs={'0' * 64}\ninitrd /boot/initrd-7\noptions a=1\n"
TYPE1 = {"boot/loader/entries/x.conf": ENTRY.encode(), "boot/vmlinuz-7": b"k7", "boot/initrd-7": b"i7"}


def test_an_entry_of_the_image_comes_first_and_names_one_image(machine: Machine) -> None:
    machine.pull(**TYPE1)
    image = machine.prepare(cmdline=["a=2"]).image.hex()
    karg = f"composefs.digest=?v1-sha256-12:{image}"
    expected = f"title X\nlinux /boot/vmlinuz-7\noptions quiet a=2 {karg}\ninitrd /boot/initrd-7\n"
    assert files_of(machine.boot) == {
        "boot/vmlinuz-7": b"k7",
        "boot/initrd-7": b"i7",
        "loader/entries/x.conf": expected.encode(),
    }


def test_an_entry_of_the_image_under_another_name(machine: Machine) -> None:
    machine.pull(**TYPE1)
    machine.prepare(entry_id="id")
    found = files_of(machine.boot)
    assert sorted(found) == ["id/initrd-7", "id/vmlinuz-7", "loader/entries/id.conf"]
    assert b"linux /id/vmlinuz-7\n" in found["loader/entries/id.conf"]
    assert b"initrd /id/initrd-7\n" in found["loader/entries/id.conf"]


def test_all_entries(machine: Machine) -> None:
    machine.pull(**TYPE1)
    machine.prepare(all_entries=True)
    assert sorted(path.name for path in (machine.boot / "loader/entries").iterdir()) == ["6.1.0-demo.conf", "x.conf"]
    with pytest.raises(BootError, match="2 of them, which cannot have one name"):
        machine.prepare(all_entries=True, entry_id="id")


def test_two_files_that_would_have_one_name(machine: Machine) -> None:
    entry = b"linux /boot/vmlinuz-7\ninitrd /usr/vmlinuz-7\n"
    machine.pull(**{**TYPE1, "boot/loader/entries/x.conf": entry, "usr/vmlinuz-7": b"other"})
    with pytest.raises(BootError, match="two files of the image would have this name"):
        machine.prepare(entry_id="id")
    assert everything(machine.boot) == {}


# -- unified kernel images ---------------------------------------------------------------------


def with_uki(
    machine: Machine, line: str = "rw composefs=?{id}\0", place: str = "boot/EFI/Linux/demo.efi", **more: bytes
) -> str:
    """Pull an image with a kernel image that names it; the digest does not depend on what is in /boot."""
    machine.pull(tag="first")
    image = ensure_boot_image(machine.repo, "first").boot_image(1)
    assert image is not None
    content = kernel_image(line.format(id=image.hex()).encode())
    machine.pull(**{place: content, **more})
    return image.hex()


def test_a_unified_kernel_image_and_its_addons(machine: Machine) -> None:
    addon = make_uki([(".cmdline", b"quiet")])
    more = {
        "boot/EFI/Linux/a.addon.efi": addon,  # sorts first, and belongs to no image
        "boot/EFI/Linux/demo.efi.extra.d/one.addon.efi": addon,
        "boot/EFI/Linux/other.efi.extra.d/two.addon.efi": addon,
        "boot/loader/addons/all.addon.efi": addon,
    }
    image = with_uki(machine, **more)
    done = machine.prepare()
    assert done.image.hex() == image
    assert sorted(files_of(machine.boot)) == [
        "EFI/Linux/demo.efi",
        "EFI/Linux/demo.efi.extra.d/one.addon.efi",
        "loader/addons/all.addon.efi",
    ]
    assert done.boot_digest == hashlib.sha256(b"KERNEL" * 100 + b"INITRD" * 100).hexdigest()
    assert check_boot(machine.repo, machine.boot / "EFI/Linux/demo.efi").ok
    renamed = machine.prepare(entry_id="id")
    assert [path for path, _ in renamed.files] == [
        "EFI/Linux/id.efi",
        "EFI/Linux/id.efi.extra.d/one.addon.efi",
        "loader/addons/all.addon.efi",
    ]
    gone = unprepare_boot(machine.repo, image, machine.boot)
    assert sorted(gone.removed) == [
        "EFI/Linux/demo.efi",
        "EFI/Linux/demo.efi.extra.d/one.addon.efi",
        "EFI/Linux/id.efi",
        "EFI/Linux/id.efi.extra.d/one.addon.efi",
    ]


def test_a_kernel_image_beside_its_modules_changes_the_digest(machine: Machine) -> None:
    with_uki(machine, place=f"{MODULES}/6.1.0-demo.efi")
    with pytest.raises(BootError, match="it boots the image"):
        machine.prepare()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rw", "names no image"),
        ("composefs=?" + "0" * 64, "it boots the image 0000"),
        ("composefs=?{id} composefs=?" + "0" * 64, "it boots the image 0000"),
        ("composefs={id}", "it requires fs-verity, which this repository has not; force"),
        ("composefs=?{id} composefs=abc", "3 characters"),
    ],
)
def test_kernel_images_that_boot_something_else(machine: Machine, line: str, words: str) -> None:
    with_uki(machine, line)
    with pytest.raises(BootError, match=words):
        machine.prepare()
    assert everything(machine.boot) == {}
    assert machine.repo.named_images() == []


def test_a_kernel_image_can_be_forced_and_not_added_to(machine: Machine) -> None:
    with_uki(machine, "composefs={id}")
    done = machine.prepare(force=True)
    assert ["requires fs-verity" in warning for warning in done.warnings] == [True]
    with pytest.raises(BootError, match="cannot be added to"):
        machine.prepare(force=True, cmdline=["rw"])


def test_a_kernel_image_that_is_cut(machine: Machine) -> None:
    machine.pull(**{"boot/EFI/Linux/demo.efi": kernel_image(b"rw")[:2000]})
    with pytest.raises(BootError, match=r"/boot/EFI/Linux/demo\.efi"):
        machine.prepare()


# -- bootc -------------------------------------------------------------------------------------


def test_files_and_state_as_bootc_has_them(machine: Machine) -> None:
    more = {"etc/.updated": b"x", "etc/dir/file": b"y" * 100, "etc/link": "dir/file", "var/lib/x": b"z"}
    machine.pull(**more)
    done = machine.prepare(layout="bootc", cmdline=["rw"], container_reference="docker://example.org/demo:7")
    image = done.image.hex()
    place = f"bootc_composefs-{image}"
    assert files_of(machine.boot) == {
        f"{place}/vmlinuz": KERNEL,
        f"{place}/initrd": INITRD,
        "loader/entries/bootc_demo-7-1.conf": (
            f"# File created by composefs\ntitle Demo OS 7\nversion 7\nsort-key bootc-demo-0\n"
            f"linux /{place}/vmlinuz\ninitrd /{place}/initrd\noptions composefs=?{image} rw\n"
        ).encode(),
    }
    state = Path(done.state)
    manifest = open_image(machine.repo, "demo").manifest.digest
    assert everything(state) == {
        "etc": None,
        "etc/dir": None,
        "etc/dir/file": b"y" * 100,
        "etc/hostname": b"h\n",
        "etc/link": "dir/file",
        "var": "../../os/default/var",
        f"{image}.origin": (
            "[origin]\ncontainer-image-reference=ostree-unverified-image:docker://example.org/demo:7\n\n"
            f"[boot]\nboot_type=bls\ndigest={done.boot_digest}\n\n[image]\nmanifest_digest={manifest}\n\n"
        ).encode(),
    }
    assert (state / "etc/hostname").stat().st_mtime == 1_700_000_001
    assert (state / "etc/hostname").stat().st_mode == stat.S_IFREG | 0o644
    assert (state / "var/lib/x").read_bytes() == b"z"
    before = times(machine.top)
    assert (
        machine.prepare(layout="bootc", cmdline=["rw"], container_reference="docker://example.org/demo:7").written == ()
    )
    assert times(machine.top) == before


def test_deployments_of_bootc_share_kernels_and_var(machine: Machine) -> None:
    machine.pull(tag="one")
    machine.pull(tag="two", **{"etc/other": b"x", "usr/lib/os-release": b"ID=a-b\nVERSION_ID=8\n"})
    one, two = machine.prepare("one", layout="bootc"), machine.prepare("two", layout="bootc")
    place = f"bootc_composefs-{one.image.hex()}"
    assert two.written == ("loader/entries/bootc_a_b-8-1.conf",)
    conf = (machine.boot / "loader/entries/bootc_a_b-8-1.conf").read_text()
    assert f"linux /{place}/vmlinuz\n" in conf
    # What the other names stays when one goes.
    gone = unprepare_boot(machine.repo, "one", machine.boot)
    assert gone.removed == ("loader/entries/bootc_demo-7-1.conf",)
    gone = unprepare_boot(machine.repo, "two", machine.boot)
    assert sorted(gone.removed) == [f"{place}/initrd", f"{place}/vmlinuz", "loader/entries/bootc_a_b-8-1.conf"]


def test_a_kernel_image_for_bootc(machine: Machine) -> None:
    image = with_uki(machine)
    machine.prepare(layout="bootc")
    path = f"EFI/Linux/bootc/bootc_composefs-{image}.efi"
    found = files_of(machine.boot)
    assert sorted(found) == [path, "loader/entries/bootc_demo-7-1.conf"]
    assert found["loader/entries/bootc_demo-7-1.conf"].splitlines()[-1] == f"uki /{path}".encode()
    assert check_boot(machine.repo, machine.boot / "loader/entries/bootc_demo-7-1.conf").ok
    assert len(unprepare_boot(machine.repo, "demo", machine.boot).removed) == 2


def test_a_state_in_another_form_stays(machine: Machine) -> None:
    machine.pull()
    before = everything(Path(machine.prepare().state))
    done = machine.prepare(layout="bootc")
    assert everything(Path(done.state)) == before
    assert ["another form than bootc's" in warning for warning in done.warnings] == [True]


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({f"{MODULES}/vmlinuz": b"k"}, {}, r"no initramfs\.img beside it"),
        ({}, {}, "it has no kernel"),
        (None, {"entry_id": "../x"}, "without slashes"),
        (None, {"entry_id": ".x"}, "without a dot"),
        (None, {"entry_id": ""}, "no name without slashes"),
        (None, {"entry_id": "a:b"}, "no name that a boot partition"),
        (None, {"entry_id": "x" * 241}, "no name that a boot partition"),
        (None, {"cmdline": ["a\0b"]}, "cannot be printed"),
        (None, {"cmdline": [""]}, "empty"),
        (None, {"cmdline": ["composefs=x"]}, "not to be chosen"),
    ],
)
def test_what_cannot_be_prepared(machine: Machine, files: Any, options: dict[str, Any], words: str) -> None:
    machine.pull(files if files is None else {"usr/x": b"", **files})
    with pytest.raises(BootError, match=words):
        machine.prepare(**options)
    assert everything(machine.boot) == {}
    assert machine.repo.named_images() == []


def test_an_image_that_is_not_there(machine: Machine) -> None:
    with pytest.raises(StreamNotFoundError):
        machine.prepare("nothing")
    with pytest.raises(StreamNotFoundError):
        unprepare_boot(machine.repo, "nothing", machine.boot)
    machine.pull()
    with pytest.raises(BootError, match="no bootable image"):
        unprepare_boot(machine.repo, "demo", machine.boot)


@pytest.mark.parametrize(("free", "flags", "code"), [(2, 0, errno.ENOSPC), (1000, os.ST_RDONLY, errno.EROFS)])
def test_a_full_or_read_only_partition_is_told_before_anything_is_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, free: int, flags: int, code: int
) -> None:
    class Status:
        f_frsize, f_bavail, f_flag = 4096, free, flags

    machine.pull()
    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: Status if path == str(machine.boot) else real(path))
    with pytest.raises(OSError, match=str(machine.boot)) as caught:
        machine.prepare()
    assert caught.value.errno == code
    assert everything(machine.boot) == {}
    assert (machine.repo.named_images(), (machine.top / "state").exists()) == ([], False)


def test_a_partition_that_is_full_after_all(machine: Machine, may_mount: None) -> None:
    """Others may take the space meanwhile: nothing is left, and what was there still is."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", machine.boot], check=True)
    try:
        machine.pull()
        machine.prepare(cmdline=["old"])
        before = everything(machine.boot)
        machine.pull(tag="next", **{f"{MODULES}/initramfs.img": b"n" * 200_000})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("composefs_async.boot.prepare.check_space", lambda *_: 0)
            patch.setattr("composefs_async.boot.bootfiles.check_space", lambda *_: 0)
            with pytest.raises(OSError, match="No space left") as caught:
                machine.prepare("next")
        assert str(machine.boot) in str(caught.value.filename)
        assert everything(machine.boot) == before
        with pytest.raises(OSError, match="bytes are needed"):
            machine.prepare("next")
    finally:
        subprocess.run(["umount", machine.boot], check=True)


# -- stops -------------------------------------------------------------------------------------


def test_a_stop_at_any_step_leaves_what_boots_and_can_be_done_again(tmp_path: Path) -> None:
    base = Machine(tmp_path / "base")
    base.pull(tag="one")
    base.pull(tag="two", **{f"{MODULES}/vmlinuz": b"new" * 1000, "etc/x": b"y"})
    base.prepare("one")
    before = files_of(base.boot)
    base.repo.close()

    def prepare(path: Path) -> Any:
        with Repository.open_path(path / "composefs") as repo:
            return prepare_boot(repo, "two", path / "boot", layout="bls", cmdline=["rw"])

    whole = Path(shutil.copytree(base.top, tmp_path / "whole", symlinks=True))
    prepare(whole)
    after = files_of(whole / "boot")
    count = 0
    for path in every_interruption(prepare, base.top, tmp_path / "work"):
        count += 1
        found = {name: content for name, content in files_of(path / "boot").items() if not name.endswith(".tmp")}
        assert [name for name, content in found.items() if content not in (before.get(name), after.get(name))] == []
        with Repository.open_path(path / "composefs") as repo:
            repo.gc()
            (entry,) = (path / "boot/loader/entries").glob("*.conf")
            assert check_boot(repo, entry).problems == ()
        prepare(path)
        assert files_of(path / "boot") == after
        assert list(path.rglob("*.tmp")) == []
    assert count > 5


def test_a_stop_on_the_way_back_leaves_no_entry_that_leads_nowhere(tmp_path: Path) -> None:
    base = Machine(tmp_path / "base")
    base.pull()
    base.prepare()
    untag(base.repo, "demo")
    base.repo.close()

    def unprepare(path: Path) -> Any:
        with Repository.open_path(path / "composefs") as repo:
            return unprepare_boot(repo, B1_ID, path / "boot")

    for at in range(1, 100):
        path = tmp_path / "work"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(base.top, path, symlinks=True)
        if not interrupt(partial(unprepare, path), at):
            break
        with Repository.open_path(path / "composefs") as repo:
            repo.gc()
            for entry in (path / "boot/loader/entries").glob("*.conf"):
                assert check_boot(repo, entry).problems == ()
                assert (path / "boot/6.1.0-demo/vmlinuz").exists()
        if (path / "boot/loader/entries/6.1.0-demo.conf").exists():
            unprepare(path)
            assert files_of(path / "boot") == {}
    assert at > 3
    assert files_of(tmp_path / "work/boot") == {}


def test_the_way_back_can_be_looked_at_before(machine: Machine) -> None:
    machine.pull()
    machine.prepare()
    before = everything(machine.top)
    done = unprepare_boot(machine.repo, "demo", machine.boot, dry_run=True)
    assert (len(done.removed), done.reference, done.dry_run) == (3, True, True)
    assert everything(machine.top) == before
