"""Unpacking: members and frames, ends, damage, limits."""

from __future__ import annotations

import gzip
import random
import struct
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefs_async.errors import CompressionError
from composefs_async.oci.importing.decompress import Compression, decompressor, detect, for_media_type

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP, ZSTD, NONE = Compression.GZIP, Compression.ZSTD, Compression.NONE
CONTENT = bytes(range(256)) * 40 + random.Random(7).randbytes(5000)
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0skip"


def pack(compression: Compression, data: bytes = CONTENT) -> bytes:
    if compression is NONE:
        return data
    if compression is GZIP:
        return gzip.compress(data, mtime=0)
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


def unpack(compression: Compression, packed: bytes, piece: int = 1 << 20, room: int = 4096, **limits) -> bytes:
    unpacker, buffer, found = decompressor(compression, **limits), bytearray(room), b""
    for at in range(0, len(packed), piece):
        unpacker.feed(packed[at : at + piece])
        while filled := unpacker.read_into(memoryview(buffer)):
            found += buffer[:filled]
        assert unpacker.needs_input
    unpacker.finish()
    assert unpacker.consumed == len(packed)
    assert unpacker.produced == len(found)
    return found


PACKED = {
    "gzip": (GZIP, pack(GZIP), CONTENT),
    "gzip members": (GZIP, pack(GZIP) * 3, CONTENT * 3),
    "gzip with header fields": (
        GZIP,
        b"\x1f\x8b\x08\x1c\0\0\0\0\0\x03\x03\0abcname\0comment\0" + pack(GZIP)[10:],
        CONTENT,
    ),
    "gzip of many small members": (
        GZIP,
        b"".join(pack(GZIP, b"%d" % i) for i in range(3000)),
        b"".join(b"%d" % i for i in range(3000)),
    ),
    "gzip with an empty member": (GZIP, pack(GZIP) + pack(GZIP, b"") + pack(GZIP), CONTENT * 2),
    "gzip and zeros": (GZIP, pack(GZIP) + bytes(1000), CONTENT),
    "gzip of a MiB of zeros": (GZIP, pack(GZIP, bytes(1 << 20)), bytes(1 << 20)),
    "gzip stored": (GZIP, gzip.compress(CONTENT, 0, mtime=0), CONTENT),
    "zstd": (ZSTD, pack(ZSTD), CONTENT),
    "zstd frames": (ZSTD, pack(ZSTD) * 3, CONTENT * 3),
    "zstd of many small frames": (ZSTD, pack(ZSTD, b"x") * 3000, b"x" * 3000),
    "zstd skippable": (ZSTD, SKIPPABLE + pack(ZSTD) + SKIPPABLE + pack(ZSTD) + SKIPPABLE * 2, CONTENT * 2),
    "zstd only skippable": (ZSTD, SKIPPABLE, b""),
    "zstd with an empty frame": (ZSTD, pack(ZSTD, b"") + pack(ZSTD), CONTENT),
    "zstd of a MiB of zeros": (ZSTD, pack(ZSTD, bytes(1 << 20)), bytes(1 << 20)),
    "none": (NONE, CONTENT, CONTENT),
    "nothing": (NONE, b"", b""),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize(("piece", "room"), [(1 << 20, 1 << 21), (1 << 20, 100), (1000, 4096), (7, 1 << 20), (1, 1000)])
def test_content_is_the_same_however_it_is_cut(name, piece, room):
    compression, packed, content = PACKED[name]
    assert unpack(compression, packed, piece, room) == content


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    st.sampled_from([GZIP, ZSTD]),
    st.integers(1, 99),
    st.integers(1, 99),
)
def test_members_and_frames_of_any_kind_are_joined(parts, compression, piece, room):
    packed = b"".join(pack(compression, part) for part in parts)
    assert unpack(compression, packed, piece, room) == b"".join(parts)


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_input_cut_anywhere_ends_too_early(compression):
    whole = pack(compression, CONTENT[:1000]) + pack(compression, b"second")
    between = len(pack(compression, CONTENT[:1000]))
    for end in range(len(whole)):
        if end == between:
            assert unpack(compression, whole[:end]) == CONTENT[:1000]
            continue
        with pytest.raises(CompressionError, match="ends too early") as caught:
            unpack(compression, whole[:end])
        assert caught.value.offset == end


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_no_changed_bit_goes_unnoticed(compression):
    whole = pack(compression, b"Some content. " * 3)
    same = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert unpack(compression, bytes(damaged)) == b"Some content. " * 3
        except CompressionError:
            continue
        same += 1  # time, system and the like in gzip's header mean nothing, and one bit of zstd's
    assert same <= (7 * 8 if compression is GZIP else 2)


