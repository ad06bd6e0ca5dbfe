"""The splitter: what becomes an object, what stays inline, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from composefs_async.digest import ObjectId
from composefs_async.errors import TarError
from composefs_async.oci.tar import members, split
from composefs_async.oci.tar.split import EXTERNAL, INLINE, LARGE_BEGIN, LARGE_END, LARGE_PIECE, PIECE, TarSplitter

VECTORS = Path(__file__).parents[2] / "vectors" / "tar"
OLD_GNU = b"ustar  \x00"
V7 = b""


def base256(value: int) -> bytes:
    return (1 << 95 | value).to_bytes(12, "big")


def shape(chunks) -> list[int | str]:
    """Lengths of inline ranges, and an x for each object."""
    return ["x" if isinstance(chunk, ObjectId) else len(chunk) for chunk in chunks]


def split_all(archive: bytes, **limits: int):
    return TarSplitter(**limits).split(memoryview(archive), final=True)


# -- what is external --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
@pytest.mark.parametrize("magic", [b"ustar\x0000", OLD_GNU, V7], ids=["ustar", "gnu", "v7"])
@pytest.mark.parametrize(
    ("size", "external"), [(0, False), (1, False), (64, False), (65, True), (512, True), (513, True)]
)
def test_files_of_more_than_64_bytes_are_external(tar, kind, magic, size, external):
    archive = tar.member(b"a", bytes(size), kind, magic=magic) + tar.end
    padding = -size % 512
    expected = [512, "x", padding + 1024] if external else [512 + size + padding + 1024]
    assert shape(tar.chunks(archive)) == expected


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
@pytest.mark.parametrize("claimed", [1, 512, 70_000, base256(1 << 70), b"\xff" * 12], ids=str)
@pytest.mark.parametrize("records", [(), ((b"size", b"600"),), ((b"size", b"9" * 19),)], ids=["", "pax", "huge pax"])
def test_only_files_have_data_whatever_size_says(tar, kind, claimed, records):
    before = tar.pax(*records) if records else b""
    archive = before + tar.header(b"a", kind, size=claimed, link=b"target") + tar.member(b"b", b"B" * 65) + tar.end
    assert shape(tar.chunks(archive, 512)) == [len(before) + 1024, "x", 447 + 1024]
    assert [(entry.path, entry.size) for entry in tar.entries(archive)] == [(b"a", 0), (b"b", 65)]


def test_size_is_taken_from_pax_before_the_header(tar):
    archive = tar.pax((b"size", b"100")) + tar.header(b"a", size=7) + tar.padded(b"x" * 100) + tar.end
    assert shape(tar.chunks(archive)) == [1536, "x", 412 + 1024]


@pytest.mark.parametrize("size", [100, 70_000])
def test_size_may_be_a_base_256_number(tar, size):
    field = (1 << 95 | size).to_bytes(12, "big")
    archive = tar.member(b"a", b"x" * size, size=field) + tar.end
    assert shape(tar.chunks(archive)) == [512, "x", -size % 512 + 1024]


def test_positions_are_exact_and_inline_ranges_are_merged(tar):
    archive = tar.member(b"d", kind=b"5") + tar.member(b"a", b"x" * 600) + tar.member(b"b", b"y") + tar.end
    assert split_all(archive) == (
        len(archive),
        [(INLINE, 0, 1024), (EXTERNAL, 1024, 1624), (INLINE, 1624, len(archive))],
    )


# -- files larger than the carry limit ---------------------------------------------------------


def test_large_file_comes_in_pieces_at_multiples_of_the_piece_size(tar):
    content = bytes(range(256)) * 100  # 25,600 bytes
    archive = tar.member(b"a", content) + tar.end
    splitter = TarSplitter(carry_limit=4096, piece_size=8192)
    first = splitter.split(memoryview(archive[:9000]))
    assert first == (512 + 8192, [(INLINE, 0, 512), (LARGE_BEGIN, 0, 25_600), (LARGE_PIECE, 512, 8704)])
    assert splitter.wanted == 8192
    assert splitter.split(memoryview(archive[8704:9000])) == (0, [])
    second = splitter.split(memoryview(archive[8704:]), final=True)
    end = 25_600 - 8192
    assert second == (
        len(archive) - 8704,
        [(LARGE_PIECE, 0, end), (LARGE_END, 0, 25_600), (INLINE, end, len(archive) - 8704)],
    )


@pytest.mark.parametrize(
    ("size", "kinds"), [(4096, [EXTERNAL]), (8193, [LARGE_BEGIN, LARGE_PIECE, LARGE_PIECE, LARGE_END])]
)
def test_carry_limit_decides_what_is_large(tar, size, kinds):
    archive = tar.member(b"a", b"x" * size) + tar.end
    splitter = TarSplitter(carry_limit=4096, piece_size=4096)
    events = [event for at in range(0, len(archive), 100) for event in splitter.feed(archive[at : at + 100])]
    assert [event.kind for event in events if event.kind != INLINE] == kinds


def test_unconsumed_tail_is_shorter_than_the_carry_limit(tar):
    archive = tar.member(b"a", b"x" * PIECE) + tar.member(b"b", b"y" * (2 * PIECE + 5)) + tar.end
    splitter, at, longest = TarSplitter(), 0, 0
    for end in range(0, len(archive), 4096):
        at += splitter.split(memoryview(archive)[at:end]).consumed
        longest = max(longest, end - at)
    assert PIECE - 4096 <= longest < PIECE


def test_wanted_says_how_long_a_view_must_be(tar):
    splitter = TarSplitter()
    archive = tar.member(b"a", b"x" * 1000) + tar.end
    assert splitter.wanted == 512
    assert splitter.split(memoryview(archive[:511])).consumed == 0
    assert splitter.split(memoryview(archive[:600])).consumed == 512
    assert splitter.wanted == 1000
    assert splitter.split(memoryview(archive[512:1511])).consumed == 0
    assert splitter.split(memoryview(archive[512:1600])).consumed == 1024
    assert splitter.wanted == 512


@pytest.mark.parametrize("limits", [{"piece_size": 4095}, {"piece_size": 0}, {"carry_limit": 63}, {"name_max": 254}])
def test_limits_that_cannot_work_are_refused(limits):
    with pytest.raises(ValueError, match="limit"):
        TarSplitter(**limits)


def test_nothing_can_follow_the_final_view(tar):
    splitter = TarSplitter()
    splitter.split(memoryview(tar.end), final=True)
    with pytest.raises(ValueError, match="to its end"):
        splitter.split(memoryview(tar.end))


# -- ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x" * 64, b"x" * 65, b"x" * 512], ids=len)
@pytest.mark.parametrize(
    "trailer",
    [b"", bytes(1), bytes(511), bytes(512), bytes(700), bytes(1024), bytes(10_240), bytes(1024) + b"anything\xff" * 99],
    ids=["none", "1 byte", "511 bytes", "one block", "700 bytes", "two blocks", "record", "junk behind"],
)
def test_every_byte_of_any_trailer_is_kept(tar, content, trailer):
    archive = tar.member(b"a", content) + trailer
    assert shape(tar.chunks(archive)) == shape(tar.chunks(archive, 1))
    assert [entry.size for entry in tar.entries(archive)] == [len(content)]


@pytest.mark.parametrize("size", [1, 64, 65, 700])
def test_final_padding_may_be_missing_or_short(tar, size):
    archive = tar.member(b"a", b"x" * size)
    for end in range(512 + size, len(archive) + 1):
        assert [entry.size for entry in tar.entries(archive[:end])] == [size]


def test_second_archive_behind_the_end_is_not_looked_at(tar):
    archive = tar.end + tar.member(b"a", b"x" * 100) + b"garbage"
    assert shape(tar.chunks(archive)) == [len(archive)]
    assert tar.entries(archive) == []


def test_one_zero_block_between_members_is_passed_over(tar):
    archive = bytes(512) + tar.member(b"a", b"x") + bytes(512) + tar.member(b"b", b"y" * 65) + bytes(512)
    assert [entry.path for entry in tar.entries(archive)] == [b"a", b"b"]


def test_empty_input_is_an_empty_archive(tar):
    assert tar.chunks(b"") == []
    assert tar.entries(b"") == []


def test_archive_cut_anywhere_is_refused_or_kept_whole(tar):
    archive = tar.pax((b"mtime", b"5.5")) + tar.member(b"a", b"x" * 100) + tar.member(b"b", b"y") + tar.end
    whole = {0: b""} | dict.fromkeys(range(1636, 2049), b"a") | dict.fromkeys(range(2561, 4097), b"ab")
    for end in range(len(archive) + 1):
        for piece in (0, 500):
            if end in whole:
                assert b"".join(entry.path for entry in tar.entries(archive[:end], piece)) == whole[end]
            else:
                with pytest.raises(TarError):
                    tar.chunks(archive[:end], piece)


# -- what is refused ---------------------------------------------------------------------------

LONG = b"n" * 256


def refused(tar) -> dict[str, tuple[bytes, str, int]]:
    """Name: archive behind one good member of 1024 bytes, the reason, and the offset counted from there."""
    file = tar.member(b"f", b"x" * 100)
    pax, header, member = tar.pax, tar.header, tar.member
    return {
        "checksum": (header(checksum=b"000001\0 "), "checksum is wrong", 0),
        "checksum off by the modulus of Adler-32": (
            header(
                name=b"\xff" * 100,
                link=b"\xff" * 100,
                prefix=b"\xff" * 155,
                checksum=b"%06o"
                % (
                    sum(header(name=b"\xff" * 100, link=b"\xff" * 100, prefix=b"\xff" * 155, checksum=b" " * 8)) - 65521
                ),
            ),
            "checksum is wrong",
            0,
        ),
        "checksum no number": (header(checksum=b"12x"), "not a number", 0),
        "size no number": (header(size=b"12x"), "not a number", 0),
        "size negative": (header(size=b"-1"), "not a number", 0),
        "size beyond limit": (
            header(size=(1 << 95 | 1 << 41).to_bytes(12, "big")),
            "2199023255552 bytes",
            0,
        ),
        "size 2^63": (header(size=(1 << 95 | 1 << 63).to_bytes(12, "big")), "9223372036854775808 bytes", 0),
        "size all ones": (header(size=b"\xff" * 12), "bytes, more than", 0),
        "size of a global header": (
            header(kind=b"g", size=(1 << 95 | 1 << 41).to_bytes(12, "big")),
            "bytes, more than",
            0,
        ),
        "size in PAX": (pax((b"size", b"9" * 19)) + file, "bytes, more than", 1024),
        "size in PAX of 65 bits": (pax((b"size", b"18446744073709551616")) + file, "64 bits", 0),
        "size in PAX negative": (pax((b"size", b"-1")) + file, "64 bits", 0),
        "mode no number": (header(mode=b"rwx"), "not a number", 0),
        "uid no number": (header(uid=b"root"), "not a number", 0),
        "mtime no number": (header(mtime=b"now"), "not a number", 0),
        "sum that is neither unsigned nor signed": (
            header(name=b"\xff", checksum=b"%06o" % (sum(header(name=b"\xff", checksum=b" " * 8)) - 255)),
            "checksum is wrong",
            0,
        ),
        "GNU sparse": (header(kind=b"S", magic=OLD_GNU), "sparse members of the old GNU form", 0),
        "GNU sparse, other version": (header(kind=b"S", magic=V7), "sparse members of the old GNU form", 0),
        "unknown type": (header(kind=b"V"), "unsupported member type b'V'", 0),
        "two PAX headers": (pax((b"path", b"a")) + pax((b"path", b"b")) + file, "a second PAX header", 1024),
        "two long names": (member(b"l", b"n", b"L") * 2 + file, "a second GNU long name", 1024),
        "two long links": (member(b"l", b"n", b"K") * 2 + file, "a second GNU long link", 1024),
        "PAX header, global header, PAX header": (
            pax((b"a", b"")) + pax(kind=b"g") + pax((b"a", b"")) + file,
            "a second PAX",
            1536,
        ),
        "extension of more than 1 MiB": (
            header(kind=b"x", size=(1 << 20) + 1),
            "extension headers of 1048577 bytes",
            0,
        ),
        "extensions of more than 1 MiB": (
            member(b"l", b"n" * (1 << 19), b"L") + header(kind=b"K", size=(1 << 19) + 1),
            "1048577 bytes",
            512 + (1 << 19),
        ),
        "PAX without length": (member(b"p", b"path=a\n", b"x") + file, "no length", 0),
        "PAX length too long": (member(b"p", b"99 path=a\n", b"x") + file, "does not end", 0),
        "PAX length too short": (member(b"p", b"2 path=a\n", b"x") + file, "does not end", 0),
        "PAX length zero": (member(b"p", b"0 path=a\n", b"x") + file, "does not end", 0),
        "PAX length huge": (member(b"p", b"9" * 5000 + b" path=a\n", b"x") + file, "no length", 0),
        "PAX without newline": (member(b"p", b"9 path=ab", b"x") + file, "does not end", 0),
        "PAX without equals": (member(b"p", b"8 patha\n", b"x") + file, "no '='", 0),
        "PAX junk behind NUL": (member(b"p", b"9 path=a\n\0\0x", b"x") + file, "no length", 0),
        "PAX key no UTF-8": (pax((b"\xff", b"a")) + file, "not UTF-8", 0),
        "PAX uid": (pax((b"uid", b"x")) + file, "64 bits", 0),
        "PAX uid too low": (pax((b"uid", b"-9223372036854775809")) + file, "64 bits", 0),
        "PAX uid too high": (pax((b"uid", b"18446744073709551616")) + file, "64 bits", 0),
        "empty name everywhere": (
            pax((b"path", b"")) + member(b"l", b"\0", b"L") + header(name=b""),
            "an empty name",
            2048,
        ),
        "PAX gid": (pax((b"gid", b"1.0")) + file, "64 bits", 0),
        "PAX mtime point": (pax((b"mtime", b".5")) + file, "not a time", 0),
        "PAX mtime space": (pax((b"mtime", b" 5")) + file, "not a time", 0),
        "PAX mtime of 65 bits": (pax((b"mtime", b"18446744073709551616")) + file, "not a time", 0),
        "PAX mtime too early": (pax((b"mtime", b"-9223372036854775809")) + file, "not a time", 0),
        "xattr without name": (pax((b"SCHILY.xattr.", b"v")) + file, "cannot be named", 0),
        "xattr name of 256 bytes": (pax((b"SCHILY.xattr." + LONG, b"v")) + file, "cannot be named", 0),
        "xattr name with NUL": (pax((b"SCHILY.xattr.user.a\0b", b"v")) + file, "cannot be named", 0),
        "xattr name no UTF-8": (pax((b"SCHILY.xattr.user.\xff", b"v")) + file, "not UTF-8", 0),
        "xattr of 65536 bytes": (pax((b"SCHILY.xattr.user.a", bytes(65536))) + file, "65536 bytes", 0),
        "empty name": (header(name=b""), "an empty name", 0),
        "NUL in a PAX name": (pax((b"path", b"a\0b")) + file, "a NUL in the name", 1024),
        "symlink without target": (header(kind=b"2"), "link target of 0 bytes", 0),
        "symlink with long target": (
            pax((b"linkpath", b"t" * 4096)) + header(kind=b"2"),
            "link target of 4096 bytes",
            1536 + 3584,
        ),
        "symlink with NUL": (pax((b"linkpath", b"t\0t")) + header(kind=b"2"), "link target", 1024),
        "hard link without target": (header(kind=b"1"), "an empty link target", 0),
        "hard link with NUL": (pax((b"linkpath", b"t\0t")) + header(kind=b"1"), "a NUL in the link target", 1024),
        "device number no number": (header(kind=b"4", device=(b"x", b"0")), "not a number", 0),
        "device number too large": (header(kind=b"3", device=(b"10000", b"0")), "no device 4096:0", 0),
        "minor device number too large": (header(kind=b"4", device=(b"1", b"4000000")), "no device 1:1048576", 0),
        "end after an extension": (pax((b"path", b"a")) + tar.end, "after an extension header", 1536),
        "end of input after an extension": (pax((b"path", b"a")), "after an extension header", 1024),
        "end inside a header": (file[:511], "inside a header", 0),
        "end inside content": (file[:611], "inside the data", 0),
        "end inside small content": (member(b"a", b"x" * 50)[:540], "inside the data", 0),
        "end inside an extension": (pax((b"path", b"abc"))[:520], "inside the data", 0),
    }


def test_what_is_refused_names_the_reason_and_the_header(tar):
    before = tar.member(b"good", b"x" * 512)
    for name, (archive, reason, offset) in refused(tar).items():
        for piece in (0, 7, 512, 1000):
            with pytest.raises(TarError) as caught:
                tar.chunks(before + archive, piece)
            assert reason in caught.value.reason, name
            assert caught.value.offset == 1024 + offset, name


def test_name_limit_applies_to_components(tar):
    def archive(path: bytes) -> bytes:
        return tar.pax((b"path", path)) + tar.header() + tar.end

    for path in (b"n" * 255, (b"n" * 255 + b"/") * 9, b"a/.wh." + b"n" * 255):
        assert tar.entries(archive(path), name_max=255)[0].path == path.strip(b"/")
    for path in (LONG, b"a/" + LONG, LONG + b"/a", b"a/.wh." + LONG):
        assert tar.entries(archive(path))[0].path == path
        with pytest.raises(TarError, match="bytes, more than 255"):
            tar.entries(archive(path), name_max=255)


def test_file_size_limit_can_be_set(tar):
    archive = tar.member(b"a", b"x" * 1000) + tar.end
    assert len(tar.entries(archive, max_file_size=1000)) == 1
    with pytest.raises(TarError, match="a member of 1000 bytes, more than 999"):
        tar.entries(archive, max_file_size=999, carry_limit=512)


@pytest.mark.parametrize("bits", [0, 0o10, 0o4, 0o12, 0o17, 0o20, 0o777])
@pytest.mark.parametrize("kind", [b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6"])
def test_mode_is_the_lower_twelve_bits(tar, kind, bits):
    archive = tar.header(kind=kind, mode=bits << 12 | 0o4755, link=b"t")
    assert [entry.mode for entry in tar.entries(archive)] == [0o4755]


# -- whole archives ----------------------------------------------------------------------------

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = st.text("ab/é.", min_size=1, max_size=120).filter(lambda name: name.strip("/") and len(name.encode()) < 150)


@st.composite
def drawn_members(draw):
    info = tarfile.TarInfo(draw(NAMES).strip("/"))
    info.type = draw(st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE]))
    info.linkname = draw(NAMES) if info.issym() else ""
    info.mtime = draw(st.integers(0, 1 << 33))
    info.uid = draw(st.sampled_from([0, 1000, 2097151]))
    return info, draw(st.binary(max_size=3)) * draw(st.sampled_from([1, 20, 22, 300, 2000]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(drawn_members(), max_size=6), st.sampled_from(list(FORMATS)), st.integers(1, 3000), st.data())
def test_result_does_not_depend_on_how_the_archive_is_cut(tar, found, name, piece, data):
    try:
        archive = tar.python(found, FORMATS[name])
    except ValueError:  # ustar cannot split every long name
        return
    whole = tar.chunks(archive)
    assert tar.chunks(archive, piece) == whole
    assert tar.chunks(archive, piece, carry_limit=64, piece_size=4096) == whole
    entries = tar.entries(archive)
    with tarfile.open(fileobj=io.BytesIO(archive)) as reference:
        expected = reference.getmembers()
    assert [entry.path for entry in entries] == [info.name.encode().strip(b"/") for info in expected]
    assert [entry.mtime_ns for entry in entries] == [int(info.mtime) * 10**9 for info in expected]
    assert [entry.link for entry in entries] == [info.linkname.encode() for info in expected]
    at = data.draw(st.integers(0, len(archive) - 1))
    damaged = bytearray(archive)
    damaged[at] ^= data.draw(st.integers(1, 255))
    try:
        chunks = tar.chunks(bytes(damaged), piece)
    except TarError:
        return
    assert tar.entries(bytes(damaged)) is not None
    assert chunks == tar.chunks(bytes(damaged))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=4),
    st.binary(max_size=60),
    st.integers(1, 700),
)
def test_damaged_headers_with_a_good_checksum_raise_nothing_but_tar_errors(tar, changes, extra, piece):
    """What the splitter lets pass the reader reads."""
    header = bytearray(tar.header(b"name", size=100, link=b"target"))
    for at, value in changes:
        header[at] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive = tar.member(b"p", extra, b"x") + bytes(header) + bytes(512) + tar.member(b"b", b"x" * 65) + tar.end
    for start in (0, 512 + len(tar.padded(extra))):
        try:
            chunks = tar.chunks(archive[start:], piece)
        except TarError:
            continue
        assert chunks == tar.chunks(archive[start:])
        assert tar.entries(archive[start:]) is not None


def test_layers_of_golden_images_split_and_read(tar):
    """Expected counts and sums are those of the program that made the images' repositories."""
    expected = json.loads((VECTORS / "layers.json").read_text())
    assert expected
    for name, facts in expected.items():
        archive = gzip.decompress((VECTORS / f"{name}.tar.gz").read_bytes())
        events = TarSplitter().feed(archive, final=True)
        assert len(tar.entries(archive)) == facts["entryCount"], name
        external = [event.size for event in events if event.kind == EXTERNAL]
        assert {
            "externalObjects": len(external),
            "externalSize": sum(external),
            "inlineSize": len(archive) - sum(external),
        } == facts["splitstream"], name


