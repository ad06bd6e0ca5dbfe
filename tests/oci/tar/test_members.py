"""Members read back from the chunks of a stored layer."""

from __future__ import annotations

import pytest

from composefs_async.digest import ObjectId
from composefs_async.errors import TarError
from composefs_async.oci.tar.fields import Memo
from composefs_async.oci.tar.members import EntryReader, EntryType, TarEntry, read_entries

OLD_GNU = b"ustar  \x00"
OBJECT = ObjectId(bytes(range(32)))
LARGE = 1 << 50  # base-256 is needed for it


def read(*chunks: bytes | ObjectId) -> list[TarEntry]:
    return list(read_entries(chunks))


def base256(value: int, width: int) -> bytes:
    return (value & (1 << 8 * width - 1) - 1 | 1 << 8 * width - 1).to_bytes(width, "big")


def test_entry_of_each_type_is_whole(tar):
    header = tar.header
    archive = b"".join(
        [
            header(b"./", b"5", mode=0o755, uid=1, gid=2, mtime=3),
            tar.member(b"usr/small", b"small", mode=0o4755, mtime=4),
            header(b"usr/hard/", b"1", link=b"/usr/small/"),
            header(b"usr/sym", b"2", link=b"/usr//small/"),
            header(b"usr/char", b"3", device=(b"0000001", b"0000003")),
            header(b"usr/block", b"4", device=(b"7777", b"3777777")),
            header(b"usr/fifo", b"6"),
        ]
    )
    assert read(archive + tar.end) == [
        (b".", EntryType.DIRECTORY, 0o755, 1, 2, 0, 3 * 10**9, 0, b"", (), None, 0),
        (b"usr/small", EntryType.FILE, 0o4755, 0, 0, 5, 4 * 10**9, 0, b"", (), b"small", 512),
        (b"usr/hard", EntryType.HARDLINK, 0o644, 0, 0, 0, 0, 0, b"usr/small", (), None, 1536),
        (b"usr/sym", EntryType.SYMLINK, 0o644, 0, 0, 0, 0, 0, b"/usr//small/", (), None, 2048),
        (b"usr/char", EntryType.CHARACTER_DEVICE, 0o644, 0, 0, 0, 0, 0x103, b"", (), None, 2560),
        (b"usr/block", EntryType.BLOCK_DEVICE, 0o644, 0, 0, 0, 0, 0xFFFFFFFF, b"", (), None, 3072),
        (b"usr/fifo", EntryType.FIFO, 0o644, 0, 0, 0, 0, 0, b"", (), None, 3584),
    ]


def test_object_is_the_content_of_the_file_before_it(tar):
    first, second = tar.header(b"a", size=65), tar.header(b"b", size=base256(LARGE, 12))
    entries = read(first, OBJECT, bytes(447) + second, OBJECT, tar.end)
    assert [(entry.path, entry.size, entry.content, entry.offset) for entry in entries] == [
        (b"a", 65, OBJECT, 0),
        (b"b", LARGE, OBJECT, 1024),
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a", b"a"),
        (b"/a", b"a"),
        (b"a/", b"a"),
        (b"//a//", b"a"),
        (b"./a", b"./a"),
        (b"a//b/../c", b"a//b/../c"),
        (b"/", b""),
        (b"a\0junk", b"a"),
        (b"\xff\n ", b"\xff\n "),
    ],
)
def test_path_has_no_slashes_around_it(tar, name, path):
    for field in (tar.header(name), tar.member(b"l", name.partition(b"\0")[0] + b"\0", b"L") + tar.header(b"x")):
        assert [entry.path for entry in read(field)] == [path]


def test_source_of_the_name_follows_its_priority(tar):
    name, prefix = tar.header(b"name"), tar.header(b"name", prefix=b"prefix/x")
    long_name, pax = tar.member(b"l", b"long\0", b"L"), tar.pax((b"path", b"pax"), (b"path", b"pax2"))
    table = {
        name: b"name",
        prefix: b"prefix/x/name",
        tar.header(b"name", prefix=b"times", magic=OLD_GNU): b"name",
        tar.header(b"name", prefix=b"junk", magic=b""): b"name",
        long_name + prefix: b"long",
        long_name + pax + prefix: b"pax2",
        pax + long_name + prefix: b"pax2",
        pax + tar.pax((b"path", b"global"), kind=b"g") + name: b"pax2",
        tar.pax((b"path", b"global"), kind=b"g") + name: b"name",
    }
    for archive, path in table.items():
        assert [entry.path for entry in read(archive + tar.end)] == [path]


def test_source_of_the_target_follows_its_priority(tar):
    field = tar.header(b"l", b"2", link=b"field")
    long_link, pax = tar.member(b"l", b"long\0", b"K"), tar.pax((b"linkpath", b"pax/"))
    for archive, target in {field: b"field", long_link + field: b"long", pax + long_link + field: b"pax/"}.items():
        assert [entry.link for entry in read(archive)] == [target]


