"""What policy.json makes of pulls: rejections before any request, and signatures that are checked."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from composefs_async import Repository, oci
from composefs_async.errors import ImagePolicyError
from composefs_async.oci import catalogue
from composefs_async.registry.access import Access
from composefs_async.registry.client import RegistryClient
from composefs_async.registry.reference import parse_reference
from composefs_async.registry.signatures import identity_matches, payload_error
from composefs_async.testing.registry import OCI_MANIFEST, FakeRegistry, digest_of

from .conftest import QUICK, SmallImage

pytestmark = pytest.mark.anyio


def _policy(tmp_path: Path, access: Access, requirements: list[dict[str, Any]], transport: str = "docker") -> Access:
    path = tmp_path / "policy.json"
    document = {"default": [{"type": "insecureAcceptAnything"}], "transports": {transport: {"": requirements}}}
    path.write_text(json.dumps(document))
    return replace(access, policy=path)


async def test_what_is_rejected_is_not_even_asked_for(
    repo: Repository, image: SmallImage, access: Access, tmp_path: Path
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    access = _policy(tmp_path, access, [{"type": "reject"}])
    async with registry.serving() as host, RegistryClient(access, QUICK) as client:
        with pytest.raises(ImagePolicyError, match=r"policy\.json does not allow it"):
            await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK)
        with pytest.raises(ImagePolicyError):
            await client.copy(f"docker://{host}/a/b:1", f"docker://{host}/c/d:1")
    assert registry.seen == []


async def test_image_directories_are_allowed_unless_the_policy_names_them(
    repo: Repository, image: SmallImage, access: Access, tmp_path: Path
) -> None:
    reference = f"oci:{image.directory}"
    await oci.pull(repo, reference, tag="x", access=_policy(tmp_path, access, [{"type": "reject"}]))
    with pytest.raises(ImagePolicyError):
        await oci.pull(repo, reference, tag="y", access=_policy(tmp_path, access, [{"type": "reject"}], "oci"))


Signer = Callable[[bytes], bytes]


def _keys() -> dict[str, tuple[Any, Signer]]:
    curve, numbers, edwards = (
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    )
    return {
        "ecdsa": (curve.public_key(), lambda payload: curve.sign(payload, ec.ECDSA(SHA256()))),
        "rsa": (numbers.public_key(), lambda payload: numbers.sign(payload, padding.PKCS1v15(), SHA256())),
        "ed25519": (edwards.public_key(), edwards.sign),
    }


KEYS = _keys()


def _pem(kind: str) -> bytes:
    pem: bytes = KEYS[kind][0].public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def _payload(name: str, digest: str, kind: str = "cosign container image signature") -> bytes:
    critical = {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest}, "type": kind}
    return json.dumps({"critical": critical, "optional": None}).encode()


def _sign(registry: FakeRegistry, digest: str, payload: bytes, signer: Signer) -> None:
    """Put a signature where cosign puts it."""
    config = registry.put_blob("a/b", b"{}")
    layer = {
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
        "digest": registry.put_blob("a/b", payload),
        "size": len(payload),
        "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(signer(payload)).decode()},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
        "layers": [layer],
    }
    registry.put_manifest("a/b", digest.replace(":", "-") + ".sig", json.dumps(document).encode())


@pytest.mark.parametrize("kind", KEYS)
async def test_a_good_signature_is_enough(
    kind: str, repo: Repository, image: SmallImage, access: Access, tmp_path: Path
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    (tmp_path / "key.pub").write_bytes(_pem(kind))
    requirement = {
        "type": "sigstoreSigned",
        "keyPath": str(tmp_path / "key.pub"),
        "signedIdentity": {"type": "matchRepository"},
    }
    access = _policy(tmp_path, access, [requirement])
    async with registry.serving() as host:
        _sign(registry, image.digest, _payload(f"{host}/a/b", image.digest), KEYS[kind][1])
        for _ in range(2):
            await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK)


BAD = {
    "none": (None, None, "it has none"),
    "by another key": ("ecdsa", lambda host, digest: _payload(f"{host}/a/b", digest), "not by any of the keys"),
    "of another digest": ("rsa", lambda host, digest: _payload(f"{host}/a/b", digest_of(b"x")), "another digest"),
    "of another name": ("rsa", lambda host, digest: _payload(f"{host}/a/c", digest), "another name"),
    "of something else": ("rsa", lambda host, digest: _payload(f"{host}/a/b", digest, "x"), "no container image"),
    "of nonsense": ("rsa", lambda host, digest: b"nonsense", "malformed"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_signature_is_refused(
    name: str, repo: Repository, image: SmallImage, access: Access, tmp_path: Path
) -> None:
    kind, payload, words = BAD[name]
    registry = FakeRegistry()
    image.put(registry)
    data = base64.b64encode(_pem("rsa")).decode()
    requirement = {"type": "sigstoreSigned", "keyData": data, "signedIdentity": {"type": "matchRepository"}}
    access = _policy(tmp_path, access, [requirement])
    async with registry.serving() as host:
        if kind is not None and payload is not None:
            _sign(registry, image.digest, payload(host, image.digest), KEYS[kind][1])
        with pytest.raises(ImagePolicyError, match=words):
            await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK)
    assert registry.count("GET .*/blobs/" + image.layers[0]) == 0
    assert catalogue.images(repo) == []


@pytest.mark.parametrize("content", [b"nonsense", None])
async def test_a_key_that_cannot_be_used(
    content: bytes | None, repo: Repository, image: SmallImage, access: Access, tmp_path: Path
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    if content is not None:
        (tmp_path / "key.pub").write_bytes(content)
    access = _policy(tmp_path, access, [{"type": "sigstoreSigned", "keyPath": str(tmp_path / "key.pub")}])
    async with registry.serving() as host:
        with pytest.raises(ImagePolicyError, match="key"):
            await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK)


D = f"sha256:{64 * 'a'}"
_REMAP = {"signedPrefix": "o.example/x"}
IDENTITIES = [
    ("h.example/a:1", "h.example/a:1", {"type": "matchExact"}, True),
    ("h.example/a:2", "h.example/a:1", {"type": "matchExact"}, False),
    ("h.example/a:1", f"h.example/a@{D}", {"type": "matchExact"}, False),
    ("h.example/a:1", f"h.example/a@{D}", {"type": "matchRepoDigestOrExact"}, True),
    ("h.example/a", "h.example/a:1", {"type": "matchRepoDigestOrExact"}, False),
    ("h.example/a", "h.example/a:1", {"type": "matchRepository"}, True),
    ("h.example/b", "h.example/a:1", {"type": "matchRepository"}, False),
    ("o.example/b:9", "h.example/a:1", {"type": "exactRepository", "dockerRepository": "o.example/b"}, True),
    ("o.example/b:9", "h.example/a:1", {"type": "exactReference", "dockerReference": "o.example/b:9"}, True),
    ("o.example/b:8", "h.example/a:1", {"type": "exactReference", "dockerReference": "o.example/b:9"}, False),
    (
        "o.example/x/a:1",
        "h.example/a:1",
        {"type": "remapIdentity", "prefix": "h.example", "signedPrefix": "o.example/x"},
        True,
    ),
    (
        "h.example/a:1",
        "h.example/a:1",
        {"type": "remapIdentity", "prefix": "z.example", "signedPrefix": "o.example"},
        True,
    ),
    ("not a name", "h.example/a:1", {"type": "matchRepository"}, False),
]


@pytest.mark.parametrize(("signed", "reference", "identity", "expected"), IDENTITIES)
def test_names_that_were_signed(signed: str, reference: str, identity: dict[str, str], expected: bool) -> None:
    parsed = parse_reference(f"docker://{reference}")
    assert identity_matches(signed, parsed, identity) is expected
    assert (payload_error(_payload(signed, D), D, parsed, identity) is None) is expected
