"""Boot entries in a tree: which kernels an operating system brings along, and how they are described.

Owns the three kinds and where they are, and the text of entries of type 1.  Does not own kernel images (`uki`), nor
writing anything (`prepare`).

Source: UAPI.1, Boot Loader Specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ..errors import BootError
from ..tree.inodes import Directory, ExternalFile, InlineFile, Inode, Symlink
from ..tree.walk import find
from .labels import ReadFile

__all__ = ["BootEntry", "EntryText", "KernelEntry", "TextEntry", "UkiEntry", "find_entries"]

File = ExternalFile | InlineFile

_ENTRY_LIMIT: Final = 1 << 20
_UKI_PLACES: Final = ((b"boot/EFI/Linux", "EFI/Linux"), (b"boot/loader/addons", "loader/addons"))
_MODULES: Final = b"usr/lib/modules"
_FILE_KEYS: Final = ("linux", "initrd", "efi", "uki")
_line = re.compile(r"([^ \t\n\r\f\v]+)([ \t\n\r\f\v]+)(.*)", re.DOTALL)


class EntryText:
    """An entry file of type 1, line by line; what is not asked for stays as it is."""

    def __init__(self, content: str) -> None:
        self.lines: list[str] = content.removesuffix("\n").split("\n") if content else []

    @classmethod
    def decode(cls, content: bytes, name: str) -> EntryText:
        """The text of the file *name*.

        Raises:
            BootError: it is not UTF-8.
        """
        try:
            return cls(content.decode())
        except UnicodeDecodeError:
            raise BootError(name, "it is not UTF-8") from None

    def values(self, key: str) -> list[str]:
        """What stands behind *key*, in the order of the lines."""
        return [found[3] for line in self.lines if (found := _line.fullmatch(line)) and found[1] == key]

    def files(self) -> list[tuple[str, str]]:
        """Key and path of every file that the entry names."""
        found = (_line.fullmatch(line) for line in self.lines)
        return [(each[1], each[3].rstrip()) for each in found if each and each[1] in _FILE_KEYS]

    def replace(self, key: str, old: str, new: str) -> None:
        """Put *new* in the place of the value *old* of *key*."""
        for at, line in enumerate(self.lines):
            found = _line.fullmatch(line)
            if found and found[1] == key and found[3].rstrip() == old:
                self.lines[at] = f"{found[1]}{found[2]}{new}"

    def options(self) -> str:
        """All kernel arguments."""
        return " ".join(self.values("options"))

    def set_options(self, options: str) -> None:
        """Have one line with kernel arguments, where the first one was, or at the end."""
        at = [number for number, line in enumerate(self.lines) if line.split(maxsplit=1)[:1] == ["options"]]
        self.lines = [line for number, line in enumerate(self.lines) if number not in at[1:]]
        self.lines[at[0] if at else len(self.lines) : at[0] + 1 if at else None] = [f"options {options}"]

    def encode(self) -> bytes:
        """The file; lines end in LF."""
        return "".join(f"{line}\n" for line in self.lines).encode()


@dataclass(frozen=True, slots=True)
class TextEntry:
    """An entry of type 1 that the image describes itself."""

    name: str
    """Name of its file, with ``.conf``."""
    text: EntryText = field(compare=False)
    files: dict[str, File] = field(compare=False)
    """By their path as the entry gives it, which is one in the image."""


@dataclass(frozen=True, slots=True)
class UkiEntry:
    """A unified kernel image, or an addon to one."""

    place: str
    """The directory below the boot partition that it belongs to; empty for one beside a kernel's modules."""
    path: str
    """Below there."""
    source: str
    """Its path in the image."""
    file: File = field(compare=False)
    release: str | None = None
    """Version of the kernel whose modules it stands beside."""

    @property
    def is_addon(self) -> bool:
        """Whether it is an addon, by its name."""
        return self.path.endswith(".addon.efi")


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """A kernel beside its modules."""

    release: str
    kernel: File = field(compare=False)
    initrd: File | None = field(compare=False)


