"""Names that OCI content has in a repository."""

from __future__ import annotations

import pytest

from composefs_async import naming
from composefs_async.errors import FormatError, InvalidNameError, OciError
from composefs_async.naming import LayoutReference, parse_layout_reference

DIGEST = "sha256:" + "ab" * 32

TAGS = [
    ("myimage:latest", "myimage:latest"),
    ("docker://quay.io/fedora/fedora:latest", "docker:%2F%2Fquay.io%2Ffedora%2Ffedora:latest"),
    ("a%2Fb", "a%252Fb"),
    ("a/b%25", "a%2Fb%2525"),
    ("100%", "100%25"),
    ("oci:/tmp/x y:tag", "oci:%2Ftmp%2Fx y:tag"),
    ("back\\slash\nnewline", "back\\slash\nnewline"),
    (".hidden", ".hidden"),
    ("naïve", "naïve"),
]


@pytest.mark.parametrize(("tag", "encoded"), TAGS)
def test_tag_is_encoded_and_decoded(tag: str, encoded: str) -> None:
    assert naming.encode_tag(tag) == encoded
    assert naming.decode_tag(encoded) == tag
    assert naming.tag_reference(tag) == f"oci/{encoded}"


@pytest.mark.parametrize("name", ["a%2fb", "x%", "x%4", "%zz", "%2"])
def test_escape_that_is_never_written_is_kept_when_decoding(name: str) -> None:
    assert naming.decode_tag(name) == name


def test_decoding_is_one_pass() -> None:
    assert naming.decode_tag("%252F") == "%2F"


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("", "it is empty"),
        ("@x", "a leading '@' is reserved for digests"),
        (".", "'.' is not a name"),
        ("..", "'..' is not a name"),
        ("a\0b", "it contains NUL"),
        ("x" * 256, "its file name has 256 bytes, more than 255"),
        ("/" * 86, "its file name has 258 bytes, more than 255"),
        ("é" * 128, "its file name has 256 bytes, more than 255"),
        ("\udcff", "it is not valid UTF-8"),
    ],
)
def test_bad_tag_is_refused(tag: str, reason: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        naming.tag_reference(tag)
    assert (caught.value.name, caught.value.reason) == (tag, reason)


@pytest.mark.parametrize("tag", ["x" * 255, "/" * 85, "a@b", "...", "../..", "/", DIGEST])
def test_unusual_tag_is_accepted(tag: str) -> None:
    assert naming.check_tag(tag) == tag
    assert naming.tag_reference(tag).count("/") == 1


def test_stream_names() -> None:
    assert [
        naming.layer_stream(DIGEST),
        naming.config_stream(DIGEST),
        naming.manifest_stream(DIGEST),
        naming.blob_stream(DIGEST),
    ] == [f"oci-layer-{DIGEST}", f"oci-config-{DIGEST}", f"oci-manifest-{DIGEST}", f"oci-blob-{DIGEST}"]


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../x", "sha256:ab", "../x:ab", DIGEST.upper(), "x:a/b"])
def test_stream_name_of_malformed_digest_is_refused(digest: str) -> None:
    with pytest.raises(FormatError):
        naming.layer_stream(digest)
    with pytest.raises(FormatError):
        naming.config_ref(digest)


def test_stream_name_that_is_too_long_is_refused() -> None:
    assert naming.layer_stream("x:" + "a" * 243) == "oci-layer-x:" + "a" * 243
    with pytest.raises(InvalidNameError):
        naming.layer_stream("x:" + "a" * 244)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        (f"oci-manifest-{DIGEST}", DIGEST),
        (f"oci-config-{DIGEST}", None),
        ("oci-manifest-sha256:12", None),
        ("oci-manifest-", None),
        (f"xoci-manifest-{DIGEST}", None),
    ],
)
def test_digest_is_read_from_the_name_of_a_manifest_stream(name: str, digest: str | None) -> None:
    assert naming.digest_of_manifest_stream(name) == digest


