"""A blob's digests: side by side or one after the other, with the same answers."""

from __future__ import annotations

import hashlib

import pytest

from composefs_async.errors import DigestMismatchError, OciError
from composefs_async.oci.importing import hashes
from composefs_async.oci.importing.hashes import BlobHashes

PIECES = [b"packed", b"", b"x" * 1000] + [b"%d" % index for index in range(200)]
CONTENT = b"content" * 5000


def digest(content: bytes, name: str = "sha256") -> str:
    return f"{name}:{hashlib.new(name, content).hexdigest()}"


PACKED, UNPACKED = b"".join(PIECES) * 2, CONTENT * 2


@pytest.fixture(params=["in step", "hashlib"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "hashlib":
        monkeypatch.setattr(hashes, "_pair", lambda: None)


def hashed(hashes: BlobHashes) -> BlobHashes:
    for _ in range(2):
        hashes.update(CONTENT, PIECES)
    return hashes


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("name", ["sha256", "sha512"])
@pytest.mark.parametrize("packed_name", ["sha256", "sha512"])
def test_right_digests_are_accepted(name: str, packed_name: str) -> None:
    hashed(BlobHashes(digest(UNPACKED, name), digest(PACKED, packed_name))).verify()
    hashed(BlobHashes(digest(UNPACKED, name))).verify()
    with pytest.raises(DigestMismatchError):
        hashed(BlobHashes(digest(CONTENT, name), digest(PACKED, packed_name))).verify()


@pytest.mark.usefixtures("_way")
def test_the_packed_digest_is_named_first() -> None:
    wrong = digest(b"other")
    with pytest.raises(DigestMismatchError) as caught:
        hashed(BlobHashes(wrong, wrong)).verify()
    assert str(caught.value).startswith(f"layer blob {wrong}")
    with pytest.raises(DigestMismatchError) as caught:
        hashed(BlobHashes(wrong, digest(PACKED))).verify()
    assert str(caught.value).startswith(f"unpacked layer {wrong}")
    with pytest.raises(DigestMismatchError) as caught:
        hashed(BlobHashes(digest(UNPACKED), wrong)).verify()
    assert caught.value.found == digest(PACKED)


@pytest.mark.usefixtures("_way")
def test_digests_that_cannot_be_verified_are_refused() -> None:
    with pytest.raises(OciError):
        BlobHashes("md5:" + "0" * 32)
    with pytest.raises(OciError):
        BlobHashes(digest(b""), "nonsense")
