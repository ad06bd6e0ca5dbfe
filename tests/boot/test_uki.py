"""Unified kernel images: sections, what they say, and images that are cut or lie."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable

import pytest

from composefs_async.boot import Karg, parse_os_release, read_uki
from composefs_async.boot.uki import Section, Uki
from composefs_async.digest import ObjectId
from composefs_async.errors import BootError

from .portable import kernel_image, make_uki

A = "ab" * 32
IMAGE = kernel_image(f"quiet composefs={A}\0".encode())


def read(content: bytes) -> Uki:
    return read_uki(lambda offset, size: content[offset : offset + size], len(content), "x.efi")


def test_what_the_sections_say() -> None:
    uki = read(IMAGE)
    assert [section.name for section in uki.sections] == [".text", ".osrel", ".uname", ".cmdline", ".linux", ".initrd"]
    assert uki.section(".uname") == Section(".uname", uki.sections[2].offset, 10)
    assert uki.kargs() == [Karg(ObjectId.from_hex(A), None, False)]
    assert (uki.kernel_release(), uki.is_addon) == ("6.1.0-demo", False)
    found = uki.os_release()
    assert found is not None
    assert found.label == "demo 7"
    assert uki.boot_digest() == hashlib.sha256(b"KERNEL" * 100 + b"INITRD" * 100).hexdigest()


def test_the_first_section_of_a_name_counts_and_what_fills_it_up_does_not() -> None:
    uki = read(make_uki([(".cmdline", b"a"), (".cmdline", b"b"), (".empty", b"")]))
    assert (uki.command_line(), uki.is_addon, uki.content(".empty", 0)) == (b"a", True, b"")
    assert uki.content(".osrel", 10) is None
    with pytest.raises(ValueError, match="eight bytes"):
        uki.section(".too_long")


def test_the_smaller_size_counts() -> None:
    content = bytearray(make_uki([(".cmdline", b"abcdef")]))
    at = content.index(b".cmdline") + 16
    content[at : at + 4] = struct.pack("<I", 3)
    assert read(bytes(content)).command_line() == b"abc"


@pytest.mark.parametrize("name", [".linux", ".initrd"])
def test_what_a_boot_digest_needs(name: str) -> None:
    sections = [(each, b"x") for each in (".linux", ".initrd") if each != name]
    with pytest.raises(BootError, match=re.escape(f"no section {name}")):
        read(make_uki(sections)).boot_digest()


def changed(at: int, layout: str, value: int) -> bytes:
    content = bytearray(IMAGE)
    struct.pack_into(layout, content, at, value)
    return bytes(content)


TABLE = IMAGE.index(b".text")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no EFI program"),
        (b"MZ" * 20, "no EFI program"),
        (b"#!/bin/sh\n" * 20, "no EFI program"),
        (changed(0x3C, "<I", 0xFFFFFFFF), "no EFI program"),
        (changed(0x3C, "<I", 0), "no PE header at 0"),
        (changed(0x80, "<4s", b"NE\0\0"), "no PE header"),  # type: ignore[arg-type]
        (changed(0x86, "<H", 1025), "1025 sections"),
        (changed(0x86, "<H", 1000), "no EFI program"),
        (changed(0x94, "<H", 0xFFFF), "no EFI program"),
        (changed(TABLE + 20, "<I", 0xFFFFFFFF), "section .text: it ends at"),
        (IMAGE[:-1], "section .initrd: it ends at"),
        (IMAGE[: TABLE + 39], "no EFI program"),
    ],
)
def test_images_that_are_cut_or_lie_are_refused(content: bytes, words: str) -> None:
    if words == "section .initrd: it ends at":  # its last bytes only fill it up
        content = content[:-500]
    with pytest.raises(BootError, match=re.escape(words)):
        read(content)


@pytest.mark.parametrize(
    ("sections", "ask", "words"),
    [
        ([(".cmdline", b"x" * ((1 << 20) + 1))], lambda uki: uki.kargs(), "more than"),
        ([(".linux", b"x")], lambda uki: uki.kargs(), "no section .cmdline"),
        ([(".cmdline", b"composefs=abc")], lambda uki: uki.kargs(), "3 characters"),
        ([(".cmdline", b"quiet\0rw")], lambda uki: uki.kargs(), "NUL"),
        ([(".osrel", b"ID=\xff")], lambda uki: uki.os_release(), "not UTF-8"),
        ([(".uname", b"x" * 5000)], lambda uki: uki.kernel_release(), "more than 4096"),
    ],
)
def test_sections_that_cannot_be_used(
    sections: list[tuple[str, bytes]], ask: Callable[[Uki], object], words: str
) -> None:
    with pytest.raises(BootError, match=re.escape(words)):
        ask(read(make_uki(sections)))


def test_a_file_that_becomes_shorter_is_noticed() -> None:
    uki = read_uki(lambda offset, size: IMAGE[:0x600][offset : offset + size], len(IMAGE), "x.efi")
    with pytest.raises(BootError, match="the file ends at"):
        uki.boot_digest()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("PRETTY_NAME='prettyOS'\nVERSION_ID=\"Rocky Racoon\"\nVERSION=42\nID=pretty-os\n", "prettyOS Rocky Racoon"),
        ("PRETTY_NAME='prettyOS\nVERSION=42\nID=pretty-os\n", "pretty-os 42"),
        ("ID=pretty-os", "pretty-os"),
        ('#ID=x\nNAME=a\nNAME="b \\"c\\" $d"\n', 'b "c" $d'),
        ("NAME=\"\"\nID=''x''\n\0\0", "x"),
        ("", "Linux"),
    ],
)
def test_the_label_in_a_boot_menu(text: str, label: str) -> None:
    assert parse_os_release(text.encode()).label == label