def test_named_references() -> None:
    assert naming.config_ref(DIGEST) == f"config:{DIGEST}"
    assert [naming.image_ref(version) for version in (0, 1, 2)] == [
        "composefs.image.v1",
        "composefs.image.v1",
        "composefs.image",
    ]
    made = {naming.image_ref(version) for version in (0, 1, 2)} | {
        naming.boot_image_ref(version, keep_user_xattrs=keep) for version in (0, 1, 2) for keep in (False, True)
    }
    assert made == naming.IMAGE_REFS
    assert naming.boot_image_ref(1, keep_user_xattrs=True) == "composefs.image.boot.v1.xattrs=keep-user-xattrs"


def test_referrer_is_a_reference_of_two_digests() -> None:
    other = "sha256:" + "cd" * 32
    assert naming.referrer_reference(DIGEST, other) == f"oci-referrers/{DIGEST}/{other}"
    with pytest.raises(FormatError):
        naming.referrer_reference("..", other)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("oci:dir", LayoutReference("dir")),
        ("oci:/a/b", LayoutReference("/a/b")),
        ("oci:/a/b:latest", LayoutReference("/a/b", "latest")),
        ("oci:/a:b/c", LayoutReference("/a:b/c")),
        ("oci:/a:b/c:d", LayoutReference("/a:b/c", "d")),
        ("oci:a:b/", LayoutReference("a:b/")),
        ("oci:a b:c@d", LayoutReference("a b", "c@d")),
        ("oci:/x@y:tag", LayoutReference("/x@y", "tag")),
        (f"oci:/a@{DIGEST}", LayoutReference("/a", None, DIGEST)),
        (f"oci:a:b/@{DIGEST}", LayoutReference("a:b/", None, DIGEST)),
        (f"oci:/a@b@{DIGEST}", LayoutReference("/a@b", None, DIGEST)),
        ("oci:/a:@0", LayoutReference("/a", position=0)),
        ("oci:a:b:@17", LayoutReference("a:b", position=17)),
    ],
)
def test_layout_reference_is_parsed_and_spelled(text: str, reference: LayoutReference) -> None:
    assert parse_layout_reference(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dir", "not a reference to an image directory"),
        ("docker://x", "not a reference to an image directory"),
        ("oci:", "the directory is missing"),
        ("oci::tag", "the directory is missing"),
        (f"oci:@{DIGEST}", "the directory is missing"),
        ("oci:/a:", "the tag after the last ':' is empty"),
        ("oci:/a:@", "'' is no position in index.json"),
        ("oci:/a:@-1", "'-1' is no position in index.json"),
        ("oci:/a:@x", "'x' is no position in index.json"),
        ("oci:/a@sha256:12", "not a content digest"),
        (f"oci:/a:tag@{DIGEST}", "give a tag or a digest, not both"),
    ],
)
def test_bad_layout_reference_is_refused(text: str, reason: str) -> None:
    with pytest.raises(OciError, match=reason) as caught:
        parse_layout_reference(text)
    assert caught.value.what == text


@pytest.mark.parametrize(
    ("rest", "directories", "reference"),
    [
        ("d:docker.io/library/busybox:1.27", {"d"}, LayoutReference("d", "docker.io/library/busybox:1.27")),
        ("d:localhost:5000/a:b", {"d", "d:localhost"}, LayoutReference("d", "localhost:5000/a:b")),
        ("d:localhost:5000/a:b", {"d:localhost"}, LayoutReference("d:localhost", "5000/a:b")),
        ("/a:b/c:d", {"/a:b/c"}, LayoutReference("/a:b/c", "d")),
        ("/a:b/c:d", {"/a:b/c:d"}, LayoutReference("/a:b/c:d")),
        ("/a:b/c:d", set[str](), LayoutReference("/a:b/c", "d")),
        ("a:b:@1", {"a:b"}, LayoutReference("a:b", position=1)),
        (f"d:a/b@{DIGEST}", {"d"}, LayoutReference("d", f"a/b@{DIGEST}")),
        (f"a:b@{DIGEST}", {"a:b"}, LayoutReference("a:b", None, DIGEST)),
        (f"a:b@{DIGEST}", {"a"}, LayoutReference("a", f"b@{DIGEST}")),
    ],
)
def test_directory_ends_at_the_first_colon_that_a_directory_stands_before(
    rest: str, directories: set[str], reference: LayoutReference
) -> None:
    assert parse_layout_reference(f"oci:{rest}", directories.__contains__) == reference