@pytest.mark.parametrize(
    ("compression", "packed", "reason", "offset"),
    [
        (GZIP, b"no gzip", "incorrect header", 0),
        (GZIP, pack(GZIP) + b"garbage", "no gzip member", len(pack(GZIP))),
        (GZIP, pack(GZIP) + b"\x1fgarbage", "damaged gzip member", len(pack(GZIP))),
        (GZIP, pack(GZIP) + bytes(9) + b"x", "no gzip member", len(pack(GZIP))),
        (GZIP, pack(GZIP) + bytes(9) + pack(GZIP), "no gzip member", len(pack(GZIP))),
        (GZIP, bytes(20), "incorrect header", 0),
        (GZIP, zlib.compress(CONTENT), "incorrect header", 0),
        (GZIP, pack(GZIP)[:-8] + bytes(8), "incorrect data check", None),
        (GZIP, pack(GZIP)[:-4] + bytes(4), "incorrect length check", None),
        (GZIP, b"", "ends too early", 0),
        (ZSTD, b"no zstd", "damaged zstd frame", 0),
        (ZSTD, pack(ZSTD) + bytes(9), "damaged zstd frame", len(pack(ZSTD))),
        (ZSTD, pack(ZSTD)[:-4] + bytes(4), "damaged zstd frame", None),
        (ZSTD, b"", "ends too early", 0),
    ],
)
def test_damage_names_its_place(compression, packed, reason, offset):
    for piece in (1 << 20, 1):
        with pytest.raises(CompressionError) as caught:
            unpack(compression, packed, piece)
        assert reason in caught.value.reason
        # The offset is that of the slice it was found in.
        assert caught.value.offset <= len(packed)
        if piece > 1 and offset is not None:
            assert caught.value.offset == offset


def frame_with(window: int) -> bytes:
    """A frame that asks for a window of 1 << *window* bytes."""
    # RFC 8878: magic number, frame header descriptor without content size, window descriptor, one raw block
    return struct.pack("<IBB", 0xFD2FB528, 0, window - 10 << 3) + (1 | 1 << 3).to_bytes(3, "little") + b"x"


@pytest.mark.parametrize(
    ("window", "limits", "limit"),
    [
        (27, {}, None),
        (28, {}, None),
        (29, {}, None),
        (30, {}, 512 << 20),
        (30, {"max_window": 1 << 30}, None),
        (31, {"max_window": 1 << 40}, None),
        (20, {"max_window": 1 << 20}, None),
        (21, {"max_window": (1 << 21) - 1}, 1 << 20),
        (11, {"max_window": 1}, 1 << 10),
    ],
)
def test_zstd_window_is_a_limit_and_no_damage(window: int, limits: dict[str, int], limit: int | None) -> None:
    if limit is None:
        assert unpack(ZSTD, frame_with(window), **limits) == b"x"
        return
    with pytest.raises(CompressionError) as caught:
        unpack(ZSTD, frame_with(window), **limits)
    assert caught.value.reason == (
        f"the limit of {limit} bytes for the window of a zstd frame is exceeded (max_window, --max-window)"
    )


@pytest.mark.parametrize("compression", [GZIP, ZSTD, NONE])
def test_size_limit_stops_right_behind_it(compression):
    packed = pack(compression)
    assert unpack(compression, packed, max_size=len(CONTENT)) == CONTENT
    with pytest.raises(CompressionError, match=rf"the limit of {len(CONTENT) - 1} unpacked bytes .*--max-layer-size"):
        unpack(compression, packed, max_size=len(CONTENT) - 1)


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_ratio_limit_is_judged_beyond_64_mib(compression):
    size = 64 << 20
    small, bomb = pack(compression, bytes(size)), pack(compression, bytes(size + (2 << 20)))

    def count(packed: bytes, **limits: float) -> int:
        unpacker, buffer, total = decompressor(compression, **limits), memoryview(bytearray(1 << 20)), 0
        unpacker.feed(packed)
        while filled := unpacker.read_into(buffer):
            total += filled
        unpacker.finish()
        return total

    assert count(small, max_ratio=100) == size
    assert count(bomb, max_ratio=1e6) == size + (2 << 20)
    with pytest.raises(CompressionError, match=r"the limit of 100 unpacked to packed bytes .*--max-ratio"):
        count(bomb, max_ratio=100)


