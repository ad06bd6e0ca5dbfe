"""Whole files given byte for byte by the specification, and their object ids."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.splitstream import (
    OCI_CONFIG,
    OCI_LAYER,
    BytesSource,
    Generation,
    SplitstreamBuilder,
    SplitstreamReader,
    SplitstreamWriter,
)

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512

EMPTY = """
53706c697453747265616d000000010c20000000000000007000000000000000
7000000000000000700000000000000070000000000000007000000000000000
7900000000000000820000000000000070000000000000007900000000000000
0000000000000000000000000000000028b52ffd200001000028b52ffd200001
0000
"""
HELLO = """
53706c697453747265616d000000010c20000000000000007000000000000000
7000000000000000700000000000000070000000000000007000000000000000
79000000000000008f0000000000000070000000000000007900000000000000
0000000000000000050000000000000028b52ffd200001000028b52ffd005869
0000fbffffffffffffff68656c6c6f
"""
JANUARY_HEADER = "20000000000000007000000000000000000053706c697453747265616d00010c"
MIXED = """
53706c697453747265616d000000010c20000000000000007000000000000000
7000000000000000b000000000000000b000000000000000f000000000000000
10010000000000003101000000000000f0000000000000001001000000000000
6f63696c617965727f20000000000000a8d8fab41a69114e3db14ed56867f540
826ed135b491c47fdabdcdb8e31b785b0173a8acbc9108a527e0dab2c762b8ea
9f3fddf8fca9cdb5d9a12eeef3d1dc96babc284ee4ffe7f449377fbf6692715b
43aec7bc39c094a95878904d34bac97ecac1f9a14deff1f9595907c391e29c6c
8ff6588f367ca56fea02d19e2316658d28b52ffd0058b90000303a616c696173
00313a616c70686100303a7a6574610028b52ffd0058c5000058f8ff4100f8ff
420100ff430710009990e8186e59f21db0
"""
CONFIG = """
53706c697453747265616d000000010c20000000000000007000000000000000
700000000000000090000000000000009000000000000000b000000000000000
ca00000000000000db00000000000000b000000000000000ca00000000000000
6f6369636f6e66679700000000000000fbf48665a4925a6b9a6d6d606228574b
6db1ce2002db657c21647e948d3e2c91816fc8dddcf436a286ad9d6969e3ba38
7db2c7d3a3aa4726e83c7e16fe4ff6f528b52ffd00588d000058303a73686132
35363a3100010094001228b52ffd00584100000000000000000000
"""
DIFF_ID = "sha256:" + "1" * 64
PAYLOAD = f'{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{DIFF_ID}"]}}}}'.encode()

IDS = {
    "empty": "7ff9fe4ec4e321464efd75c3fde78232cad5f8d6e7f11d31245043c163e16f8e",
    "empty layer": "c93c6d44a4dab11e45eb0b7c78736f03ec5276cc9d18524dd21a96591d17351b",
    "hello": "fbf48665a4925a6b9a6d6d606228574b6db1ce2002db657c21647e948d3e2c91",
    "hello january": "4e9616e123cbb13ef416f5a2cf445dbaa212fa89a6ba3e597e10b764ec6b2936",
    "hello sha512": "c41b88fa5ad7500696abeb11341aa3f0cec91083040b5f414dea28132065bab3"
    "ffe9ad9c75020252819a9075b1b314b38275f9e6d4fdd7b12aa3f87eb09edf15",
    "hello january sha512": "9bb9935f3976d23102fc448debd8f731f49e6e24e7caf6f9f8695c4c8576f05b"
    "93630ca603e2e58b2d1dcbec9b58c9a539c030a83fdf15bf37f4bd7467308d4c",
    "mixed": "edc5b40e187e1e45a610514ec56cd372f9466c7b0bf34be2fe9c204de8cfea85",
    "config": "bb9519d7a2d292ab6a05821096fb90faa8ec2d02c59024bb155e1f08391176a1",
    "config january": "2b53de1308d76b1d6b1fe0886de5b14b4accea6568d9c973b8e6394dfdd1449b",
    "layer": "bd5c93f14886e619b1d4d99a7166ed2d2f6b9e1d1211aca7b7fe683ce5fc2b52",
    "layer january": "f9983df81bcd81b6e02d062939a413f7c6235ded082fd0b15a8feccf74cccad7",
    "layer padded": "a15adf99a0f5eb5b25b5280ef4186a0edc2fbd09057ea8879c4e8c00be1aa674",
}


def january(data: bytes, algorithm: Algorithm = SHA256) -> bytes:
    return bytes.fromhex(JANUARY_HEADER)[:30] + bytes([algorithm.number, 12]) + data[32:]


def hello(algorithm: Algorithm) -> bytes:
    writer = SplitstreamWriter(algorithm, 0)
    writer.write_inline(b"he")
    writer.write_inline(b"")
    writer.write_inline(memoryview(b"llo"))
    return writer.done()


def test_empty_stream_has_the_specified_bytes(verity: Any) -> None:
    data = SplitstreamWriter(SHA256, 0).done()
    assert data == bytes.fromhex(EMPTY)
    assert verity(data, SHA256).hex() == IDS["empty"]
    assert verity(SplitstreamWriter(SHA256, OCI_LAYER).done(), SHA256).hex() == IDS["empty layer"]


def test_inline_stream_has_the_specified_bytes_and_ids(verity: Any) -> None:
    data = hello(SHA256)
    assert data == bytes.fromhex(HELLO)
    assert verity(data, SHA256).hex() == IDS["hello"]
    assert verity(january(data), SHA256).hex() == IDS["hello january"]
    assert verity(hello(SHA512), SHA512).hex() == IDS["hello sha512"]
    assert verity(january(hello(SHA512), SHA512), SHA512).hex() == IDS["hello january sha512"]


@pytest.mark.parametrize("algorithm", Algorithm)
def test_both_generations_read_alike(algorithm: Algorithm) -> None:
    data = hello(algorithm)
    for form, generation in ((data, Generation.MARCH), (january(data, algorithm), Generation.JANUARY)):
        reader = SplitstreamReader(BytesSource(form), algorithm, 0)
        assert (reader.generation, reader.algorithm, reader.stream_size) == (generation, algorithm, 5)
        assert list(reader.chunks()) == [b"hello"]


def test_mixed_stream_has_the_specified_bytes(verity: Any, make_sink: Any) -> None:
    sink = make_sink(SHA256)
    writer = SplitstreamWriter(sink, OCI_LAYER)
    for name, content in (("zeta", b"zeta"), ("alpha", b"alpha"), ("alias", b"zeta")):
        writer.add_named_stream_ref(name, verity(content, SHA256))
    writer.write_inline(b"A" * 8)
    writer.write_external(bytes(4096))
    writer.write_inline(b"B" * 8)
    writer.write_external(b"hello world" * 10)
    writer.write_external(bytes(4096))
    writer.write_inline(b"C")
    data = writer.done()
    assert data == bytes.fromhex(MIXED)
    assert verity(data, SHA256).hex() == IDS["mixed"]

    reader = SplitstreamReader(BytesSource(data), SHA256, OCI_LAYER)
    zeros, greeting = verity(bytes(4096), SHA256), verity(b"hello world" * 10, SHA256)
    zeta, alpha = verity(b"zeta", SHA256), verity(b"alpha", SHA256)
    assert reader.object_refs == (zeros, greeting)
    assert reader.stream_refs == (zeta, alpha)
    assert reader.named_refs == {"alias": zeta, "alpha": alpha, "zeta": zeta}
    assert list(reader.chunks()) == [b"A" * 8, zeros, b"B" * 8, greeting, zeros, b"C"]
    merged = b"".join(SplitstreamReader(BytesSource(data)).cat(sink.open))
    assert merged == b"A" * 8 + bytes(4096) + b"B" * 8 + b"hello world" * 10 + bytes(4096) + b"C"
    assert len(merged) == reader.stream_size == 0x207F


def test_config_has_the_specified_bytes_in_both_forms(verity: Any, make_sink: Any) -> None:
    assert len(PAYLOAD) == 151
    assert hashlib.sha256(PAYLOAD).hexdigest() == "34a653d2ef9a1e408affee0b56ef21118a18dbaeaa41190dc0edb5fee06bc376"
    layer = ObjectId.from_hex(IDS["hello"])
    sink = make_sink(SHA256)
    external = SplitstreamBuilder(sink, OCI_CONFIG)
    external.push_external(PAYLOAD)
    external.add_named_stream_ref(DIFF_ID, layer)
    data = external.finish()
    assert data == bytes.fromhex(CONFIG)
    assert verity(data, SHA256).hex() == IDS["config"]

    inline = SplitstreamWriter(SHA256, OCI_CONFIG)
    inline.add_named_stream_ref(DIFF_ID, layer)
    inline.write_inline(PAYLOAD)
    old = january(inline.done())
    assert len(old) == 275
    assert verity(old, SHA256).hex() == IDS["config january"]
    for form in (data, old):
        reader = SplitstreamReader(BytesSource(form), SHA256, OCI_CONFIG)
        assert reader.lookup_named_ref(DIFF_ID) == layer
        assert reader.payload(sink.open) == PAYLOAD


def tar_header(name: bytes, mode: int, size: int, kind: bytes, link: bytes = b"") -> bytes:
    fields = (name.ljust(100, b"\0"), b"%07o\0" % mode, b"0000000\0" * 2, b"%011o\0" % size, b"%011o\0" % 0)
    behind = (kind, link.ljust(100, b"\0"), b"ustar\x0000", bytes(64), b"0000000\0" * 2, bytes(167))
    blank = b"".join((*fields, b" " * 8, *behind))
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def small_layer() -> tuple[bytes, bytes]:
    """What stands before and behind the one large file of the specified tar."""
    before = tar_header(b"usr/", 0o755, 0, b"5") + tar_header(b"usr/small", 0o644, 64, b"0")
    before += b"x" * 64 + bytes(448) + tar_header(b"usr/big", 0o644, 65, b"0")
    return before, bytes(447) + tar_header(b"usr/hl", 0o644, 0, b"1", b"usr/big") + bytes(1024)


@pytest.mark.parametrize(
    ("padding", "diff_id", "size", "stream_id"),
    [
        (0, "4756f089f819b7143be3c63f713455b9b97488cb40d3e4895408c7bfc972aade", 347, IDS["layer"]),
        (6144, "59d0765e905567d95b2741d66c193a7d78a141866c52486fb4b2296035845ab3", 341, IDS["layer padded"]),
    ],
)
def test_tar_layer_has_the_specified_id(
    padding: int, diff_id: str, size: int, stream_id: str, verity: Any, make_sink: Any
) -> None:
    before, behind = small_layer()
    behind += bytes(padding)
    assert hashlib.sha256(before + b"y" * 65 + behind).hexdigest() == diff_id
    sink = make_sink(SHA256)
    writer = SplitstreamWriter(sink, OCI_LAYER)
    writer.write_inline(before)
    stored = writer.write_external(b"y" * 65)
    writer.write_inline(behind)
    data = writer.done()
    assert stored.id.hex() == "d35383ed2736abbd8313970a786f10579e9ed5d78b323fb24c078cc52f08dd2a"
    assert (len(data), verity(data, SHA256).hex()) == (size, stream_id)
    assert list(SplitstreamReader(BytesSource(data)).chunks()) == [before, stored.id, behind]
    if not padding:
        assert verity(january(data), SHA256).hex() == IDS["layer january"]


def test_frames_have_the_specified_bytes(pack: Any) -> None:
    assert pack(b"").hex() == "28b52ffd2000010000"
    assert pack(b"hello").hex() == "28b52ffd005829000068656c6c6f"