def test_long_names_pass_in_any_magic(tar):
    for magic in (b"ustar\x0000", OLD_GNU, b"ustar\0 1", b"ustar 00", b""):
        archive = tar.member(b"l", b"n" * 5000, b"L", magic=magic) + tar.header(b"x", magic=b"")
        assert [entry.path for entry in read(archive)] == [b"n" * 5000]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([b"5"], 5_000_000_000),
        ([b"+5"], 5_000_000_000),
        ([b"5."], 5_000_000_000),
        ([b"5.5"], 5_500_000_000),
        ([b"5.000000001"], 5_000_000_001),
        ([b"5.1234567899"], 5_123_456_789),
        ([b"6.+5"], 6_050_000_000),
        ([b"5.x"], 5_000_000_000),
        ([b"5.-1"], 5_000_000_000),
        ([b"5.12345678\xc3\xa9"], 5_000_000_000),
        ([b"5.1", b"6.2"], 6_100_000_000),
        ([b"-1"], -1_000_000_000),
        ([b"-1.5"], -1_500_000_000),
        ([b"-0.25"], -250_000_000),
        ([b"9223372036854775808"], -(1 << 63) * 10**9),
        ([b"-9223372036854775808"], -(1 << 63) * 10**9),
    ],
)
def test_mtime_of_pax_is_read_to_the_nanosecond(tar, records, expected):
    archive = tar.pax(*((b"mtime", record) for record in records)) + tar.header(mtime=77)
    assert [entry.mtime_ns for entry in read(archive)] == [expected]


@pytest.mark.parametrize("kind", [b"0", b"6"], ids=["plain", "other"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mtime": b"00000000010\0"}, {"mtime_ns": 8 * 10**9}),
        ({"mtime": b" 10\0 9"}, {"mtime_ns": 8 * 10**9}),
        ({"mtime": b"\x0b\t10\r\n"}, {"mtime_ns": 8 * 10**9}),
        ({"mtime": b"", "uid": b" ", "gid": b"", "mode": b""}, {"mtime_ns": 0, "uid": 0, "gid": 0, "mode": 0}),
        ({"mtime": b"\xff" * 12}, {"mtime_ns": -(10**9)}),
        ({"mtime": base256(-12345, 12)}, {"mtime_ns": -12345 * 10**9}),
        ({"uid": base256(0xFFFFFFFF, 8), "gid": base256(1 << 32 | 7, 8)}, {"uid": 0xFFFFFFFF, "gid": 7}),
        ({"mode": b"7777"}, {"mode": 0o7777}),
    ],
)
def test_numbers_may_be_octal_or_base_256(tar, kind, fields, expected):
    (entry,) = read(tar.header(b"a", kind, **fields))
    assert {key: getattr(entry, key) for key in expected} == expected


def test_owner_of_pax_comes_before_the_header_and_is_cut_to_32_bits(tar):
    archive = tar.pax((b"uid", b"4294967296"), (b"gid", b"+4294967295")) + tar.header(uid=5, gid=6)
    assert [(entry.uid, entry.gid) for entry in read(archive)] == [(0, 0xFFFFFFFF)]
    archive = tar.pax((b"path", b"a")) + tar.header(uid=5, gid=6)
    assert [(entry.uid, entry.gid) for entry in read(archive)] == [(5, 6)]


def test_xattr_may_have_65535_bytes(tar):
    archive = tar.pax((b"SCHILY.xattr.user.a", bytes(65535))) + tar.header()
    assert [entry.xattrs for entry in read(archive)] == [((b"user.a", bytes(65535)),)]


def test_memory_of_fields_is_bounded():
    asked = []

    def number(field: bytes) -> int:
        asked.append(field)
        return int(field)

    memo = Memo(number, 2)
    assert [memo[field] for field in (b"1", b"2", b"1", b"3", b"3", b"1")] == [1, 2, 1, 3, 3, 1]
    assert asked == [b"1", b"2", b"3", b"1"]
    assert len(memo) == 2
    with pytest.raises(ValueError, match="x"):
        memo[b"x"]
    assert b"x" not in memo


def test_xattrs_are_sorted_and_the_last_of_equal_ones_wins(tar):
    archive = tar.pax(
        (b"SCHILY.xattr.user.b", b"1=\n\0"),
        (b"SCHILY.xattr.user.a", b""),
        (b"SCHILY.xattr.user.b", b"2 user.c=\xff"),
        (b"LIBARCHIVE.xattr.user.d", b"ignored"),
        (b"comment", b"ignored"),
    )
    entries = read(archive + tar.header(b"a") + tar.header(b"b"))
    assert [entry.xattrs for entry in entries] == [((b"user.a", b""), (b"user.b", b"2 user.c=\xff")), ()]


def test_zeros_behind_the_records_of_a_pax_header_are_ignored(tar):
    archive = tar.member(b"p", tar.record(b"path", b"pax") + bytes(20), b"x") + tar.header()
    assert [entry.path for entry in read(archive)] == [b"pax"]


