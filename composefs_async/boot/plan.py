"""Which files on a boot partition let a machine boot an image, by each kind of boot entry.

Owns their names and what entries say; nothing is read but through the functions it is given, and nothing is written.
Does not own writing (`bootfiles`), nor the order of the whole (`prepare`).

=============  =======================================================  ==============================================
entry          layout ``bls``                                           layout ``bootc``
=============  =======================================================  ==============================================
plain kernel   ``ID/vmlinuz``, ``ID/initramfs.img``,                    ``bootc_composefs-HEX/{vmlinuz,initrd}``,
               ``loader/entries/ID.conf``                               ``loader/entries/bootc_OS-VERSION-1.conf``
type 1         the files under their paths, or ``ID/NAME``; the entry   refused, as by bootc
kernel image   ``EFI/Linux/NAME.efi``, or ``ID.efi``                    ``EFI/Linux/bootc/bootc_composefs-HEX.efi``,
                                                                        and an entry with ``uki``
=============  =======================================================  ==============================================
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from ..digest import ObjectId
from ..errors import BootError
from ..tree.inodes import Directory, ExternalFile, InlineFile
from ..tree.walk import find
from .bootfiles import BootFile, OpenFile
from .entries import BootEntry, EntryText, KernelEntry, TextEntry, UkiEntry
from .kargs import Form, format_karg, replace_kargs
from .os_release import OS_RELEASE_LIMIT, OsRelease, parse_os_release
from .uki import ReadAt, Uki, read_at, read_uki

__all__ = ["BootLayout", "BootPlan", "Request", "plan_entries"]

BootLayout = Literal["bls", "bootc"]

_PIECE: Final = 1 << 20
_EFI_LINUX: Final = "EFI/Linux"


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be booted, and how."""

    image: ObjectId
    version: int
    """Version of the image's layout."""
    insecure: bool
    """fs-verity is not required."""
    layout: BootLayout = "bls"
    entry_id: str | None = None
    cmdline: tuple[str, ...] = ()
    all_entries: bool = False
    force: bool = False
    """Take a kernel image although it requires fs-verity where the repository has it not, or the other way round."""

    @property
    def karg(self) -> str:
        """The kernel argument."""
        form: Form | None = "composefs" if self.layout == "bootc" else None
        return format_karg(self.image, self.version, insecure=self.insecure, form=form)


@dataclass(slots=True)
class BootPlan:
    """What has to be there."""

    files: list[BootFile] = field(default_factory=list)
    """In the order of writing: entries come behind what they name."""
    boot_type: str = ""
    """``bls`` or ``uki``, of the first entry."""
    boot_digest: str = ""
    """The SHA-256 of kernel and initrd of the first entry, in hexadecimal."""
    warnings: list[str] = field(default_factory=list)


def plan_entries(entries: Sequence[BootEntry], request: Request, root: Directory, open_file: OpenFile) -> BootPlan:
    """Plan the first of *entries*, or all of them, and the addons of kernel images.

    Args:
        root: the tree that they are in, not transformed for booting.
        open_file: opens files of the tree.

    Raises:
        BootError: nothing can be booted, or a kernel image boots something else.
    """
    addons = [entry for entry in entries if isinstance(entry, UkiEntry) and entry.is_addon]
    usable = [entry for entry in entries if entry not in addons]
    if request.layout == "bootc":
        usable = [entry for entry in usable if not isinstance(entry, TextEntry)]
    if not usable:
        raise BootError(
            "the image", "it has no kernel: no boot entry, unified kernel image, or /usr/lib/modules/*/vmlinuz"
        )
    chosen = usable if request.all_entries else usable[:1]
    if len(chosen) > 1 and (request.entry_id is not None or request.layout == "bootc"):
        raise BootError("boot entries", f"there are {len(chosen)} of them, which cannot have one name")
    planner = _Planner(request, root, open_file)
    for entry in chosen:
        if isinstance(entry, UkiEntry):
            planner.add_uki(entry)
        elif isinstance(entry, KernelEntry):
            planner.add_kernel(entry)
        else:
            planner.add_text(entry)
    if any(isinstance(entry, UkiEntry) for entry in chosen):
        for addon in addons:
            planner.add_addon(addon, chosen)
    planner.plan.files += planner.entries
    return planner.plan


