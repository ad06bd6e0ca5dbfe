"""JSON documents of a store: their bytes, and what a reader refuses."""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import (
    DigestMismatchError,
    InvalidNameError,
    StoreFormatError,
    UnsupportedFeatureError,
)
from composefs_async.exchange.condemned import Condemned, Description
from composefs_async.exchange.documents import (
    PACK_TYPE,
    TABLE_TYPE,
    Config,
    Descriptor,
    build_manifest,
    canonical,
    digest_of,
    encode_deleted_ref,
    encode_ref,
    name_of_ref,
    parse_config,
    parse_manifest,
    parse_ref,
    ref_key,
)

ROOT = "oci-manifest-sha256:" + "a" * 64
STREAM, IMAGE = ObjectId(b"\1" * 32), ObjectId(b"\2" * 32)
CONFIG = Config("image", Algorithm.SHA256, 3, 117, ROOT, {ROOT: STREAM}, {IMAGE.hex(): 40})
TABLE = Descriptor(TABLE_TYPE, "sha256:" + "1" * 64, 200)
PACKS = [Descriptor(PACK_TYPE, "sha256:" + "2" * 64, 60), Descriptor(PACK_TYPE, "sha256:" + "3" * 64, 7)]
MANIFEST = build_manifest(CONFIG, TABLE, PACKS, annotations={"a": "é"})


def test_manifest_and_config_have_these_bytes() -> None:
    config = (
        '{"algorithm":"fsverity-sha256-12","kind":"image","names":{"images":{"' + IMAGE.hex() + '":{"size":40}},'
        '"streams":{"' + ROOT + '":"' + STREAM.hex() + '"}},"objects":3,"root":"' + ROOT + '","size":117,"version":1}'
    ).encode()
    assert CONFIG.encode() == config
    data = base64.b64encode(config).decode()
    layers = [("table.v1+zstd", "1", 200), ("pack.v1", "2", 60), ("pack.v1", "3", 7)]
    assert MANIFEST.raw.decode() == (
        '{"annotations":{"a":"é"},"artifactType":"application/vnd.composefs-async.image.v1","config":{"data":"'
        + data
        + '","digest":"'
        + digest_of(config)
        + f'","mediaType":"application/vnd.composefs-async.config.v1+json","size":{len(config)}}},"layers":['
        + ",".join(
            '{"digest":"sha256:'
            + digit * 64
            + '","mediaType":"application/vnd.composefs-async.'
            + kind
            + f'","size":{size}}}'
            for kind, digit, size in layers
        )
        + '],"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
    )
    assert parse_manifest(MANIFEST.raw, MANIFEST.digest) == MANIFEST
    assert parse_config(config, digest_of(config)) == CONFIG


def test_a_large_manifest_does_not_stand_in_the_reference() -> None:
    many = [Descriptor(PACK_TYPE, f"sha256:{at:064x}", 1) for at in range(800)]
    manifest = build_manifest(CONFIG, TABLE, many)
    assert parse_ref(encode_ref("n", manifest), "n").manifest is None
    assert parse_ref(encode_ref("n", MANIFEST), "n").manifest == MANIFEST.raw


def test_references_come_back() -> None:
    raw = encode_ref("a/b", MANIFEST, previous="sha256:" + "9" * 64, created="2026-01-01T00:00:00Z", write_id="w")
    ref = parse_ref(raw, "a/b")
    assert (ref.digest, ref.size, ref.write_id) == (MANIFEST.digest, len(MANIFEST.raw), "w")
    assert (ref.previous, ref.created, ref.deleted) == ("sha256:" + "9" * 64, "2026-01-01T00:00:00Z", False)
    assert parse_ref(encode_deleted_ref("w"), "a").deleted


@pytest.mark.parametrize(
    ("name", "key"), [("fedora/42", "refs/fedora%2F42"), ("a%b", "refs/a%25b"), ("x:1", "refs/x:1"), ("é", "refs/é")]
)
def test_names_are_encoded_as_tags_are(name: str, key: str) -> None:
    assert ref_key(name) == key
    assert name_of_ref(key) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a\nb", "a\x7f", "\0", "x" * 201, "/" * 67, "\udc80"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        ref_key(name)


def manifest_with(**changes: Any) -> bytes:
    return canonical({**json.loads(MANIFEST.raw), **changes})