BootEntry = TextEntry | UkiEntry | KernelEntry


def find_entries(root: Directory, read: ReadFile) -> list[BootEntry]:
    """All boot entries of a tree that has not been transformed for booting, in the order of composefs-rs.

    Entries of type 1 come first, then kernel images, then plain kernels, each sorted by their paths.

    Raises:
        BootError: what should be a file is none, or a file that an entry names is not there.
    """
    return [*_text_entries(root, read), *_uki_entries(root), *_kernel_entries(root)]


def _text_entries(root: Directory, read: ReadFile) -> Iterator[TextEntry]:
    place = _directory(root, b"boot/loader/entries")
    for name, inode in sorted(place.children.items()) if place else ():
        if not name.endswith(b".conf"):
            continue
        path = f"/boot/loader/entries/{_text(name)}"
        file = _file(inode, path)
        if (file.size if isinstance(file, ExternalFile) else len(file.content)) > _ENTRY_LIMIT:
            raise BootError(path, f"more than {_ENTRY_LIMIT} bytes")
        content = file.content if isinstance(file, InlineFile) else read(path.encode(), file)
        text = EntryText.decode(content, path)
        files = {}
        for key, value in text.files():
            found = find(root, value.encode())
            if found is None:
                raise BootError(path, f"{key} names {value!r}, which is not in the image")
            files[value] = _file(found, value)
        yield TextEntry(_text(name), text, files)


def _uki_entries(root: Directory) -> Iterator[UkiEntry]:
    for path, place in _UKI_PLACES:
        top = _directory(root, path)
        if top is not None:
            yield from _ukis_below(top, path.decode(), place, None)
    modules = _directory(root, _MODULES)
    for name, child in sorted(modules.children.items()) if modules else ():
        if isinstance(child, Directory):
            yield from _ukis_below(child, f"{_MODULES.decode()}/{_text(name)}", "", _text(name))


def _ukis_below(top: Directory, where: str, place: str, release: str | None) -> Iterator[UkiEntry]:
    found: list[UkiEntry] = []
    pending: list[tuple[Directory, str]] = [(top, "")]
    while pending:
        directory, prefix = pending.pop()
        for name, inode in directory.children.items():
            if isinstance(inode, Directory):
                pending.append((inode, f"{prefix}{_text(name)}/"))
            elif name.endswith(b".efi"):
                path = prefix + _text(name)
                found.append(UkiEntry(place, path, f"/{where}/{path}", _file(inode, f"/{where}/{path}"), release))
    yield from sorted(found, key=lambda entry: entry.path.split("/"))


def _kernel_entries(root: Directory) -> Iterator[KernelEntry]:
    modules = _directory(root, _MODULES)
    for name, child in sorted(modules.children.items()) if modules else ():
        if not isinstance(child, Directory):
            continue
        kernel, initrd = child.children.get(b"vmlinuz"), child.children.get(b"initramfs.img")
        if isinstance(kernel, File):
            yield KernelEntry(_text(name), kernel, initrd if isinstance(initrd, File) else None)


def _directory(root: Directory, path: bytes) -> Directory | None:
    """The directory *path*; None if it is not there."""
    found: Inode | None = root
    for name in path.split(b"/"):
        if not isinstance(found, Directory):
            break
        found = found.children.get(name)
        if found is None:
            return None
    if not isinstance(found, Directory):
        raise BootError(f"/{path.decode()}", "it, or what is above it, is no directory")
    return found


def _file(inode: Inode, path: str) -> File:
    if isinstance(inode, File):
        return inode
    what = "it is a symbolic link, which is not followed, and" if isinstance(inode, Symlink) else "it is"
    raise BootError(path, f"{what} not a regular file")


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise BootError(repr(name)[1:], "a name in a boot entry that is not UTF-8") from None