@pytest.mark.parametrize("trailer", [b"", bytes(10), bytes(512), bytes(1024), bytes(1024) + b"junk", bytes(10_240)])
@pytest.mark.parametrize("size", [0, 64, 65])
def test_trailer_and_final_padding_may_be_missing(tar, size, trailer):
    header = tar.header(b"a", size=size)
    chunks = [header, OBJECT] if size > 64 else [header + bytes(size)]
    assert [entry.size for entry in read(*chunks)] == [size]
    assert [entry.size for entry in read(*chunks, bytes(-size % 512) + trailer)] == [size]


def test_what_follows_the_end_does_not_matter(tar):
    def chunks():
        yield tar.header() + tar.end + b"junk"
        raise OSError("nobody needs this")

    assert len(list(read_entries(chunks()))) == 1


@pytest.mark.parametrize("piece", [1, 100, 512, 513])
def test_chunks_may_be_cut_anywhere(tar, piece):
    parts: list[bytes | ObjectId] = [
        tar.pax((b"mtime", b"1.5")) + tar.member(b"a", b"small") + tar.header(b"b", size=100),
        OBJECT,
        bytes(412) + tar.header(b"c", b"5") + tar.end,
    ]
    cut = [
        chunk if isinstance(chunk, ObjectId) else chunk[at : at + piece]
        for chunk in parts
        for at in range(0, 1 if isinstance(chunk, ObjectId) else len(chunk), piece)
    ]
    assert read(*cut) == read(*parts)
    assert [entry.path for entry in read(*cut)] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_reader_may_be_fed_so_many_chunks_at_a_time(tar, count):
    parts: list[bytes | ObjectId] = [tar.header(b"first", size=65)]
    for number in range(6):
        parts += [OBJECT, bytes(447) + tar.member(b"small%d" % number, b"x" * number)]
        parts += [tar.header(b"link%d" % number, b"2", link=b"to") + tar.header(b"large%d" % number, size=65)]
    parts += [OBJECT, b"", bytes(447), tar.end]
    reader, entries = EntryReader(), list[TarEntry]()
    # Others than bytes may change after they have been taken.
    buffers = [part if isinstance(part, ObjectId) else bytearray(part) for part in parts]
    for at in range(0, len(buffers), count):
        reader.feed(buffers[at : at + count], entries)
        for buffer in buffers[at : at + count]:
            if isinstance(buffer, bytearray):
                buffer[:] = bytes(len(buffer))
    assert reader.ended
    assert entries == read(*parts)
    assert [entry.path for entry in entries][:4] == [b"first", b"small0", b"link0", b"large0"]
    assert len(entries) == 19


@pytest.mark.parametrize("error", [ValueError("source"), TarError("source", 7)])
def test_what_the_source_raises_comes_after_the_entries_before_it(tar, error):
    def chunks():
        yield tar.header(b"a") + tar.header(b"b", size=65)
        yield OBJECT
        raise error

    entries = read_entries(chunks())
    assert [next(entries).path, next(entries).path] == [b"a", b"b"]
    with pytest.raises(type(error)) as caught:
        next(entries)
    assert caught.value is error


def test_large_extension_in_tiny_chunks_is_joined_once(tar):
    name = b"n" * (1 << 20)
    archive = tar.member(b"l", name, b"L") + tar.header()
    assert [len(entry.path) for entry in read(*(archive[at : at + 64] for at in range(0, len(archive), 64)))] == [
        1 << 20
    ]


def test_content_in_the_wrong_place_is_refused(tar):
    file, small = tar.header(size=65), tar.header(size=64)
    inline, nowhere, missing = "is inline", "an object stands where", "inside the data of a member"
    table: list[tuple[list[bytes | ObjectId], str, int]] = [
        ([file + bytes(512)], inline, 0),
        ([tar.header() + file, bytes(65)], inline, 512),
        ([file, b"", b"x"], inline, 0),
        ([small, OBJECT], nowhere, 512),
        ([OBJECT], nowhere, 0),
        ([file, OBJECT, OBJECT], nowhere, 577),
        ([tar.header(kind=b"5", size=600), OBJECT], nowhere, 512),
        ([tar.header(kind=b"1", link=b"a", size=600), OBJECT], nowhere, 512),
        ([file[:100], OBJECT], nowhere, 0),
        ([tar.header(kind=b"x", size=20), OBJECT], nowhere, 512),
        ([file], missing, 512),
        ([small + bytes(63)], missing, 512),
        ([tar.header() + b"x" * 100], "inside a header", 512),
        ([tar.pax((b"path", b"a"))], "after an extension header", 1024),
        ([tar.pax((b"path", b"a")) + tar.end], "after an extension header", 1536),
    ]
    for chunks, reason, offset in table:
        with pytest.raises(TarError) as caught:
            read(*chunks)
        assert reason in caught.value.reason, chunks
        assert caught.value.offset == offset, (reason, chunks)