LAYERS = json.loads(MANIFEST.raw)["layers"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"a":1,"a":2}',
        manifest_with(artifactType="application/vnd.oci.image.config.v1+json"),
        manifest_with(schemaVersion=1),
        manifest_with(layers=[]),
        manifest_with(layers="x"),
        manifest_with(layers=[LAYERS[1]]),
        manifest_with(layers=[*LAYERS, LAYERS[1]]),
        manifest_with(layers=[LAYERS[0], {**LAYERS[1], "size": -1}]),
        manifest_with(layers=[LAYERS[0], {**LAYERS[1], "size": True}]),
        manifest_with(layers=[LAYERS[0], {**LAYERS[1], "size": 1 << 70}]),
        manifest_with(layers=[LAYERS[0], {**LAYERS[1], "digest": "sha256:" + "A" * 64}]),
        manifest_with(layers=[LAYERS[0], {**LAYERS[1], "digest": "sha512:" + "a" * 128}]),
        manifest_with(config=None),
        manifest_with(config=LAYERS[0]),
        manifest_with(annotations=[]),
        b"[" * 100_000,
    ],
)
def test_manifests_that_break_a_rule_are_refused(raw: bytes) -> None:
    with pytest.raises(StoreFormatError):
        parse_manifest(raw, digest_of(raw))


def test_embedded_data_is_compared_with_its_digest() -> None:
    config = json.loads(MANIFEST.raw)["config"]
    raw = manifest_with(config={**config, "data": base64.b64encode(b"{}").decode()})
    with pytest.raises(DigestMismatchError):
        parse_manifest(raw, digest_of(raw))


def config_with(**changes: Any) -> bytes:
    return canonical({**json.loads(CONFIG.encode()), **changes})


@pytest.mark.parametrize(
    "raw",
    [
        config_with(version=2),
        config_with(kind="index"),
        config_with(algorithm="fsverity-sha512-12"),
        config_with(algorithm="md5"),
        config_with(root="oci-manifest-sha256:" + "b" * 64),
        config_with(root=5),
        config_with(objects=-1),
        config_with(names=None),
        config_with(names={"streams": {ROOT: "xyz"}, "images": {}}),
        config_with(names={"streams": {ROOT: STREAM.hex().upper()}, "images": {"ab": {"size": 1}}}),
        config_with(names={"streams": [], "images": {}}),
    ],
)
def test_configs_that_break_a_rule_are_refused(raw: bytes) -> None:
    with pytest.raises(StoreFormatError):
        parse_config(raw, digest_of(raw))


def test_descriptions_come_back_and_unknown_features_are_refused() -> None:
    made = Description.new(Algorithm.SHA512, 60)
    found = Description.parse(made.encode(), "url")
    assert (found.id, found.algorithm, found.grace, found.cas) == (made.id, Algorithm.SHA512, 60, "conditional")
    with pytest.raises(ValueError, match="less than 60"):
        Description.new(Algorithm.SHA512, 59)
    with pytest.raises(UnsupportedFeatureError):
        Description.parse(replace(made, features={"incompatible": ("x",)}).encode(), "url")


@pytest.mark.parametrize("change", [{"version": 2}, {"grace": 1}, {"grace": None}, {"cas": "x"}, {"algorithm": "x"}])
def test_descriptions_that_break_a_rule_are_refused(change: dict[str, object]) -> None:
    raw = canonical({**json.loads(Description.new(Algorithm.SHA512).encode()), **change})
    with pytest.raises(StoreFormatError):
        Description.parse(raw, "url")


def test_the_list_of_the_condemned_comes_back() -> None:
    listed = Condemned("me", {"a" * 64: None, "b" * 64: 1_700_000_000.25})
    assert Condemned.parse(listed.encode(), "url") == listed
    assert listed.encode() == (
        b'{"blobs":{"'
        + b"a" * 64
        + b'":null,"'
        + b"b" * 64
        + b'":"2023-11-14T22:13:20.250000Z"},"owner":"me","version":1}'
    )
    assert Condemned.parse(None, "url") == Condemned()
    assert "sha256:" + "a" * 64 in listed


@pytest.mark.parametrize(
    "values",
    [
        {"version": 2},
        {"owner": 5},
        {"blobs": []},
        {"blobs": {"x": None}},
        {"blobs": {"a" * 64: 5}},
        {"blobs": {"a" * 64: "never"}},
    ],
)
def test_lists_that_break_a_rule_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(StoreFormatError):
        Condemned.parse(canonical({"version": 1, "owner": None, "blobs": {}, **values}), "url")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_one_of_our_errors(data: st.DataObject) -> None:
    originals = [MANIFEST.raw, CONFIG.encode(), encode_ref("n", MANIFEST), Condemned("o", {"a" * 64: None}).encode()]
    raw = bytearray(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(raw)
    for parse in (
        lambda: parse_manifest(content, digest_of(content)),
        lambda: parse_config(content, digest_of(content)),
        lambda: parse_ref(content, "n"),
        lambda: Condemned.parse(content, "url"),
        lambda: Description.parse(content, "url"),
    ):
        with contextlib.suppress(StoreFormatError, DigestMismatchError, UnsupportedFeatureError):
            parse()
