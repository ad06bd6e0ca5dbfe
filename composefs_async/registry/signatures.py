"""Signatures of images as sigstore's cosign makes them, checked with the keys that a policy names.

Owns finding the signatures of a manifest, and what one must say.  Needs the package ``cryptography``.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._aio.to_thread import in_thread
from ..errors import ComposefsError, ImageNotFoundError, ImagePolicyError, OciError
from ..oci.documents import Descriptor, parse_manifest
from .policy import Policy, SigstoreKey
from .reading import manifest, small_blob
from .reference import Reference, parse_reference
from .session import Place, Session

__all__ = ["check_signatures", "identity_matches", "payload_error"]

_PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"
_KIND = "cosign container image signature"
_PAYLOAD_LIMIT = 1 << 20
_MOST = 64
"""Signatures of one image that are looked at."""

Verifier = Callable[[bytes, bytes], bool]
"""Whether a signature (first) fits a payload."""


async def check_signatures(
    session: Session,
    places: Sequence[Place],
    reference: Reference,
    digest: str,
    policy: Policy,
    demands: Sequence[SigstoreKey],
) -> None:
    """Check that the manifest or index *digest* has a signature for each of *demands*.

    Raises:
        ImagePolicyError: it has not, or signatures cannot be checked here.
    """
    what = str(reference)
    signed = await _signatures(session, places, reference, digest)
    for demand in demands:
        verifiers = await in_thread(lambda demand=demand: _verifiers(what, policy, demand))  # type: ignore[misc]
        reasons: list[str] = []
        for payload, signature in signed:
            if not any(verify(signature, payload) for verify in verifiers):
                reasons.append("a signature is not by any of the keys")
                continue
            reason = payload_error(payload, digest, reference, demand.identity)
            if reason is None:
                break
            reasons.append(reason)
        else:
            detail = "; ".join(dict.fromkeys(reasons)) or "it has none"
            raise ImagePolicyError(what, f"no sigstore signature of {digest} is good: {detail}", policy.file)


async def _signatures(
    session: Session, places: Sequence[Place], reference: Reference, digest: str
) -> list[tuple[bytes, bytes]]:
    """Payloads with their signatures, from the tag that belongs to the digest."""
    tagged = Reference(reference.domain, reference.path, digest.replace(":", "-") + ".sig")
    for place in places:
        try:
            document = await manifest(session, place, tagged)
            layers = parse_manifest(document.raw, document.digest, media_type=document.media_type).layers
            return [found for layer in layers[:_MOST] if (found := await _signature(session, place, layer))]
        except ImageNotFoundError:
            continue
    return []


async def _signature(session: Session, place: Place, layer: Descriptor) -> tuple[bytes, bytes] | None:
    encoded = layer.annotations.get(_SIGNATURE)
    if layer.media_type != _PAYLOAD_TYPE or not encoded or layer.size > _PAYLOAD_LIMIT:
        return None
    try:
        signature = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return await small_blob(session, place, layer.digest, layer.size, layer.size), signature


def payload_error(payload: bytes, digest: str, reference: Reference, identity: Any) -> str | None:
    """Why a payload, whose signature is good, does not speak of *digest* under *reference*; None if it does."""
    try:
        document = json.loads(payload.decode())
        critical = document["critical"]
        kind, found = critical["type"], critical["image"]["docker-manifest-digest"]
        signed_as = critical["identity"]["docker-reference"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "what was signed is malformed"
    if kind != _KIND or not isinstance(signed_as, str):
        return "what was signed is no container image"
    if found != digest:
        return "another digest was signed"
    if not identity_matches(signed_as, reference, identity):
        return f"another name was signed: {signed_as!r:.200}"
    return None


def identity_matches(signed_as: str, reference: Reference, identity: Any) -> bool:
    """Whether the name that was signed is one that the policy takes for *reference* (containers-policy.json(5))."""
    try:
        signed = parse_reference(f"docker://{signed_as}", default_tag=None)
    except (ComposefsError, ValueError):
        return False
    kind = identity.get("type", "matchRepoDigestOrExact")
    if kind == "matchRepository":
        return signed.name == reference.name
    if kind == "exactRepository":
        return signed.name == _parse_name(identity["dockerRepository"])
    if kind == "exactReference":
        return signed.canonical == _parse_canonical(identity["dockerReference"])
    if kind == "remapIdentity":
        name = reference.name
        prefix = identity["prefix"]
        if name != prefix and not re.match(re.escape(prefix) + "[/:@]", name):
            return _exact(signed, reference)
        renamed = parse_reference(f"docker://{identity['signedPrefix']}{name[len(prefix) :]}", default_tag=None)
        return _exact(signed, Reference(renamed.domain, renamed.path, reference.tag, reference.digest))
    if kind == "matchExact":
        return reference.digest is None and _exact(signed, reference)
    return _exact(signed, reference)


def _exact(signed: Reference, reference: Reference) -> bool:
    """Equal names; a reference by digest is fine with any tag of its repository."""
    if reference.digest is not None:
        return signed.name == reference.name
    return signed.name == reference.name and signed.tag == reference.tag and signed.digest is None


def _parse_name(text: str) -> str:
    return parse_reference(f"docker://{text}", default_tag=None).name


def _parse_canonical(text: str) -> str:
    return parse_reference(f"docker://{text}", default_tag=None).canonical


# -- keys --------------------------------------------------------------------------------------


def _verifiers(what: str, policy: Policy, demand: SigstoreKey) -> list[Verifier]:
    """One for each key.  Blocks."""
    keys: list[bytes] = []
    for path in demand.paths:
        try:
            keys.append(Path(path).read_bytes())
        except OSError as error:
            raise ImagePolicyError(what, f"the key {path} cannot be read: {error.strerror}", policy.file) from None
    for text in demand.data:
        try:
            keys.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            raise ImagePolicyError(what, "keyData is not base64", policy.file) from None
    try:
        return [_verifier(key) for key in keys]
    except ImportError:
        reason = "it demands a sigstore signature: install composefs-async[signatures] to check it"
        raise ImagePolicyError(what, reason, policy.file) from None
    except (ValueError, OciError) as error:
        raise ImagePolicyError(what, f"a key cannot be used: {error}", policy.file) from None


def _verifier(pem: bytes) -> Verifier:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except UnsupportedAlgorithm:
        raise ValueError("it is of an unknown kind") from None

    def verify(signature: bytes, payload: bytes) -> bool:
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, payload, ec.ECDSA(SHA256()))
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, payload, padding.PKCS1v15(), SHA256())
            elif isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, payload)
            else:
                return False
        except InvalidSignature:
            return False
        return True

    return verify
