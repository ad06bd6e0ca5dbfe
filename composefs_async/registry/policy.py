"""``policy.json``: which images may be taken at all (containers-policy.json(5)).

Owns finding the file, understanding it strictly, and choosing the requirements for an image.  What cannot be checked
is refused, never skipped.  Does not own checking signatures (`signatures`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ImagePolicyError, TransportError
from .access import Access, Surroundings
from .reference import Reference

__all__ = [
    "Policy",
    "Requirement",
    "SigstoreKey",
    "check_local",
    "docker_scopes",
    "load_policy",
    "parse_policy",
    "path_scopes",
]

_LIMIT = 4 << 20
_SIGNED_BY_KEYS = frozenset({"type", "keyType", "keyPath", "keyPaths", "keyData", "signedIdentity"})
_SIGSTORE_KEYS = frozenset(
    {
        "type", "keyPath", "keyPaths", "keyData", "keyDatas", "fulcio", "pki", "rekorPublicKeyPath",
        "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas", "signedIdentity",
    }
)  # fmt: skip
_IDENTITIES: dict[str, tuple[str, ...]] = {
    "matchExact": (),
    "matchRepoDigestOrExact": (),
    "matchRepository": (),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}


@dataclass(frozen=True, slots=True)
class SigstoreKey:
    """A demand for a signature that one of some keys has made."""

    paths: tuple[str, ...]
    data: tuple[str, ...]
    """Base64."""
    identity: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    unsupported: str = ""
    """What is demanded besides and cannot be checked."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One of the list that holds for an image."""

    type: str
    sigstore: SigstoreKey | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that has been understood."""

    file: str
    default: tuple[Requirement, ...]
    transports: Mapping[str, Mapping[str, tuple[Requirement, ...]]] = field(hash=False)

    def requirements(self, transport: str, scopes: list[str]) -> tuple[Requirement, ...]:
        """The requirements of the first scope that the policy has, else the default ones."""
        known = self.transports.get(transport, {})
        return next((known[scope] for scope in [*scopes, ""] if scope in known), self.default)

    def check(self, reference: str, transport: str, scopes: list[str]) -> list[SigstoreKey]:
        """Refuse what can be refused without reading anything.

        Returns:
            The demands for signatures; all must be met.

        Raises:
            ImagePolicyError: the image is rejected, or something is demanded that cannot be checked.
        """
        demands: list[SigstoreKey] = []
        for requirement in self.requirements(transport, scopes):
            if requirement.type == "reject":
                raise ImagePolicyError(reference, "it rejects this image", self.file)
            if requirement.type == "signedBy" or (requirement.type == "sigstoreSigned" and transport != "docker"):
                self._cannot_check(reference, requirement.type)
            if requirement.sigstore is not None:
                if requirement.sigstore.unsupported:
                    self._cannot_check(reference, f"sigstoreSigned with {requirement.sigstore.unsupported}")
                demands.append(requirement.sigstore)
        return demands

    def _cannot_check(self, reference: str, kind: str) -> NoReturn:
        raise ImagePolicyError(
            reference,
            f"it demands a signature ({kind}) that this program cannot check; skopeo can: "
            f"skopeo copy {reference} oci:DIR, then pull oci:DIR",
            self.file,
        )


def docker_scopes(reference: Reference) -> list[str]:
    """The scopes of an image in a registry, the most special one first."""
    scopes = [reference.canonical]
    if reference.digest:
        scopes = [f"{reference.name}@{reference.digest}"]
    parts = reference.name.split("/")
    scopes += ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    labels = reference.domain.partition(":")[0].split(".")
    scopes += [f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels))]
    return scopes


def path_scopes(path: str) -> list[str]:
    """The scopes of an image directory with that absolute path."""
    parts = path.rstrip("/").split("/")
    return ["/".join(parts[:length]) for length in range(len(parts), 1, -1)] + ["/"]


def check_local(reference: str, access: Access) -> None:
    """Check that the policy of this machine allows ``TRANSPORT:PATH[:…]``, if it names that transport.  Blocks.

    Raises:
        ImagePolicyError: it does not.
    """
    transport, _, rest = reference.partition(":")
    policy = load_policy(access, Surroundings.of(access))
    if policy is not None and transport in policy.transports:
        path = os.path.realpath(rest.partition("@")[0].partition(":")[0])
        policy.check(reference, transport, path_scopes(path))


# -- files -------------------------------------------------------------------------------------


def load_policy(access: Access, around: Surroundings) -> Policy | None:
    """The policy that holds on this machine; None if there is none, or *access* accepts everything.

    Raises:
        TransportError: a file that was asked for cannot be read.
        ImagePolicyError: the file is not valid.
    """
    if access.policy == "insecure":
        return None
    given = access.policy or around.get("CONTAINERS_POLICY_JSON")
    candidates = [Path(given)] if given else [path / "policy.json" for path in around.containers_directories()]
    for path in candidates:
        try:
            with open(path, "rb") as file:
                content = file.read(_LIMIT + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            if given:
                raise TransportError(f"{path}: {error.strerror}") from None
            continue
        except OSError as error:
            raise TransportError(f"{path}: {error.strerror}") from None
        return parse_policy(content, str(path))
    return None


def parse_policy(content: bytes, file: str) -> Policy:
    """Understand a policy; anything unknown, missing or said twice makes all of it an error.

    Raises:
        ImagePolicyError: it is not valid.
    """
    if len(content) > _LIMIT:
        _invalid(file, f"it is larger than {_LIMIT} bytes")
    try:
        document = json.loads(content.decode(), object_pairs_hook=lambda pairs: _unique(file, pairs))
    except (ValueError, RecursionError):
        _invalid(file, "it is not JSON in UTF-8")
    _keys(file, document, {"default"}, {"transports"}, "the policy")
    transports: dict[str, dict[str, tuple[Requirement, ...]]] = {}
    for transport, scopes in _object(file, document.get("transports", {}), "transports").items():
        table = _object(file, scopes, f"transport {transport!r}")
        transports[transport] = {scope: _requirements(file, value, repr(scope)) for scope, value in table.items()}
    return Policy(file, _requirements(file, document["default"], "default"), transports)


def _unique(file: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _invalid(file, "a key occurs twice in an object")
    return found


def _requirements(file: str, value: object, where: str) -> tuple[Requirement, ...]:
    if not isinstance(value, list) or not value:
        _invalid(file, f"{where} is not a list with requirements")
    return tuple(_requirement(file, each, where) for each in value)


def _requirement(file: str, value: object, where: str) -> Requirement:
    entry = _object(file, value, f"a requirement of {where}")
    kind = entry.get("type")
    if kind in ("insecureAcceptAnything", "reject"):
        _keys(file, entry, {"type"}, set(), str(kind))
        return Requirement(str(kind))
    if kind == "signedBy":
        _keys(file, entry, {"type", "keyType"}, _SIGNED_BY_KEYS, "signedBy")
        return Requirement("signedBy")
    if kind != "sigstoreSigned":
        _invalid(file, f"a requirement of {where} has an unknown type")
    return Requirement("sigstoreSigned", _sigstore(file, entry))


def _sigstore(file: str, entry: dict[str, Any]) -> SigstoreKey:
    _keys(file, entry, {"type"}, _SIGSTORE_KEYS, "sigstoreSigned")
    paths = (*_texts(file, entry, "keyPath"), *_texts(file, entry, "keyPaths"))
    data = (*_texts(file, entry, "keyData"), *_texts(file, entry, "keyDatas"))
    sources = [key for key in ("keyPath", "keyPaths", "keyData", "keyDatas", "fulcio", "pki") if key in entry]
    if len(sources) != 1:
        _invalid(file, "sigstoreSigned has not exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki")
    unsupported = next((key for key in ("fulcio", "pki", *sorted(entry)) if key in entry and _is_remote(key)), "")
    identity = _object(file, entry.get("signedIdentity", {"type": "matchRepoDigestOrExact"}), "signedIdentity")
    kind = identity.get("type")
    if kind not in _IDENTITIES:
        _invalid(file, "signedIdentity has an unknown type")
    _keys(file, identity, {"type", *_IDENTITIES[kind]}, set(), "signedIdentity")
    return SigstoreKey(paths, data, {key: str(value) for key, value in identity.items()}, unsupported)


def _is_remote(key: str) -> bool:
    return key in ("fulcio", "pki") or key.startswith("rekor")


def _texts(file: str, entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    if key not in entry:
        return ()
    values = entry[key] if key.endswith("s") else [entry[key]]
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value for value in values):
        _invalid(file, f"{key} is not what it should be")
    return tuple(values)


def _object(file: str, value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _invalid(file, f"{what} is not an object")
    return value


def _keys(file: str, value: object, needed: set[str], allowed: set[str] | frozenset[str], what: str) -> None:
    keys = set(_object(file, value, what))
    if missing := sorted(needed - keys):
        _invalid(file, f"{what} has no {missing[0]}")
    if unknown := sorted(keys - needed - allowed):
        _invalid(file, f"{what} has an unknown member {unknown[0][:80]!r}")


def _invalid(file: str, reason: str) -> NoReturn:
    raise ImagePolicyError("no image", f"it is not valid: {reason}", file)
