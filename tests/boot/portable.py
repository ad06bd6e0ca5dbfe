"""Makes portable executables: kernel images as small as can be."""

from __future__ import annotations

import struct

ALIGNMENT = 512


def make_uki(sections: list[tuple[str, bytes]], *, optional: int = 112) -> bytes:
    """An EFI program with *sections*, whose content is filled up to the file's alignment."""
    pointer = 0x80
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", pointer)
    head = head.ljust(pointer, b"\0")
    head += struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(sections), 0, 0, 0, optional, 0x22E)
    head += b"\x0b\x02".ljust(optional, b"\0")
    at = -(-(len(head) + 40 * len(sections)) // ALIGNMENT) * ALIGNMENT
    table, body = b"", b""
    for name, content in sections:
        stored = -(-len(content) // ALIGNMENT) * ALIGNMENT
        table += struct.pack("<8sIIIIIIHHI", name.encode(), len(content), at, stored, at, 0, 0, 0, 0, 0x40000040)
        body += content.ljust(stored, b"\0")
        at += stored
    start = -(-len(head + table) // ALIGNMENT) * ALIGNMENT
    return (head + table).ljust(start, b"\0") + body


def kernel_image(command_line: bytes, *, osrel: bytes = b"ID=demo\nVERSION_ID=7\n") -> bytes:
    """A kernel image as ukify makes it."""
    return make_uki(
        [
            (".text", b"stub"),
            (".osrel", osrel),
            (".uname", b"6.1.0-demo"),
            (".cmdline", command_line),
            (".linux", b"KERNEL" * 100),
            (".initrd", b"INITRD" * 100),
        ]
    )
