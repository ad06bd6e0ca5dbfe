from __future__ import annotations

import hashlib

import pytest

from composefs_async._repo.metadata import ErofsFormats, Metadata
from composefs_async.digest import Algorithm
from composefs_async.errors import AlgorithmMismatchError, MetadataError, UnsupportedFeatureError

# Size and sha256 of the files that composefs-rs 0.9.0 writes; None is what it wrote before 2026-07.
WRITTEN = [
    ("sha512", None, (), 154, "30890e2f80f70aeb519d90ac5a2ce282816277f4431a81b62db16a03b7e31d26"),
    ("sha256", None, (), 154, "ef0391764bc35c088c23b9503cc86ac0b2bab3d5c8a0eb34e36b7c19dd105398"),
    ("sha512", 1, (), 219, "412fb0551a52276280623a1775f3108a6fe434caaa9bd0bc0d80e69cf7a173c1"),
    ("sha512", 2, (), 197, "e4af7edd1005b202a219c3fe9d0810ea8e61712e45d60f7e5ef7d758831c37ce"),
    ("sha512", 0, (), 197, "fb12a486c3e9b4ef884c85dc4a5cdc951539ac4cc34511c4a54b9fad14dd0402"),
    ("sha512", 1, (2,), 249, "0707445d1e5e819ad374ac01c7cdecb8bb4a4b6f5ce0aac2eee042ba5138a46d"),
    ("sha512", 2, (1,), 227, "5f211bfb41faa7fa3ef090b0ef7c199bf79e39fdd2b147e2bcd84606e2aa2db9"),
    ("sha512", 1, (2, 0), 258, "17425ad2658afd4791b315225e88b9ece06ad0d2dc5d5963b8b85695acf2d6a0"),
    ("sha256", 1, (), 219, "ce490cd54dea426ea1f0bf50bd761abc89a6377adf85b6966472041836fcfe50"),
    ("sha256", 2, (), 197, "848e8cb17d08757475d959a2084730fd45506d0879a61c3b9106002495e6f1db"),
    ("sha256", 0, (), 197, "040ff7691639402e079824c4da7efaa71f6544d95e89c5aba7528493627b445e"),
    ("sha256", 1, (2,), 249, "163a19f1954bc5d95cabf526767625a14e59ee5e3c2d05173449573410750def"),
    ("sha256", 2, (1,), 227, "a26fb69939f1423092eba18758c90fc8805fcfb54890ac2f80498498659549cb"),
    ("sha256", 1, (0, 2), 258, "f0b8c4d527b5ff9e5e48ab270799732d5ce820a51c9dd3f62b2f32fcf1dd633a"),
]


@pytest.mark.parametrize(("algorithm", "default", "extra", "size", "digest"), WRITTEN)
def test_a_new_file_has_the_bytes_of_composefs_rs(
    algorithm: str, default: int | None, extra: tuple[int, ...], size: int, digest: str
) -> None:
    formats = None if default is None else ErofsFormats(default, extra)
    metadata = Metadata.new(Algorithm(algorithm), formats)
    content = metadata.encode()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)
    assert Metadata.decode(content, "x") == metadata


def document(extra: str = "", version: str = "1", algorithm: str = '"fsverity-sha256-12"') -> bytes:
    return f'{{"version": {version}, "algorithm": {algorithm}{extra}}}'.encode()


@pytest.mark.parametrize(
    ("content", "formats"),
    [
        (document(), [2]),
        (document(', "features": {"read-only-compatible": ["v1_erofs"]}'), [1]),
        (document(', "features": {"read-only-compatible": ["v1_erofs"]}, "erofs_formats": {"default": 2}'), [1]),
        (document(', "features":{"read-only-compatible":["v1_erofs"]},"erofs_formats":{"default":2,"extra":[2]}'), [2]),
        (document(', "erofs_formats": {"default": 1, "extra": [1, 2, 2]}'), [1, 2]),
        (document(', "erofs_formats": {"default": 2, "extra": [1, 0]}'), [2, 0, 1]),
        (document(', "erofs_formats": [1]'), [1]),
        (document(', "erofs_formats": {"default": 0, "new": {}}, "unknown": [[]], "features": []'), [0]),
        (b"  " + document() + b" \n\n", [2]),
    ],
)
def test_the_effective_formats_follow_from_what_is_stored(content: bytes, formats: list[int]) -> None:
    assert list(Metadata.decode(content, "x").formats) == formats


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"nonsense",
        b"\xff\xfe",
        b"\xef\xbb\xbf" + document(),
        document() + b"x",
        document(version="1.0"),
        document(version='"1"'),
        document(version="-1"),
        document(version="true"),
        document(version="4294967296"),
        document(version="NaN"),
        document(', "unknown": NaN'),
        document(', "unknown": -Infinity'),
        document(', "version": 1'),
        document(algorithm="12"),
        document(algorithm='"fsverity-md5-12"'),
        document(algorithm='"fsverity-SHA256-12"'),
        document(algorithm='"fsverity-sha256-16"'),
        document(', "features": null'),
        document(', "features": {"compatible": "x"}'),
        document(', "features": {"compatible": [1]}'),
        document(', "features": {"compatible": {}}'),
        document(', "features": [[], [], [], []]'),
        b'[1, "fsverity-sha256-12", [], {"default": 1}, 1]',
        document(', "features": {"compatible": [], "compatible": []}'),
        document(', "erofs_formats": {}'),
        document(', "erofs_formats": null'),
        document(', "erofs_formats": {"default": 3}'),
        document(', "erofs_formats": {"default": "1"}'),
        document(', "erofs_formats": {"default": 1.0}'),
        document(', "erofs_formats": {"default": true}'),
        document(', "erofs_formats": {"default": 1, "extra": [3]}'),
        document(', "erofs_formats": {"default": 1, "extra": {}}'),
        document(', "erofs_formats": {"default": 1, "extra": 1}'),
        b'{"version": 1}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_metadata_is_refused_with_the_path(content: bytes) -> None:
    with pytest.raises(MetadataError, match=r"^/r/meta\.json: not a valid meta\.json"):
        Metadata.decode(content, "/r/meta.json")


@pytest.mark.parametrize(("default", "extra"), [(3, ()), (-1, ()), (1, (2, 3))])
def test_there_are_no_other_layouts(default: int, extra: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="EROFS versions are 0, 1 and 2"):
        ErofsFormats(default, extra)


def test_a_newer_format_is_refused_before_anything_else() -> None:
    metadata = Metadata.decode(document(', "features": {"incompatible": ["x"]}', version="2"), "m")
    with pytest.raises(MetadataError, match="unsupported repository format version 2"):
        metadata.check("/r", Algorithm.SHA512)


def test_another_algorithm_is_refused_before_features() -> None:
    metadata = Metadata.decode(document(', "features": {"incompatible": ["x"]}'), "m")
    with pytest.raises(AlgorithmMismatchError):
        metadata.check("/r", Algorithm.SHA512)


def test_incompatible_features_are_named() -> None:
    metadata = Metadata.decode(document(', "features": {"incompatible": ["new", "newer"]}', version="0"), "m")
    with pytest.raises(UnsupportedFeatureError, match="new, newer") as caught:
        metadata.check("/r", Algorithm.SHA256)
    assert caught.value.features == ("new", "newer")


def test_only_unknown_read_only_features_forbid_writing() -> None:
    metadata = Metadata.decode(
        document(', "features": {"compatible": ["a"], "read-only-compatible": ["v1_erofs", "b"]}'), "m"
    )
    metadata.check("/r", None)
    assert metadata.unknown_read_only == ("b",)
