"""Images that cfsctl stored: read as trees and written again, they are the same bytes."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

from composefs_async.digest import ObjectId
from composefs_async.erofs import format as erofs
from composefs_async.erofs.reader.tree import image_to_tree
from composefs_async.erofs.writer import build_image
from composefs_async.errors import ErofsError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

REPOSITORIES = sorted((Path(__file__).parents[1] / "vectors" / "repository").glob("g*.tar.zst"))


def stored_images(packed: Path) -> dict[ObjectId, bytes]:
    """Every image by the digest under which the repository has it."""
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(packed.read_bytes()))) as archive:
        members = {member.name.removeprefix("./"): member for member in archive}
        images = {}
        for name in members:
            folder, _, digest = name.rpartition("/")
            if folder == "images" and len(digest) in (64, 128):
                identity = ObjectId.from_hex(digest)
                content = archive.extractfile(members[f"objects/{identity.path}"])
                assert content is not None
                images[identity] = content.read()
    return images


@pytest.mark.parametrize("packed", REPOSITORIES, ids=lambda path: path.name.partition(".")[0])
def test_stored_images_are_written_again_byte_for_byte(packed: Path) -> None:
    images = stored_images(packed)
    assert images
    refused = []
    for identity, image in images.items():
        version = erofs.COMPOSEFS_HEADER.unpack_from(image)[3]
        try:
            tree = image_to_tree(image)
        except ErofsError as error:
            refused.append(str(error))
            continue
        assert build_image(tree, identity.algorithm, version) == image
    assert len(refused) <= 1
    assert all("long-long" in reason for reason in refused), "only a name that no kernel accepts"