def test_input_must_be_used_up_before_more_is_fed():
    unpacker = decompressor(GZIP)
    unpacker.feed(pack(GZIP))
    with pytest.raises(ValueError, match="has not been read"):
        unpacker.feed(b"more")


def test_view_of_no_bytes_takes_nothing():
    unpacker = decompressor(NONE)
    unpacker.feed(b"abc")
    assert unpacker.read_into(memoryview(bytearray())) == 0
    assert not unpacker.needs_input


OCI, DOCKER = "application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (OCI + "v1.tar", NONE),
        (OCI + "v1.tar+gzip", GZIP),
        (OCI + "v1.tar+zstd", ZSTD),
        (OCI + "nondistributable.v1.tar", NONE),
        (OCI + "nondistributable.v1.tar+gzip", GZIP),
        (OCI + "nondistributable.v1.tar+zstd", ZSTD),
        (DOCKER + "diff.tar", NONE),
        (DOCKER + "diff.tar.gzip", GZIP),
        (DOCKER + "diff.tar.zstd", ZSTD),
        (DOCKER + "foreign.diff.tar.gzip", GZIP),
        (OCI + "v1.tar.gzip", None),
        (OCI + "v1.tar+xz", None),
        ("application/vnd.oci.image.config.v1+json", None),
        ("application/octet-stream", None),
        ("", None),
    ],
)
def test_media_type_tells_the_compression(media_type, compression):
    assert for_media_type(media_type) is compression


def test_magic_number_tells_the_compression():
    table = {
        pack(GZIP): GZIP,
        pack(ZSTD): ZSTD,
        SKIPPABLE: ZSTD,
        b"usr/": NONE,
        b"": NONE,
        b"\x50\x2a\x4d": NONE,
        b"\x1f": NONE,
    }
    assert {head: detect(head) for head in table} == table


def v7(name: bytes) -> bytes:
    """A header without a magic, and a trailer."""
    header = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"00000000000\0" * 2 + b" " * 8)
    header += bytes(512 - len(header))
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


@pytest.mark.parametrize("claimed", [None, NONE, GZIP, ZSTD])
@pytest.mark.parametrize("name", [b"usr/", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zXZ"])
def test_a_tar_is_one_whatever_its_first_name_is(claimed, name):
    ustar = bytearray(v7(name))
    ustar[257:265] = b"ustar\x0000"
    for head in (v7(name), bytes(ustar), bytes(1024), b"", b"\0"):
        assert detect(head, claimed) is NONE


@pytest.mark.parametrize("claimed", [NONE, GZIP, ZSTD])
def test_media_type_and_first_bytes_are_named_when_neither_fits(claimed):
    says = {NONE: "a plain tar", GZIP: "gzip", ZSTD: "zstd"}[claimed]
    for head in (b"garbage!" * 80, b"\x1f", b"usr/", b"usr/" + bytes(508)):
        with pytest.raises(CompressionError) as caught:
            detect(head, claimed)
        reason = f"its media type says {says}, its first bytes {head[:8].hex(' ')} are of no tar, gzip or zstd"
        assert (caught.value.reason, caught.value.offset) == (reason, 0)
    assert detect(pack(GZIP), claimed) is GZIP
    assert detect(pack(ZSTD), claimed) is ZSTD
    assert detect(SKIPPABLE, claimed) is ZSTD


@pytest.mark.parametrize(("head", "name"), [(b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\0\0\4", "xz")])
@pytest.mark.parametrize("claimed", [None, NONE, GZIP])
def test_other_packings_are_named(head, name, claimed):
    with pytest.raises(CompressionError, match=f"packed with {name}, which is not supported"):
        detect(head, claimed)
