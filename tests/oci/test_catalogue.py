"""Listing, opening and tagging images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import (
    DigestMismatchError,
    InvalidNameError,
    OciError,
    SplitstreamError,
    StreamNotFoundError,
)
from composefs_async.naming import manifest_stream, referrer_reference
from composefs_async.oci import Platform, catalogue, pull
from composefs_async.oci.catalogue import ImageSummary
from composefs_async.repository import Repository
from composefs_async.splitstream import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, SplitstreamWriter

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
BASIC = "sha256:8e66440a93d68590e713aa309c3bc6651670904597e64480b0acccc87cb89f21"
ARTIFACT = "sha256:253a13cddc38a8a93b5c45ed40d4284874c9741b5b6c2145720a75198688b44e"
LAYER = "sha256:58cc8208b729c9aa23e4ffc045b6eb3176d5b01c5fb2b8fe1877cbf311c5a495"
UNKNOWN = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA256, insecure=True) as repo:
        for case in ("basic", "artifact"):
            anyio.run(partial(pull, repo, f"oci:{LAYOUTS}/{case}", tag=case, platform=Platform("linux", "amd64")))
    return path


@pytest.fixture
def repo(_made: Path, tmp_path: Path) -> Iterator[Repository]:
    """With the images ``basic`` and ``artifact``."""
    shutil.copytree(_made, tmp_path / "repo", symlinks=True)
    with Repository.open_path(tmp_path / "repo") as repository:
        yield repository


def publish(repo: Repository, content_type: int, payload: bytes, name: str, refs: dict[str, ObjectId]) -> ObjectId:
    """A stream with *payload* as an object, as documents are stored."""
    writer = SplitstreamWriter(repo, content_type)
    for key, value in refs.items():
        writer.add_named_stream_ref(key, value)
    writer.write_external(payload)
    return repo.write_stream(writer, name)


# -- images ------------------------------------------------------------------------------------

SUMMARIES = [
    ImageSummary("artifact", ARTIFACT, layer_count=2, size=10004),
    ImageSummary("basic", BASIC, True, "amd64", "linux", "2023-11-14T22:13:20Z", 2, size=90259),
]


def test_images_are_listed_by_name(repo: Repository) -> None:
    assert catalogue.images(repo) == SUMMARIES


def test_new_tag_is_listed_and_removed(repo: Repository) -> None:
    catalogue.tag(repo, BASIC, "a/b%:latest")
    assert [image.name for image in catalogue.images(repo)] == ["a/b%:latest", "artifact", "basic"]
    catalogue.tag(repo, ARTIFACT, "a/b%:latest")
    assert catalogue.open_image(repo, "a/b%:latest").manifest.digest == ARTIFACT
    catalogue.untag(repo, "a/b%:latest")
    assert catalogue.images(repo) == SUMMARIES
    with pytest.raises(StreamNotFoundError, match="a/b%:latest"):
        catalogue.untag(repo, "a/b%:latest")


@pytest.mark.parametrize("name", ["", ".", "..", "@x", "x" * 256, "nul\0"])
def test_impossible_tags_are_refused(name: str, repo: Repository) -> None:
    with pytest.raises(InvalidNameError):
        catalogue.tag(repo, BASIC, name)
    with pytest.raises(InvalidNameError):
        catalogue.untag(repo, name)
    assert catalogue.images(repo) == SUMMARIES


def test_manifest_that_is_not_there_gets_no_tag(repo: Repository) -> None:
    with pytest.raises(StreamNotFoundError, match=f"manifest not found: {UNKNOWN}"):
        catalogue.tag(repo, UNKNOWN, "x")
    with pytest.raises(StreamNotFoundError, match=f"manifest not found: {UNKNOWN}"):
        catalogue.open_image(repo, f"@{UNKNOWN}")
    assert catalogue.images(repo) == SUMMARIES


@pytest.mark.parametrize("name", ["basic", BASIC, f"@{BASIC}"])
def test_image_is_opened_by_tag_and_digest(name: str, repo: Repository) -> None:
    image = catalogue.open_image(repo, name)
    assert image.manifest.digest == BASIC
    assert image.manifest_id == repo.has_stream(manifest_stream(BASIC))
    assert image.config is not None
    assert tuple(image.layers) == image.config.diff_ids
    assert f"sha256:{hashlib.sha256(image.config_raw).hexdigest()}" == image.manifest.config.digest
    assert image.layers[LAYER] == repo.has_stream(f"oci-layer-{LAYER}")


def test_artifact_has_no_config_and_layers_by_their_digests(repo: Repository) -> None:
    image = catalogue.open_image(repo, "artifact")
    assert (image.config, image.config_raw, image.images) == (None, b"{}", {})
    assert tuple(image.layers) == tuple(layer.digest for layer in image.manifest.layers)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nope", StreamNotFoundError),
        (UNKNOWN, StreamNotFoundError),
        (f"@{UNKNOWN}", StreamNotFoundError),
        ("unknown:tag", StreamNotFoundError),
        ("", InvalidNameError),
        ("..", InvalidNameError),
        ("@", InvalidNameError),
        ("@basic", InvalidNameError),
        ("sha256:12", InvalidNameError),
        ("@sha256:12", InvalidNameError),
        (BASIC.upper(), StreamNotFoundError),
    ],
)
def test_names_of_no_image(name: str, kind: type[Exception], repo: Repository) -> None:
    with pytest.raises(kind) as caught:
        catalogue.open_image(repo, name)
    assert name.removeprefix("@") in str(caught.value)


def test_tag_goes_before_a_digest_of_the_same_spelling(repo: Repository) -> None:
    catalogue.tag(repo, ARTIFACT, BASIC)
    assert catalogue.open_image(repo, BASIC).manifest.digest == ARTIFACT
    assert catalogue.open_image(repo, f"@{BASIC}").manifest.digest == BASIC


def test_referrers_are_counted_and_listed(repo: Repository) -> None:
    assert catalogue.referrers(repo, BASIC) == []
    repo.name_stream(manifest_stream(ARTIFACT), referrer_reference(BASIC, ARTIFACT))
    assert catalogue.referrers(repo, BASIC) == [ARTIFACT]
    assert {image.name: image.referrer_count for image in catalogue.images(repo)} == {"artifact": 0, "basic": 1}


def test_references_that_are_no_tags_are_not_listed(repo: Repository, tmp_path: Path) -> None:
    repo.name_stream(manifest_stream(BASIC), "oci/deeper/tag")
    repo.name_stream(f"oci-layer-{LAYER}", "oci/layer")
    repo.name_stream(manifest_stream(BASIC), "elsewhere")
    assert catalogue.images(repo) == SUMMARIES


# -- damage ------------------------------------------------------------------------------------


def test_broken_image_is_listed_with_its_error(repo: Repository, tmp_path: Path) -> None:
    config = catalogue.open_image(repo, "basic").config_id
    path = tmp_path / "repo" / "objects" / config.hex()[:2] / config.hex()[2:]
    path.chmod(0o600)
    path.write_bytes(b"garbage")
    artifact, basic = catalogue.images(repo)
    assert artifact == SUMMARIES[0]
    assert basic.error
    assert dataclasses.replace(basic, error=None) == ImageSummary("basic", BASIC)


def _broken(repo: Repository, case: str) -> None:
    image = catalogue.open_image(repo, "basic")
    raw, config, digest = image.manifest.raw, image.manifest.config.digest, BASIC
    config_refs, refs = dict(image.layers), {f"config:{config}": image.config_id, **image.layers}
    if case == "manifest with other content":
        raw = raw.replace(b"linux", b"minix") + b" "
    elif case == "manifest without its config":
        del refs[f"config:{config}"]
    elif case == "config with other content":
        refs[f"config:{config}"] = publish(repo, OCI_CONFIG, image.config_raw + b" ", "other", config_refs)
    elif case == "config without a layer":
        refs = {f"config:{config}": publish(repo, OCI_CONFIG, image.config_raw, "other", {})}
    os.unlink(Path(repo.path) / "streams" / manifest_stream(digest))
    content_type = OCI_LAYER if case == "stream of another type" else OCI_MANIFEST
    publish(repo, content_type, raw, manifest_stream(digest), refs)


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("manifest with other content", DigestMismatchError, f"manifest {BASIC}"),
        ("manifest without its config", OciError, "does not refer to its config"),
        ("config with other content", DigestMismatchError, "config sha256:f307ac2405c1"),
        ("config without a layer", OciError, f"does not refer to the layer {LAYER}"),
        ("stream of another type", SplitstreamError, "type"),
    ],
)
def test_damaged_documents_are_found(case: str, kind: type[Exception], words: str, repo: Repository) -> None:
    _broken(repo, case)
    with pytest.raises(kind, match=words):
        catalogue.open_image(repo, "basic")
    (error,) = [image.error for image in catalogue.images(repo) if image.name == "basic"]
    assert error is not None
    assert words in error


# -- the async forms ---------------------------------------------------------------------------


@pytest.mark.anyio
async def test_async_forms_give_the_same(repo: Repository) -> None:
    assert await catalogue.images_async(repo) == catalogue.images(repo)
    assert await catalogue.open_image_async(repo, "basic") == catalogue.open_image(repo, "basic")
    repo.name_stream(manifest_stream(ARTIFACT), referrer_reference(BASIC, ARTIFACT))
    assert await catalogue.referrers_async(repo, BASIC) == [ARTIFACT]
    repo.unname_stream(referrer_reference(BASIC, ARTIFACT))
    await catalogue.tag_async(repo, BASIC, "new")
    assert json.loads((await catalogue.open_image_async(repo, "new")).config_raw)["architecture"] == "amd64"
    await catalogue.untag_async(repo, "new")
    assert await catalogue.images_async(repo) == SUMMARIES