class _Planner:
    def __init__(self, request: Request, root: Directory, open_file: OpenFile) -> None:
        self.plan = BootPlan()
        self.entries: list[BootFile] = []
        self._request, self._root, self._open = request, root, open_file
        self._os: OsRelease | None = None

    # -- plain kernels

    def add_kernel(self, entry: KernelEntry) -> None:
        if entry.initrd is None:
            raise BootError(f"kernel {entry.release}", "there is no initramfs.img beside it")
        self._note("bls", self._digest(entry.kernel, entry.initrd))
        if self._request.layout == "bootc":
            place = f"bootc_composefs-{self._request.image.hex()}"
            names, conf = ("vmlinuz", "initrd"), self._bootc_name()
        else:
            place = self._request.entry_id or entry.release
            names, conf = ("vmlinuz", "initramfs.img"), f"{place}.conf"
        self._add(f"{place}/{names[0]}", entry.kernel)
        self._add(f"{place}/{names[1]}", entry.initrd)
        lines = [*self._head(entry.release), f"linux /{place}/{names[0]}", f"initrd /{place}/{names[1]}"]
        text = EntryText("\n".join(lines))
        text.set_options(replace_kargs("", self._request.karg, self._request.cmdline))
        self._add_entry(conf, text)

    def _head(self, release: str) -> list[str]:
        found = self._os_release()
        version = found.version or release
        sort_key = f"bootc-{found.id}-0" if self._request.layout == "bootc" else found.id
        return ["# File created by composefs", f"title {found.name}", f"version {version}", f"sort-key {sort_key}"]

    def _bootc_name(self) -> str:
        found = self._os_release()
        return f"bootc_{found.id.replace('-', '_')}-{found.version or '0'}-1.conf"

    def _os_release(self) -> OsRelease:
        if self._os is None:
            inode = find(self._root, b"usr/lib/os-release")
            content = self._small(inode, OS_RELEASE_LIMIT) if isinstance(inode, ExternalFile | InlineFile) else b""
            self._os = parse_os_release(content)
        return self._os

    # -- entries of type 1

    def add_text(self, entry: TextEntry) -> None:
        text = EntryText(entry.text.encode().decode())
        for key, value in entry.text.files():
            if self._request.entry_id is None:
                path = value.lstrip("/")
            else:
                path = f"{self._request.entry_id}/{value.rpartition('/')[2]}"
                text.replace(key, value, f"/{path}")
            self._add(path, entry.files[value])
        files = {key: entry.files[value] for key, value in reversed(entry.text.files())}
        if "linux" in files:
            self._note("bls", self._digest(*(files[key] for key in ("linux", "initrd") if key in files)))
        self._note("bls", "")
        text.set_options(replace_kargs(text.options(), self._request.karg, self._request.cmdline))
        name = entry.name if self._request.entry_id is None else f"{self._request.entry_id}.conf"
        self._add_entry(name, text)

    # -- unified kernel images

    def add_uki(self, entry: UkiEntry) -> None:
        if self._request.cmdline:
            raise BootError(entry.source, "the arguments of a unified kernel image are fixed, and cannot be added to")
        with _opened(entry.file, self._open) as (read, size):
            uki = read_uki(read, size, entry.source)
            self._check(uki)
            self._note("uki", uki.boot_digest() if uki.section(".initrd") and not uki.is_addon else "")
            release = uki.os_release()
        if self._request.layout == "bootc":
            self._os = release or self._os_release()
            path = f"{_EFI_LINUX}/bootc/bootc_composefs-{self._request.image.hex()}.efi"
            self._add_entry(self._bootc_name(), EntryText("\n".join([*self._head("0"), f"uki /{path}"])))
        else:
            path = f"{_EFI_LINUX}/{self._uki_name(entry)}"
        self._add(path, entry.file)

    def _uki_name(self, entry: UkiEntry) -> str:
        if self._request.entry_id is None:
            return entry.path
        above = os.path.dirname(entry.path)
        return f"{above}/{self._request.entry_id}.efi" if above else f"{self._request.entry_id}.efi"

    def add_addon(self, addon: UkiEntry, chosen: Sequence[BootEntry]) -> None:
        """Global ones, and those of the chosen images; others stay out."""
        with _opened(addon.file, self._open) as (read, size):
            uki = read_uki(read, size, addon.source)
            if uki.section(".cmdline") is not None:
                self._check(uki, needed=False)
        if addon.place == "loader/addons":
            self._add(f"loader/addons/{addon.path}", addon.file)
            return
        above, _, name = addon.path.rpartition("/")
        for entry in chosen:
            if isinstance(entry, UkiEntry) and above == f"{entry.path}.extra.d" and addon.release == entry.release:
                target = f"bootc/bootc_composefs-{self._request.image.hex()}.efi"
                target = target if self._request.layout == "bootc" else self._uki_name(entry)
                self._add(f"{_EFI_LINUX}/{target}.extra.d/{name}", addon.file)

    def _check(self, uki: Uki, *, needed: bool = True) -> None:
        request = self._request
        kargs = uki.kargs()
        if needed and not kargs:
            raise BootError(uki.name, "its command line names no image")
        for karg in kargs:
            if karg.id != request.image:
                raise BootError(uki.name, f"it boots the image {karg.id.hex()}, not {request.image.hex()}")
            if karg.insecure != request.insecure:
                what = "does not require" if karg.insecure else "requires"
                reason = f"it {what} fs-verity, which this repository {'has not' if request.insecure else 'has'}"
                if not request.force:
                    raise BootError(uki.name, f"{reason}; force takes it all the same")
                self.plan.warnings.append(f"{uki.name}: {reason}")

    # -- helpers

    def _note(self, boot_type: str, digest: str) -> None:
        if not self.plan.boot_type:
            self.plan.boot_type, self.plan.boot_digest = boot_type, digest

    def _add(self, path: str, file: ExternalFile | InlineFile) -> None:
        known = [each for each in self.plan.files if each.path == path]
        if known and known[0].content is not file:
            raise BootError(f"boot file {path!r}", "two files of the image would have this name")
        if not known:
            self.plan.files.append(BootFile(path, file))

    def _add_entry(self, name: str, text: EntryText) -> None:
        self.entries.append(BootFile(f"loader/entries/{name}", text.encode()))

    def _small(self, inode: ExternalFile | InlineFile, limit: int) -> bytes:
        if isinstance(inode, InlineFile):
            return inode.content
        with _opened(inode, self._open) as (read, _):
            return read(0, limit)

    def _digest(self, *parts: ExternalFile | InlineFile) -> str:
        hasher = hashlib.sha256()
        for part in parts:
            with _opened(part, self._open) as (read, size):
                for at in range(0, size, _PIECE):
                    hasher.update(read(at, min(_PIECE, size - at)))
        return hasher.hexdigest()


@contextmanager
def _opened(inode: ExternalFile | InlineFile, open_file: OpenFile) -> Iterator[tuple[ReadAt, int]]:
    """What reads a file of the tree, and its size."""
    if isinstance(inode, InlineFile):
        content = inode.content
        yield lambda offset, size: content[offset : offset + size], len(content)
        return
    fd = open_file(inode)
    try:
        yield read_at(fd), os.fstat(fd).st_size
    finally:
        os.close(fd)
