"""Certificates: ``certs.d`` directories, and the TLS contexts that are made of them.

Owns where the files are (containers-certs.d(5)) and what is done with them.  Reads files; blocks.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import TransportError
from .access import Surroundings

__all__ = ["HostCertificates", "find_certificates", "make_context"]

_BUNDLES = (
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/ca-bundle.pem",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "etc/ssl/cert.pem",
)
"""Where distributions keep the authorities that they trust, for a Python whose OpenSSL looks elsewhere."""


@dataclass(frozen=True, slots=True)
class HostCertificates:
    """What a directory has for one host."""

    authorities: tuple[Path, ...] = ()
    """Trusted besides those of the system."""
    clients: tuple[tuple[Path, Path], ...] = ()
    """Certificate and key of each."""


def find_certificates(around: Surroundings, host: str, cert_dir: Path | None) -> HostCertificates:
    """The certificates for *host*, with its port as the reference has it; of the first directory that there is.

    Raises:
        TransportError: a certificate has no key, or the reverse; or *cert_dir* cannot be read.
    """
    if cert_dir is not None:
        try:
            return _of_directory(cert_dir, os.listdir(cert_dir))
        except OSError as error:
            raise TransportError(f"certificates {cert_dir}: {error.strerror}") from None
    for directory in _directories(around):
        found = directory / host
        try:
            names = os.listdir(found)
        except OSError:  # not there, or not for us
            continue
        return _of_directory(found, names)
    return HostCertificates()


def _directories(around: Surroundings) -> Iterator[Path]:
    yield around.config_home / "containers/certs.d"
    for top in ("etc", "usr/share"):
        base = around.system(top) / "containers"
        if around.uid == 0:
            yield base / "certs.rootful.d"
        else:
            yield base / "certs.rootless.d" / str(around.uid)
            yield base / "certs.rootless.d"
        yield base / "certs.d"
    yield around.system("etc/docker/certs.d")


def _of_directory(directory: Path, names: list[str]) -> HostCertificates:
    clients: list[tuple[Path, Path]] = []
    for name in sorted(names):
        stem, dot, suffix = name.rpartition(".")
        other = {"cert": "key", "key": "cert"}.get(suffix) if dot else None
        if other is None:
            continue
        if f"{stem}.{other}" not in names:
            hint = "; files of authorities end in .crt" if suffix == "cert" else ""
            raise TransportError(f"{directory / name} has no {stem}.{other} beside it{hint}")
        if suffix == "cert":
            clients.append((directory / name, directory / f"{stem}.key"))
    authorities = tuple(directory / name for name in sorted(names) if name.endswith(".crt"))
    return HostCertificates(authorities, tuple(clients))


def make_context(around: Surroundings, certificates: HostCertificates, *, verify: bool) -> ssl.SSLContext:
    """A context for connections to one host.

    Raises:
        TransportError: a file cannot be read, or has no certificate.
    """
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if verify:
        _trust_system(context, around)
    for path in certificates.authorities:
        _load(path, lambda path=path: context.load_verify_locations(cafile=path))
    for certificate, key in certificates.clients:
        _load(certificate, lambda certificate=certificate, key=key: context.load_cert_chain(certificate, key))
    return context


def _trust_system(context: ssl.SSLContext, around: Surroundings) -> None:
    file, directory = around.get("SSL_CERT_FILE"), around.get("SSL_CERT_DIR")
    if file or directory:
        _load(Path(file or directory or ""), lambda: context.load_verify_locations(cafile=file, capath=directory))
    elif not context.cert_store_stats()["x509_ca"] and not os.path.isdir(ssl.get_default_verify_paths().capath or ""):
        bundle = next((found for name in _BUNDLES if (found := around.system(name)).is_file()), None)
        if bundle is not None:
            _load(bundle, lambda: context.load_verify_locations(cafile=bundle))


def _load(path: Path, load: object) -> None:
    try:
        load()  # type: ignore[operator]
    except ssl.SSLError:
        raise TransportError(f"{path} has no certificate or key that can be used") from None
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}") from None
