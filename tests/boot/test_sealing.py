"""Seals: written into image directories, checked by pulls, signed as fsverity(1) signs."""

from __future__ import annotations

import base64
import importlib.util
import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async import Algorithm, Repository, fsverity
from composefs_async.boot import Signer, check_seals, require_seals, seal_layout
from composefs_async.boot.sealing import signed_message
from composefs_async.digest import ObjectId
from composefs_async.errors import BootError, DigestMismatchError, ImageNotFoundError, OciError
from composefs_async.oci import pull
from composefs_async.oci.documents import parse_manifest

from .conftest import B1_FILES, layer_of, write_layout

BOOT = "8931c60a67cd196968759bede6c2ad1392710963e6f851380dcd4e515e860cc2"
PLAIN = "1978240d00708d75220704daf98cab28c0f9afe55fdb3f26e095c19222931942"
MERGED = "composefs.merged.erofs.v1.fsverity-sha256-12"
CONFIG = "composefs.config.fsverity-sha256-12"
BOOTABLE = "composefs.merged.bootable.erofs.v1.fsverity-sha256-12"

signing = pytest.mark.skipif(importlib.util.find_spec("cryptography") is None, reason="cryptography is not installed")


def seal(place: Path, **options: Any) -> Any:
    return anyio.run(partial(seal_layout, place, "demo", Algorithm.SHA256, **options))


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    write_layout(tmp_path / "layout", layer_of(dict(B1_FILES)))
    return tmp_path / "layout"


def document(place: Path, digest: str) -> Any:
    return json.loads((place / "blobs/sha256" / digest.partition(":")[2]).read_bytes())


@pytest.fixture
def repo(tmp_path: Path) -> Any:
    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as found:
        yield found


def test_digests_in_a_manifest(layout: Path, repo: Repository) -> None:
    done = seal(layout)
    manifest = document(layout, done.manifest_digest)
    assert manifest["annotations"] == {MERGED: PLAIN, BOOTABLE: BOOT}
    (config,) = manifest["config"]["annotations"].items()
    content = (layout / "blobs/sha256" / manifest["config"]["digest"][7:]).read_bytes()
    assert config == (CONFIG, fsverity.digest(content, Algorithm.SHA256).hex())
    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    assert (entry["digest"], entry["annotations"]) == (
        done.manifest_digest,
        {"org.opencontainers.image.ref.name": "demo"},
    )
    anyio.run(partial(pull, repo, f"oci:{layout}:demo", tag="demo"))
    found = [(check.name, check.good) for check in check_seals(repo, "demo")]
    assert found == [(CONFIG, True), (BOOTABLE, True), (MERGED, True)]
    # A second time finds the same, although the manifest is another one.
    assert seal(layout).annotations == done.annotations


def test_an_artifact_that_refers_to_the_image(layout: Path) -> None:
    before = json.loads((layout / "index.json").read_bytes())["manifests"]
    done = seal(layout, form="artifact")
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    assert entries[:1] == before
    assert entries[1]["digest"] == done.artifact_digest
    found = document(layout, done.artifact_digest)
    assert (found["artifactType"], found["subject"]["digest"]) == (
        "application/vnd.composefs.metadata.v1",
        done.manifest_digest,
    )
    assert [list(layer["annotations"]) for layer in found["layers"]] == [
        ["composefs.manifest.fsverity-sha256-12"],
        ["composefs.config.fsverity-sha256-12"],
        [MERGED],
        [BOOTABLE],
    ]
    content = (layout / "blobs/sha256" / done.artifact_digest[7:]).read_bytes()
    assert not parse_manifest(content, done.artifact_digest).is_container
    seal(layout, form="artifact")
    assert len(json.loads((layout / "index.json").read_bytes())["manifests"]) == 2


def test_an_image_that_no_machine_boots(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", layer_of({"usr/x": b"x"}, ()))
    assert list(seal(tmp_path / "layout").annotations)[:1] == [MERGED]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (MERGED, "0" * 64, "seal"),
        (BOOTABLE, PLAIN, "seal"),
        (CONFIG, PLAIN, "seal"),
        (MERGED, "x" * 64, "no digest"),
        (CONFIG, "x" * 64, "no digest"),
        (MERGED, "ab", "no digest"),
    ],
)
def test_a_seal_that_does_not_hold(layout: Path, repo: Repository, key: str, value: str, words: str) -> None:
    done = seal(layout)
    path = layout / "blobs/sha256" / done.manifest_digest[7:]
    manifest = json.loads(path.read_bytes())
    (manifest["config"] if key == CONFIG else manifest)["annotations"][key] = value
    write_manifest(layout, manifest)
    anyio.run(partial(pull, repo, f"oci:{layout}:demo", tag="demo"))
    with pytest.raises(DigestMismatchError if words == "seal" else OciError, match=words):
        require_seals(repo, "demo")


