"""Parsing of untrusted OCI documents."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async.errors import ComposefsError, DigestMismatchError, OciError
from composefs_async.oci.documents import (
    INDEX_TYPES,
    Descriptor,
    ImageConfig,
    ImageLayer,
    content_hasher,
    image_layers,
    layer_compression,
    parse_config,
    parse_index,
    parse_manifest,
    verify_content,
)
from composefs_async.oci.platforms import Platform

VECTORS = Path(__file__).parent.parent / "vectors" / "layouts"
DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
DOCKER_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def descriptor(media_type: str = GZIP, **members: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 7} | members


def manifest(**members: Any) -> bytes:
    document = {"schemaVersion": 2, "config": descriptor(CONFIG_TYPE), "layers": [descriptor()]} | members
    return json.dumps(document).encode()


def index(**members: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": [descriptor(MANIFEST_TYPE)]} | members).encode()


def config(**members: Any) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [OTHER]}
    return json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs} | members).encode()


# -- what they hold ----------------------------------------------------------------------------


def test_manifest_has_all_its_values() -> None:
    raw = manifest(
        mediaType=MANIFEST_TYPE,
        artifactType="application/x",
        annotations={"a": "b"},
        subject=descriptor(MANIFEST_TYPE, digest=OTHER),
        layers=[descriptor(urls=["https://example.com/x"], annotations={"c": "d"}), descriptor(artifactType="y")],
    )
    found = parse_manifest(raw, DIGEST, media_type=MANIFEST_TYPE)
    assert (found.raw, found.digest, found.media_type, found.is_container) == (raw, DIGEST, MANIFEST_TYPE, True)
    assert found.config == Descriptor(CONFIG_TYPE, DIGEST, 7)
    assert found.layers == (
        Descriptor(GZIP, DIGEST, 7, {"c": "d"}, urls=("https://example.com/x",)),
        Descriptor(GZIP, DIGEST, 7, artifact_type="y"),
    )
    assert (found.artifact_type, found.annotations) == ("application/x", {"a": "b"})
    assert found.subject == Descriptor(MANIFEST_TYPE, OTHER, 7)


def test_index_has_platforms_and_tags() -> None:
    platform = {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1"}
    entry = descriptor(MANIFEST_TYPE, platform=platform, annotations={"org.opencontainers.image.ref.name": "t"})
    found = parse_index(index(manifests=[entry, descriptor("x")], annotations={"a": "b"}), "index.json")
    assert [(inner.platform, inner.tag) for inner in found.manifests] == [
        (Platform("linux", "arm", "v7"), "t"),
        (None, None),
    ]
    assert (found.name, found.annotations) == ("index.json", {"a": "b"})


def test_config_has_all_its_values() -> None:
    raw = config(created="2023-11-14T22:13:20Z", variant="v8", config={"Labels": {"a": "b"}, "Env": ["X=1"]})
    assert parse_config(raw, DIGEST) == ImageConfig(
        raw, DIGEST, Platform("linux", "amd64", "v8"), (OTHER,), "2023-11-14T22:13:20Z", {"a": "b"}
    )


def test_null_counts_as_absent_and_in_a_list_as_empty() -> None:
    assert parse_manifest(manifest(layers=None, annotations=None, subject=None), DIGEST).layers == ()
    assert parse_index(index(manifests=None), "x").manifests == ()
    found = parse_config(config(rootfs={"type": "layers", "diff_ids": None}, config=None, created=None), DIGEST)
    assert (found.diff_ids, found.labels, found.created) == ((), {}, None)


def test_null_in_a_map_counts_as_absent() -> None:
    found = parse_config(config(config={"Labels": {"a": None, "b": "x"}}), DIGEST)
    assert found.labels == {"b": "x"}
    texts = {"a": None, "b": "x"}
    entry = descriptor("x", annotations=texts, platform=None, urls=None, artifactType=None)
    for parsed in (
        parse_manifest(manifest(annotations=texts, config=descriptor("x", annotations=texts)), DIGEST),
        parse_index(index(annotations=texts), "x"),
        parse_index(index(manifests=[entry]), "x").manifests[0],
    ):
        assert parsed.annotations == {"b": "x"}


@pytest.mark.parametrize("media_type", [None, *sorted(INDEX_TYPES)])
def test_index_need_not_say_its_version(media_type: str | None) -> None:
    entries = [descriptor("x")]
    for stated in (media_type, None):
        raw = index(schemaVersion=None, mediaType=stated, manifests=entries)
        assert [entry.size for entry in parse_index(raw, "x", media_type=media_type).manifests] == [7]


def test_empty_strings_count_as_absent() -> None:
    found = parse_manifest(manifest(mediaType="", artifactType=""), DIGEST)
    assert (found.media_type, found.artifact_type) == (MANIFEST_TYPE, None)
    entry = descriptor("x", artifactType="", platform={"os": "linux", "architecture": "arm", "variant": ""})
    assert parse_index(index(mediaType="", manifests=[entry]), "x").manifests == (
        Descriptor("x", DIGEST, 7, platform=Platform("linux", "arm")),
    )


def test_platform_without_system_or_architecture_is_none() -> None:
    assert parse_config(config(architecture=""), DIGEST).platform is None
    assert parse_config(config(os=""), DIGEST).platform is None
    assert parse_index(index(manifests=[descriptor("x", platform={"os": "linux"})]), "x").manifests[0].platform is None


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        ("application/vnd.oci.image.layer.v1.tar", "none"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "gzip"),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "zstd"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", "none"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "gzip"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "zstd"),
        ("application/vnd.docker.image.rootfs.diff.tar", "none"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "zstd"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "gzip"),
        ("application/vnd.oci.image.layer.v1.tar+xz", None),
        ("application/vnd.tar-diff", None),
        ("", None),
    ],
)
def test_layer_media_types(media_type: str, compression: str | None) -> None:
    assert layer_compression(media_type) == compression


@pytest.mark.parametrize(
    ("media_type", "is_container"),
    [
        (CONFIG_TYPE, True),
        ("application/vnd.docker.container.image.v1+json", True),
        ("application/vnd.oci.empty.v1+json", False),
        ("application/vnd.cncf.helm.config.v1+json", False),
    ],
)
def test_config_type_tells_images_from_artifacts(media_type: str, is_container: bool) -> None:
    assert parse_manifest(manifest(config=descriptor(media_type)), DIGEST).is_container is is_container


@pytest.mark.parametrize("case", sorted(path.name for path in VECTORS.iterdir() if path.is_dir()))
def test_real_documents_are_understood(case: str) -> None:
    def blob(digest: str) -> bytes:
        return (VECTORS / case / "blobs" / digest.replace(":", "/")).read_bytes()

    pending = list(parse_index((VECTORS / case / "index.json").read_bytes(), case).manifests)
    manifests = 0
    while pending:
        entry = pending.pop()
        raw = blob(entry.digest)
        verify_content(case, raw, entry.digest)
        if entry.media_type == INDEX_TYPE:
            pending += parse_index(raw, entry.digest, media_type=entry.media_type).manifests
            continue
        manifests += 1
        found = parse_manifest(raw, entry.digest, media_type=entry.media_type)
        content = blob(found.config.digest)
        parsed = parse_config(content, found.config.digest) if found.is_container else None
        layers = image_layers(found, parsed)
        assert [layer.descriptor for layer in layers] == list(found.layers)
        assert [len(blob(layer.descriptor.digest)) for layer in layers] == [layer.size for layer in found.layers]
        assert (parsed is None) == (case == "artifact")
    assert manifests == {"index": 3, "tail": 2}.get(case, 1)


# -- layers ------------------------------------------------------------------------------------


def test_layers_of_an_image_go_by_diff_id() -> None:
    layers = image_layers(parse_manifest(manifest(), DIGEST), parse_config(config(), DIGEST))
    assert layers == (ImageLayer(OTHER, Descriptor(GZIP, DIGEST, 7), "gzip"),)


def test_layers_of_an_artifact_go_by_their_digest() -> None:
    raw = manifest(config=descriptor("x"), layers=[descriptor("text/plain"), descriptor(digest=OTHER)])
    assert image_layers(parse_manifest(raw, DIGEST), None) == (
        ImageLayer(DIGEST, Descriptor("text/plain", DIGEST, 7), None),
        ImageLayer(OTHER, Descriptor(GZIP, OTHER, 7), "gzip"),
    )


@pytest.mark.parametrize("layers", [[], [descriptor(), descriptor()]])
def test_manifest_and_config_that_disagree_are_refused(layers: list[dict[str, Any]]) -> None:
    found = parse_manifest(manifest(layers=layers), DIGEST)
    with pytest.raises(OciError, match=f"manifest {DIGEST}: it has {len(layers)} layers, but its config {OTHER} has 1"):
        image_layers(found, parse_config(config(), OTHER))


def test_layer_of_an_image_that_is_no_tar_is_refused() -> None:
    found = parse_manifest(manifest(layers=[descriptor("text/plain")]), DIGEST)
    with pytest.raises(OciError, match=f"manifest {DIGEST}: layer {DIGEST} is no tar: 'text/plain'"):
        image_layers(found, parse_config(config(), DIGEST))


# -- what is refused ---------------------------------------------------------------------------


BAD_JSON = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"[]", "it is a list where an object belongs"),
    (b"null", "it is null where an object belongs"),
    (b"1.5", "it is a number where an object belongs"),
    (b"true", "it is a boolean where an object belongs"),
    (b'{"a": NaN}', "NaN is not JSON"),
    (b'{"a": -Infinity}', "-Infinity is not JSON"),
    (b'{"a": 1, "b": {"c": 1, "c": 1}}', "key 'c' occurs twice"),
    (b'{"' + b"k" * 500 + b'": 1, "' + b"k" * 500 + b'": 1}', "key 'k{160}…' occurs twice"),
    (b'{"a": "\xff"}', "it is not UTF-8 at byte 7"),
    ('{"a": 1}'.encode("utf-16"), "it is not UTF-8 at byte 0"),
    (b"\xef\xbb\xbf{}", "not valid JSON"),
    (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "it is nested too deeply"),
    (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
    (b" " * ((4 << 20) + 1), "it has 4194305 bytes, more than the limit of 4194304"),
]
PARSERS: list[Callable[[bytes], object]] = [
    lambda raw: parse_index(raw, "index.json"),
    lambda raw: parse_manifest(raw, DIGEST),
    lambda raw: parse_config(raw, DIGEST),
]


@pytest.mark.parametrize(("raw", "reason"), BAD_JSON, ids=[reason[:24] for _, reason in BAD_JSON])
@pytest.mark.parametrize("parse", PARSERS, ids=["index", "manifest", "config"])
def test_malformed_json_is_refused(parse: Callable[[bytes], object], raw: bytes, reason: str) -> None:
    with pytest.raises(OciError, match=reason) as caught:
        parse(raw)
    assert caught.value.what in ("index.json", f"manifest {DIGEST}", f"config {DIGEST}")
    assert len(str(caught.value)) < 1000


def test_limit_on_the_size_can_be_moved() -> None:
    raw = manifest()
    assert parse_manifest(raw, DIGEST, limit=len(raw)).raw == raw
    with pytest.raises(OciError, match="more than the limit"):
        parse_manifest(raw, DIGEST, limit=len(raw) - 1)


BAD_MANIFESTS: list[tuple[dict[str, Any], str]] = [
    ({"schemaVersion": 1}, "schemaVersion is 1, only 2 is supported"),
    ({"schemaVersion": None}, "schemaVersion is None"),
    ({"schemaVersion": "2"}, "'schemaVersion' is a string where an integer belongs"),
    ({"schemaVersion": True}, "'schemaVersion' is a boolean where an integer belongs"),
    ({"mediaType": INDEX_TYPE}, "its media type '.*index.*' is none of"),
    ({"manifests": []}, "it has 'manifests', so that it is two kinds of document at once"),
    ({"config": None}, "it has no config"),
    ({"config": []}, "'config' is a list where an object belongs"),
    ({"layers": {}}, "'layers' is an object where a list belongs"),
    ({"layers": [1]}, "an element of 'layers' is an integer where an object belongs"),
    ({"layers": [None]}, "an element of 'layers' is null where an object belongs"),
    ({"layers": [{}]}, "a descriptor lacks mediaType, digest or size"),
    ({"layers": [descriptor("")]}, "a descriptor lacks mediaType, digest or size"),
    ({"layers": [descriptor(size=-1)]}, "the size of .* is -1"),
    ({"layers": [descriptor(size=1 << 63)]}, "the size of .* is 9223372036854775808"),
    ({"layers": [descriptor(size=1.0)]}, "'size' is a number where an integer belongs"),
    ({"layers": [descriptor(size=True)]}, "'size' is a boolean where an integer belongs"),
    ({"layers": [descriptor(digest="sha256:../../etc/passwd")]}, "not a content digest"),
    ({"layers": [descriptor(digest=DIGEST.upper())]}, "not a content digest"),
    ({"layers": [descriptor(digest="x:" + "a" * 1000)]}, "not a content digest"),
    ({"layers": [descriptor(digest="md5:" + "ab" * 16)]}, "cannot be verified: only sha256, sha384 and sha512 can"),
    ({"config": descriptor(digest="blake3:" + "ab" * 32)}, "cannot be verified"),
    ({"annotations": {"a": 1}}, "a member of 'annotations' is an integer where a string belongs"),
    ({"annotations": {"a": "\ud800"}}, "half a surrogate pair"),
    ({"annotations": {"\ud800": "a"}}, "half a surrogate pair"),
    ({"layers": [descriptor(urls=["a", 1])]}, "an element of 'urls' is an integer where a string belongs"),
]


@pytest.mark.parametrize(("members", "reason"), BAD_MANIFESTS)
def test_bad_manifest_is_refused(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(OciError, match=reason) as caught:
        parse_manifest(manifest(**members), DIGEST)
    assert caught.value.what == f"manifest {DIGEST}"


def test_document_without_what_makes_it_one_is_refused() -> None:
    raw = json.dumps({"schemaVersion": 2, "config": descriptor(CONFIG_TYPE)}).encode()
    with pytest.raises(OciError, match="it has no layers"):
        parse_manifest(raw, DIGEST)
    with pytest.raises(OciError, match="it has no manifests"):
        parse_index(b'{"schemaVersion": 2}', "x")


def test_document_that_contradicts_its_descriptor_is_refused() -> None:
    with pytest.raises(OciError, match=f"it calls itself {MANIFEST_TYPE.replace('+', '.')}, its descriptor says"):
        parse_manifest(manifest(mediaType=MANIFEST_TYPE), DIGEST, media_type=DOCKER_TYPE)
    assert parse_manifest(manifest(), DIGEST, media_type=DOCKER_TYPE).media_type == DOCKER_TYPE
    assert parse_manifest(manifest(mediaType=DOCKER_TYPE), DIGEST).media_type == DOCKER_TYPE


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"config": descriptor()}, "it has 'config', so that it is two kinds"),
        ({"layers": []}, "it has 'layers', so that it is two kinds"),
        ({"mediaType": MANIFEST_TYPE}, "is none of"),
        ({"manifests": [descriptor(digest="nonsense")]}, "not a content digest"),
    ],
)
def test_bad_index_is_refused(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(OciError, match=reason):
        parse_index(index(**members), "index.json")


def test_index_may_list_digests_that_cannot_be_verified() -> None:
    found = parse_index(index(manifests=[descriptor("x", digest="blake3:abc")]), "index.json")
    assert found.manifests[0].digest == "blake3:abc"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"rootfs": None}, "it has no rootfs of layers"),
        ({"rootfs": {"type": "snapshots", "diff_ids": []}}, "it has no rootfs of layers"),
        ({"rootfs": {"type": "layers", "diff_ids": ["x"]}}, "not a content digest"),
        ({"rootfs": {"type": "layers", "diff_ids": ["sha1:ab"]}}, "cannot be verified"),
        ({"rootfs": {"type": "layers", "diff_ids": [None]}}, "an element of 'diff_ids' is null"),
        ({"config": {"Labels": []}}, "'Labels' is a list"),
        ({"os": 1}, "'os' is an integer"),
    ],
)
def test_bad_config_is_refused(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(OciError, match=reason):
        parse_config(config(**members), DIGEST)


def test_any_damage_to_a_document_is_a_typed_error() -> None:
    raw = manifest(annotations={"ä": "b"}, subject=descriptor())
    for position in range(len(raw)):
        for damaged in (
            raw[:position],
            raw[:position] + b"\x80" + raw[position + 1 :],
            raw[:position] + raw[position + 1 :],
        ):
            with contextlib.suppress(ComposefsError):  # pytest shows any other
                parse_manifest(damaged, DIGEST)
                assert damaged != raw[:position], "cut short, it cannot be whole"


# -- digests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_content_is_verified_with_the_algorithm_of_its_digest(algorithm: str) -> None:
    digest = f"{algorithm}:{hashlib.new(algorithm, b'content').hexdigest()}"
    verify_content("x", b"content", digest)
    with pytest.raises(DigestMismatchError) as caught:
        verify_content("x", b"Content", digest)
    assert (caught.value.what, caught.value.expected) == ("x", digest)
    assert caught.value.found == f"{algorithm}:{hashlib.new(algorithm, b'Content').hexdigest()}"


@pytest.mark.parametrize("digest", ["md5:" + "ab" * 16, "sha256:ab", "nonsense", "shake_128:ab"])
def test_other_digests_cannot_be_verified(digest: str) -> None:
    with pytest.raises(OciError):
        content_hasher("x", digest)
