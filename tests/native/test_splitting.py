"""Members of a tar archive passed over in one native call."""

from __future__ import annotations

import io
import tarfile
from types import ModuleType

import pytest

FILE_MAX = 4096


def archive(*members: tuple[str, bytes, int], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Of (name, type, size) each."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, kind, size in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.mtime = kind, size, 1_700_000_000
            info.linkname = "target" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(info, io.BytesIO(bytes(size)))
    return out.getvalue()


def split(core: ModuleType, data: bytes, at: int = 0, inside: int = 0) -> tuple[int, int, list[tuple[int, int, int]]]:
    items: list[tuple[int, int, int]] = []
    return *core.split_members(data, at, inside, FILE_MAX, items), items


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ordinary_members_are_passed(core: ModuleType, form: int) -> None:
    data = archive(
        ("folder", tarfile.DIRTYPE, 0),
        ("small", tarfile.REGTYPE, 64),
        ("file", tarfile.REGTYPE, 65),
        ("link", tarfile.SYMTYPE, 0),
        ("hard", tarfile.LNKTYPE, 0),
        ("empty", tarfile.REGTYPE, 0),
        ("large", tarfile.REGTYPE, 4096),
        form=form,
    )
    at, inside, items = split(core, data)
    file, large = 4 * 512, 4 * 512 + 1024 + 3 * 512 - 512 + 512
    assert items == [(0, 0, file), (1, file, file + 65), (0, file + 65, large), (1, large, large + 4096)]
    assert inside == at == large + 4096
    assert not any(data[at:])


def test_more_files_than_one_pass_has_room_for(core: ModuleType) -> None:
    data = archive(*[("f", tarfile.REGTYPE, 100)] * 9000)
    at, inside, items = split(core, data)
    assert at == 9000 * 1024
    assert inside == at - 512 + 100
    assert len(items) == 18_000
    assert items[-1] == (1, at - 512, inside)


def test_it_goes_on_where_it_was(core: ModuleType) -> None:
    data = archive(("a", tarfile.REGTYPE, 100), ("b", tarfile.REGTYPE, 100))
    assert split(core, data, 1024, 612) == (2048, 1024 + 612, [(0, 612, 1536), (1, 1536, 1636)])
    assert split(core, data, len(data) + 99, 7) == (len(data) + 99, 7, [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, b"\0"),  # no name
        (100, b"   644 \0"),
        (108, b"\x80\0\0\0\0\0\0\1"),  # base 256
        (116, b"0000000x"),
        (124, b"0000000010\0\0"),
        (124, b"00000001001\0"),  # more than is here
        (136, b"-0000000001\0"),
        (136, b"00000000009\0"),
        (156, b"x"),
        (156, b"3"),
        (156, b"\0"),
        (257, bytes(8)),  # an archive of before 1988
        (263, b"\0\0"),  # a version that nobody has
        (257, b"ustar 00"),
    ],
)
def test_what_needs_a_second_look_is_left(core: ModuleType, field: int, value: bytes) -> None:
    good = archive(("first", tarfile.DIRTYPE, 0), ("second", tarfile.REGTYPE, 8))[:1536]
    header = bytearray(good[512:1024])
    header[field : field + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert split(core, good) == (1536, 0, [])
    assert split(core, good[:512] + bytes(header) + good[1024:]) == (512, 0, [])


@pytest.mark.parametrize("place", [0, 99, 130, 148, 153, 511])
def test_a_wrong_checksum_is_left(core: ModuleType, place: int) -> None:
    data = bytearray(archive(("name", tarfile.REGTYPE, 0)))
    data[place] ^= 1
    assert split(core, bytes(data)) == (0, 0, [])


def test_links_must_lead_somewhere(core: ModuleType) -> None:
    header = bytearray(archive(("name", tarfile.SYMTYPE, 0))[:512])
    assert split(core, bytes(header))[0] == 512
    header[157:257] = bytes(100)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert split(core, bytes(header))[0] == 0


@pytest.mark.parametrize("numbers", [(-1, 0, 1), (0, -1, 1), (0, 0, -1)])
def test_negative_numbers_are_refused(core: ModuleType, numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not negative"):
        core.split_members(b"", *numbers, [])


def test_larger_files_than_may_be_are_left(core: ModuleType) -> None:
    data = archive(("f", tarfile.REGTYPE, FILE_MAX), ("g", tarfile.REGTYPE, FILE_MAX + 1))
    assert split(core, data)[0] == 512 + FILE_MAX


def test_padding_that_is_missing_is_behind_the_end(core: ModuleType) -> None:
    data = archive(("f", tarfile.REGTYPE, 100))[: 512 + 100]
    assert split(core, data) == (1024, 612, [(0, 0, 512), (1, 512, 612)])
    assert split(core, data[:-1]) == (0, 0, [])
