"""Members of a stored layer read in one native call, against the reader in Python."""

from __future__ import annotations

import random
import tarfile
from types import ModuleType
from typing import Any

import pytest

from composefs_async.digest import ObjectId
from composefs_async.oci.tar import members
from composefs_async.oci.tar.members import EntryReader, EntryType, TarEntry

TYPES = (EntryType.FILE, EntryType.HARDLINK, EntryType.SYMLINK, EntryType.DIRECTORY)
KINDS = [tarfile.REGTYPE] * 4 + [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE]
BLOCK = 512


def make_chunks(source: random.Random, members: int) -> list[bytes | ObjectId]:
    """As a splitstream has them, of ordinary members and some others."""
    chunks: list[bytes | ObjectId] = []
    inline = b""
    for number in range(members):
        info = tarfile.TarInfo("/".join([f"{number}"] + ["folder" * source.randrange(4)] * source.randrange(9)) + "/")
        info.type = source.choice(KINDS)
        info.mode, info.uid = source.choice([0o644, 0o4755, 0]), source.choice([0, 1000, 2**21 - 1, 2**22])
        info.gid, info.mtime = source.choice([0, 5]), source.choice([0, 1_700_000_000, 2**33 - 1])
        info.linkname = "/to/there" if info.islnk() or info.issym() else ""
        info.size = source.choice([0, 1, 64, 65, 5000]) if info.isreg() else 0
        inline += info.tobuf(source.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]) if info.uid < 2**21 else 1)
        if info.size > 64:
            chunks += [inline, ObjectId(source.randbytes(32))]
            inline = bytes(-info.size % BLOCK)
        elif info.size:
            inline += source.randbytes(info.size) + bytes(-info.size % BLOCK)
    return [*chunks, inline + bytes(2 * BLOCK)]


def entries_of(chunks: list[bytes | ObjectId], at_a_time: int) -> list[TarEntry]:
    reader, entries = EntryReader(), []
    for at in range(0, len(chunks), at_a_time):
        reader.feed(chunks[at : at + at_a_time], entries)
    assert reader.ended
    return entries


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("at_a_time", [1, 7, 1000])
@pytest.mark.usefixtures("core")
def test_the_same_as_in_python(monkeypatch: pytest.MonkeyPatch, seed: int, at_a_time: int) -> None:
    chunks = make_chunks(random.Random(seed), 200)
    found = entries_of(chunks, at_a_time)
    monkeypatch.setattr(members, "NATIVE", False)
    assert entries_of(chunks, at_a_time) == found
    assert len(found) == 200
    assert {type(entry) for entry in found} == {TarEntry}
    assert {entry.type for entry in found} >= set(TYPES)


def read(core: ModuleType, body: list[Any], index: int = 0, at: int = 0) -> tuple[tuple[int, int, int], list[Any]]:
    entries: list[Any] = []
    return core.read_members(body, index, at, 0, entries, ObjectId, tuple.__new__, TarEntry, TYPES), entries


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT)


def test_it_stops_where_somebody_else_has_to_look(core: ModuleType) -> None:
    object_id = ObjectId(bytes(32))
    large, device = header("large", 600), header("device", kind=tarfile.CHRTYPE)
    assert read(core, [large, object_id])[0] == (2, 424, 1112)
    assert read(core, [large, object_id, bytes(424) + device])[0] == (2, 424, 1112)
    for body in ([large], [large, bytes(600)], [large + bytes(9), object_id], [bytearray(large), object_id]):
        assert read(core, body) == ((0, 0, 0), [])
    assert read(core, [object_id]) == ((0, 0, 0), [])
    assert read(core, [header("small", 9) + b"too few"]) == ((0, 0, 0), [])
    assert read(core, [header("small", 9) + b"just here"])[0] == (0, 1024, 0)
    assert read(core, [header("cut")[:511]]) == ((0, 0, 0), [])
    assert read(core, [header("a")], 0, 600) == ((0, 600, 0), [])
    assert read(core, [header("a")], 1, 5) == ((1, 5, 0), [])


def test_what_cannot_be_is_refused(core: ModuleType) -> None:
    with pytest.raises(ValueError, match="not negative"):
        read(core, [], -1)
    with pytest.raises(ValueError, match="not negative"):
        read(core, [], 0, -1)
    with pytest.raises(TypeError):
        core.read_members((), 0, 0, 0, [], ObjectId, tuple.__new__, TarEntry, TYPES)
    with pytest.raises(IndexError):
        core.read_members([header("a")], 0, 0, 0, [], ObjectId, tuple.__new__, TarEntry, ())
