"""Unified kernel images: EFI programs with a kernel, an initrd and a command line in their sections.

Owns the headers of portable executables as far as sections need them, and what the sections of a kernel image say.
Does not own kernel arguments (`kargs`).  Nothing here opens files: a kernel image of 200 MB is read where it is needed,
through a function.

Source: the PE format of Microsoft; UAPI.5, Unified Kernel Image.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ..errors import BootError
from .kargs import COMMAND_LINE_LIMIT, Karg, parse_kargs
from .os_release import OS_RELEASE_LIMIT, OsRelease, parse_os_release

__all__ = ["ReadAt", "Section", "Uki", "read_at", "read_uki"]

ReadAt = Callable[[int, int], bytes]
"""Size bytes at an offset, the first argument; fewer at the end of the file."""

_POINTER: Final = 0x3C
_HEADER: Final = struct.Struct("<4sHH12xH2x")  # PE\0\0, machine, sections; size of the optional header
_SECTION: Final = struct.Struct("<8sII II 16x")  # name, virtual size, address; raw size, raw pointer
_MAGIC: Final = b"PE\0\0"
_SECTIONS_MAX: Final = 1024
_PIECE: Final = 1 << 20
_UNAME_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class Section:
    """Where the content of a section is in the file."""

    name: str
    offset: int
    size: int
    """In bytes; without what fills it up to a multiple of the file's alignment."""


class Uki:
    """A kernel image whose headers have been read; `read_uki` makes it."""

    def __init__(self, name: str, sections: tuple[Section, ...], read: ReadAt) -> None:
        self.name = name
        """For errors."""
        self.sections = sections
        self._read = read

    def section(self, name: str) -> Section | None:
        """The first section of that name.

        Raises:
            ValueError: a name of more than eight bytes, which no section has.
        """
        if len(name.encode()) > 8:
            raise ValueError(f"{name!r} is longer than the eight bytes of a section's name")
        return next((each for each in self.sections if each.name == name), None)

    def content(self, name: str, limit: int) -> bytes | None:
        """The content of a section; None if there is none.

        Raises:
            BootError: it has more than *limit* bytes, or the file is shorter than it says.
        """
        found = self.section(name)
        if found is None:
            return None
        if found.size > limit:
            raise BootError(f"{self.name}, section {name}", f"{found.size} bytes are more than {limit}")
        return b"".join(self._pieces(found))

    @property
    def is_addon(self) -> bool:
        """Whether it only adds to another image: it has no kernel."""
        return self.section(".linux") is None

    def command_line(self) -> bytes:
        """The command line, as the section ``.cmdline`` has it.

        Raises:
            BootError: there is none.
        """
        found = self.content(".cmdline", COMMAND_LINE_LIMIT)
        if found is None:
            raise BootError(self.name, "it has no section .cmdline")
        return found

    def kargs(self) -> list[Karg]:
        """The kernel arguments that name images.

        Raises:
            BootError: there is no command line, or an argument is malformed.
        """
        try:
            return parse_kargs(self.command_line())
        except BootError as error:
            raise error if error.what == self.name else BootError(self.name, str(error)) from None

    def os_release(self) -> OsRelease | None:
        """What the section ``.osrel`` says."""
        found = self.content(".osrel", OS_RELEASE_LIMIT)
        return None if found is None else parse_os_release(found)

    def kernel_release(self) -> str | None:
        """What the section ``.uname`` says."""
        found = self.content(".uname", _UNAME_LIMIT)
        return None if found is None else found.rstrip(b"\0\n").decode(errors="backslashreplace")

    def boot_digest(self) -> str:
        """The SHA-256 of kernel and initrd, in hexadecimal; deployments with equal ones can share their files.

        Raises:
            BootError: one of them is missing.
        """
        hasher = hashlib.sha256()
        for name in (".linux", ".initrd"):
            found = self.section(name)
            if found is None:
                raise BootError(self.name, f"it has no section {name}")
            for piece in self._pieces(found):
                hasher.update(piece)
        return hasher.hexdigest()

    def _pieces(self, section: Section) -> Iterator[bytes]:
        at, end = section.offset, section.offset + section.size
        while at < end:
            piece = self._read(at, min(_PIECE, end - at))
            if not piece:
                raise BootError(f"{self.name}, section {section.name}", f"the file ends at {at}, before {end}")
            yield piece
            at += len(piece)


def read_at(fd: int) -> ReadAt:
    """What reads the open file *fd*, which stays the caller's."""
    return lambda offset, size: os.pread(fd, size, offset)


def read_uki(read: ReadAt, size: int, name: str) -> Uki:
    """Read the headers of a kernel image of *size* bytes; all its sections lie inside the file.

    Args:
        name: for errors.

    Raises:
        BootError: it is no EFI program, or is cut, or lies about its sections.
    """
    pointer = int.from_bytes(_exactly(read, _POINTER, 4, name), "little")
    magic, _, count, optional = _HEADER.unpack(_exactly(read, pointer, _HEADER.size, name))
    if magic != _MAGIC:
        raise BootError(name, f"it is no EFI program: there is no PE header at {pointer}")
    if count > _SECTIONS_MAX:
        raise BootError(name, f"{count} sections are more than {_SECTIONS_MAX}")
    table = _exactly(read, pointer + _HEADER.size + optional, count * _SECTION.size, name)
    sections = []
    for raw, virtual, _, stored, offset in _SECTION.iter_unpack(table):
        section = Section(raw.rstrip(b"\0").decode("latin-1"), offset, min(virtual, stored))
        if section.size and offset + section.size > size:
            end = offset + section.size
            raise BootError(f"{name}, section {section.name}", f"it ends at {end}, but the file has {size} bytes")
        sections.append(section)
    return Uki(name, tuple(sections), read)


def _exactly(read: ReadAt, offset: int, size: int, name: str) -> bytes:
    found = read(offset, size)
    if len(found) != size:
        raise BootError(name, f"it is no EFI program: it ends before {offset + size} bytes")
    return found
