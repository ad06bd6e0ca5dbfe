"""Archives made by hand, for the tests of this directory."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable

import pytest

from composefs_async.digest import ObjectId
from composefs_async.oci.tar.members import TarEntry, read_entries
from composefs_async.oci.tar.split import EXTERNAL, INLINE, LARGE_BEGIN, LARGE_END, LARGE_PIECE, TarSplitter


class Tar:
    """Builds archives field by field, also wrong ones, and splits and reads them."""

    end = bytes(1024)

    def header(
        self,
        name: bytes = b"a",
        kind: bytes = b"0",
        *,
        size: int | bytes = 0,
        mode: int | bytes = 0o644,
        uid: int | bytes = 0,
        gid: int | bytes = 0,
        mtime: int | bytes = 0,
        link: bytes = b"",
        magic: bytes = b"ustar\x0000",
        device: tuple[bytes, bytes] = (b"0000000\0", b"0000000\0"),
        prefix: bytes = b"",
        checksum: bytes | None = None,
    ) -> bytes:
        def octal(value: int | bytes, width: int) -> bytes:
            return value.ljust(width, b"\0") if isinstance(value, bytes) else b"%0*o\0" % (width - 1, value)

        start = name.ljust(100, b"\0") + octal(mode, 8) + octal(uid, 8) + octal(gid, 8) + octal(size, 12)
        start += octal(mtime, 12)
        rest = kind + link.ljust(100, b"\0") + magic.ljust(8, b"\0") + bytes(64)
        rest = (rest + device[0].ljust(8, b"\0") + device[1].ljust(8, b"\0") + prefix.ljust(155, b"\0")).ljust(
            356, b"\0"
        )
        total = sum(start) + sum(rest) + 8 * 32
        return start + (b"%06o\0 " % total if checksum is None else checksum.ljust(8, b"\0")) + rest

    def padded(self, data: bytes) -> bytes:
        return data + bytes(-len(data) % 512)

    def member(self, name: bytes = b"a", data: bytes = b"", kind: bytes = b"0", **fields: object) -> bytes:
        fields.setdefault("size", len(data))
        return self.header(name, kind, **fields) + self.padded(data)  # type: ignore[arg-type]

    def record(self, key: bytes, value: bytes) -> bytes:
        body = b" " + key + b"=" + value + b"\n"
        length = len(body)
        while len(b"%d" % length) + len(body) != length:
            length = len(b"%d" % length) + len(body)
        return b"%d" % length + body

    def pax(self, *records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
        return self.member(b"pax", b"".join(self.record(*record) for record in records), kind)

    def python(self, members: Iterable[tuple[tarfile.TarInfo, bytes]], tar_format: int) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
            for info, data in members:
                info.size = len(data) if info.isreg() else 0
                archive.addfile(info, io.BytesIO(data))
        return out.getvalue()

    def chunks(self, archive: bytes, piece: int = 0, **limits: int) -> list[bytes | ObjectId]:
        """The archive as a splitstream would have it, fed in pieces; checks that not a byte is lost or moved."""
        splitter, found, large, merged = TarSplitter(**limits), list[bytes | ObjectId](), b"", b""
        pieces = [archive[at : at + piece] for at in range(0, len(archive), piece)] if piece else [archive]
        events = [event for part in pieces for event in splitter.feed(part)] + splitter.feed(b"", final=True)
        for event in events:
            merged += event.data
            if event.kind == LARGE_BEGIN:
                large = b""
            elif event.kind == LARGE_PIECE:
                large += event.data
            elif event.kind == INLINE:
                if found and not isinstance(found[-1], ObjectId):
                    found[-1] += event.data
                else:
                    found.append(event.data)
            else:
                content = large if event.kind == LARGE_END else event.data
                assert len(content) == event.size
                assert event.kind in (EXTERNAL, LARGE_END)
                found.append(self.object_id(content))
        assert merged == archive
        assert splitter.offset == len(archive)
        return found

    def object_id(self, content: bytes) -> ObjectId:
        """Stands for the object of *content*; any digest does here."""
        return ObjectId(hashlib.sha256(content).digest())

    def entries(self, archive: bytes, piece: int = 0, **limits: int) -> list[TarEntry]:
        return list(read_entries(self.chunks(archive, piece, **limits)))


@pytest.fixture(scope="session")
def tar() -> Tar:
    return Tar()
