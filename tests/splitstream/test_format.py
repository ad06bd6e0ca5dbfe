"""The header, info and content types by themselves."""

from __future__ import annotations

import pytest

from composefs_async.digest import Algorithm
from composefs_async.errors import SplitstreamError
from composefs_async.splitstream import OCI_BLOB, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Generation, Header, Info, Section
from composefs_async.splitstream.format import content_type_name, pack_header, pack_info, unpack_header, unpack_info

MARCH_SHA256 = "53706c697453747265616d000000010c20000000000000007000000000000000"
JANUARY_SHA256 = "20000000000000007000000000000000000053706c697453747265616d00010c"
JANUARY_SHA512 = "20000000000000007000000000000000000053706c697453747265616d00020c"

HEADERS = {
    MARCH_SHA256: Header(Algorithm.SHA256, Section(32, 112)),
    JANUARY_SHA256: Header(Algorithm.SHA256, Section(32, 112), generation=Generation.JANUARY),
    JANUARY_SHA512: Header(Algorithm.SHA512, Section(32, 112), generation=Generation.JANUARY),
}


@pytest.mark.parametrize("raw", HEADERS)
def test_header_of_each_generation_is_read_and_written(raw: str) -> None:
    assert unpack_header(bytes.fromhex(raw)) == HEADERS[raw]
    assert pack_header(HEADERS[raw]).hex() == raw


def test_info_comes_back_in_the_order_of_its_fields() -> None:
    info = Info(Section(1, 2), Section(3, 5), Section(7, 11), Section(13, 17), OCI_LAYER, 2**64 - 1)
    packed = pack_info(info)
    assert len(packed) == 80
    assert packed[32:40] == (7).to_bytes(8, "little")
    assert unpack_info(packed + b"more", 32) == info
    assert info.stream.size == 4


def test_short_info_is_refused_with_its_offset() -> None:
    with pytest.raises(SplitstreamError) as caught:
        unpack_info(bytes(79), 32, "layer")
    assert (caught.value.reason, caught.value.offset) == ("the info section has 79 of 80 bytes", 32)
    assert str(caught.value).startswith("layer: ")


def test_content_types_are_their_eight_characters() -> None:
    values = {OCI_LAYER: "ocilayer", OCI_CONFIG: "ociconfg", OCI_MANIFEST: "ocimanif", OCI_BLOB: "oci_blob"}
    assert sorted(values) == [0x626F6C625F69636F, 0x66696E616D69636F, 0x67666E6F6369636F, 0x726579616C69636F]
    assert {value: content_type_name(value) for value in values} == values


def test_content_type_without_characters_is_named_by_number() -> None:
    assert content_type_name(0) == "0x0"
    assert content_type_name(2**64 - 1) == "0xffffffffffffffff"