def write_manifest(layout: Path, manifest: Any) -> None:
    import hashlib

    content = json.dumps(manifest).encode()
    digits = hashlib.sha256(content).hexdigest()
    (layout / "blobs/sha256" / digits).write_bytes(content)
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0] |= {"digest": f"sha256:{digits}", "size": len(content)}
    (layout / "index.json").write_text(json.dumps(index))


def test_what_is_of_another_algorithm_or_block_size_is_left_out(layout: Path, repo: Repository) -> None:
    done = seal(layout)
    manifest = document(layout, done.manifest_digest)
    manifest["annotations"] = {
        "composefs.merged.erofs.v1.fsverity-sha512-12": "0" * 128,
        "composefs.merged.erofs.v1.fsverity-sha256-16": "0" * 64,
        "composefs.merged.erofs.v2.fsverity-sha256-12": "0" * 64,
        CONFIG: "0" * 64,  # on the config's descriptor alone it is a seal
        "other": "x",
    }
    write_manifest(layout, manifest)
    anyio.run(partial(pull, repo, f"oci:{layout}:demo", tag="demo"))
    assert [(each.name, each.good) for each in check_seals(repo, "demo")] == [(CONFIG, True)]


def test_what_cannot_be_sealed(layout: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError):
        anyio.run(partial(seal_layout, layout, "nothing"))
    with pytest.raises(ImageNotFoundError):
        anyio.run(partial(seal_layout, tmp_path / "nowhere"))
    before = (layout / "index.json").read_bytes()
    index = json.loads(before)
    inner = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", **index}).encode()
    import hashlib

    digits = hashlib.sha256(inner).hexdigest()
    (layout / "blobs/sha256" / digits).write_bytes(inner)
    entry = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": f"sha256:{digits}", "size": len(inner)}
    index["manifests"] = [entry | {"annotations": {"org.opencontainers.image.ref.name": "demo"}}]
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(ImageNotFoundError, match="use an artifact"):
        seal(layout)
    assert seal(layout, form="artifact").artifact_digest is not None


# -- signatures --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory, tool: Callable[[str], Path]) -> tuple[Path, Path]:
    """A private key and its certificate."""
    place = tmp_path_factory.mktemp("keys")
    command = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", place / "key.pem", "-x509", "-out"]
    command += [place / "cert.pem", "-subj", "/CN=test", "-days", "2"]
    subprocess.run([tool("openssl"), *command[1:]], check=True, capture_output=True)
    return place / "key.pem", place / "cert.pem"


@signing
@pytest.mark.parametrize("algorithm", Algorithm)
def test_signatures_are_those_of_fsverity_sign(
    tmp_path: Path, keys: tuple[Path, Path], tool: Callable[[str], Path], algorithm: Algorithm
) -> None:
    key, certificate = keys
    (tmp_path / "file").write_bytes(b"content" * 1000)
    digest = fsverity.digest(b"content" * 1000, algorithm)
    signature = Signer(key, certificate).sign(digest)
    command = [tool("fsverity"), "sign", f"--key={key}", f"--cert={certificate}", f"--hash-alg={algorithm.value}"]
    subprocess.run([*command, tmp_path / "file", tmp_path / "file.sig"], check=True, capture_output=True)
    assert signature == (tmp_path / "file.sig").read_bytes()
    (tmp_path / "message").write_bytes(signed_message(digest))
    (tmp_path / "ours.sig").write_bytes(signature)
    command = [
        tool("openssl"),
        "cms",
        "-verify",
        "-inform",
        "DER",
        "-in",
        tmp_path / "ours.sig",
        "-binary",
        "-noverify",
    ]
    command += ["-content", tmp_path / "message", "-certfile", certificate, "-out", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)


@signing
def test_every_digest_is_signed(layout: Path, keys: tuple[Path, Path]) -> None:
    signer = Signer(*keys)
    done = seal(layout, signer=signer)
    assert base64.b64decode(done.annotations[f"{BOOTABLE}.sig"]) == signer.sign(ObjectId.from_hex(BOOT))
    assert len(done.annotations) == 6
    artifact = document(layout, seal(layout, form="artifact", signer=signer).artifact_digest)
    blob = layout / "blobs/sha256" / artifact["layers"][3]["digest"][7:]
    assert blob.read_bytes() == signer.sign(ObjectId.from_hex(BOOT))


@signing
def test_keys_that_cannot_be_used_are_refused_without_a_word_of_them(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    key, certificate = keys
    secret = key.read_text()
    (tmp_path / "bad.pem").write_text(secret.replace("A", "B"))
    for wrong in ((certificate, certificate), (tmp_path / "bad.pem", certificate), (key, key)):
        with pytest.raises(BootError) as caught:
            Signer(*wrong)
        assert secret.splitlines()[1][:20] not in str(caught.value)