RECORDS = st.sampled_from(
    [
        (b"path", b"p/"),
        (b"path", b""),
        (b"size", b"600"),
        (b"size", b""),
        (b"uid", b"-1"),
        (b"mtime", b""),
        (b"mtime", b"5.5"),
    ]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([b"0", b"\0", b"5", b"2", b"1", b"7", b"3", b"6"]),
    st.sampled_from([b"ustar\x0000", OLD_GNU, V7, b"ustar\0  ", b"ustar\0\0\0", b"ustar 00", b"ustar" + b"\x01\0\0"]),
    st.sampled_from([b"", b"p/q"]),
    st.sampled_from([b"name", b"name/", b"n\xe9/", b"/"]),
    st.lists(st.tuples(st.integers(0, 511), st.sampled_from(b"\0 0179/a\x80\xff")), max_size=3),
    st.sampled_from([0, 5, 64, 65, 600]),
    st.sampled_from([0o644, 0o100755, 0o177777]),
    st.booleans(),
    st.lists(RECORDS, max_size=2),
)
def test_fast_loops_answer_as_the_parser_does(tar, kind, magic, prefix, name, changes, size, mode, signed, records):
    header = bytearray(tar.header(name, kind, size=size, mode=mode, link=b"link/", magic=magic, prefix=prefix))
    for at, value in changes:
        header[at] = value
    if not any(148 <= at < 156 for at, _ in changes):
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % (sum(header) - 256 * sum(byte >> 7 for byte in header if signed))
    archive = bytes(header) + bytes(1024) + tar.header(b"last") + tar.end
    if records:
        archive = tar.pax(*records) + archive

    def outcome() -> object:
        splitter = TarSplitter()
        try:
            splitter.feed(archive, final=True)
            return splitter.difference, tar.chunks(archive), tar.entries(archive)
        except TarError as error:
            return error.reason, error.offset

    fast = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "NATIVE", False)
        patch.setattr(members, "NATIVE", False)
        assert outcome() == fast
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TarSplitter, "_plain_members", lambda self, view, at, end: at)
        patch.setattr(members.EntryReader, "_plain_members", lambda self, data, at, *others: (data, at, None))
        patch.setattr(members, "NATIVE", False)
        assert outcome() == fast
