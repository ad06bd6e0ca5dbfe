"""Images are byte for byte those of mkcomposefs and composefs-rs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from composefs_async import fsverity
from composefs_async.digest import Algorithm
from composefs_async.erofs.writer import Dialect, build_image, choose_version
from composefs_async.tree.dumpfile import parse_dump

VECTORS = Path(__file__).parents[1] / "vectors" / "image"
STEMS = sorted(path.stem for path in VECTORS.glob("*.dump"))
RUST_STEMS = sorted(path.stem for path in VECTORS.glob("rust/*.dump"))


def options(arguments: list[str]) -> dict[str, int]:
    return {
        name.removeprefix("--").removesuffix("-version") + "imum": int(value)
        for name, _, value in (argument.partition("=") for argument in arguments)
        if value
    }


@pytest.mark.parametrize("stem", STEMS)
def test_layouts_0_and_1_are_those_of_mkcomposefs(stem: str) -> None:
    wanted = json.loads((VECTORS / f"{stem}.json").read_text())
    root = parse_dump((VECTORS / f"{stem}.dump").read_bytes())
    version = choose_version(root, **options(wanted["mkcomposefs_args"]))
    image = build_image(root, version=version, dialect=Dialect.C)
    assert {
        "mkcomposefs_args": wanted["mkcomposefs_args"],
        "image_sha256": hashlib.sha256(image).hexdigest(),
        "fsverity_sha256": fsverity.digest(image, Algorithm.SHA256).hex(),
        "fsverity_sha512": fsverity.digest(image, Algorithm.SHA512).hex(),
        "size": len(image),
    } == wanted


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.img")), ids=lambda path: path.stem)
def test_whole_images_are_equal(path: Path) -> None:
    root = parse_dump(path.with_suffix(".dump").read_bytes())
    assert build_image(root, version=0, dialect=Dialect.C) == path.read_bytes()


@pytest.mark.parametrize("stem", RUST_STEMS)
def test_layout_2_is_that_of_composefs_rs(stem: str) -> None:
    wanted = json.loads((VECTORS / "rust" / f"{stem}.json").read_text())
    algorithm = Algorithm(wanted["algorithm"])
    image = build_image(parse_dump((VECTORS / "rust" / f"{stem}.dump").read_bytes()), algorithm, 2)
    assert {
        "algorithm": algorithm.value,
        "image_sha256": hashlib.sha256(image).hexdigest(),
        "fsverity": fsverity.digest(image, algorithm).hex(),
        "size": len(image),
    } == wanted


EMPTY = "/ 0 40755 2 0 0 0 0.0 - - -\n"
M = "1633950376.0"
T = "1234567890.0"
ZERO = "1 0 0 0 0.0 - - -"
DUMPS = {
    "empty": EMPTY,
    "simple": EMPTY
    + "/blkdev 0 60000 1 0 0 123 0.0 - - -\n/chrdev 0 20000 1 0 0 123 0.0 - - -\n"
    + f"/fifo 0 10000 {ZERO}\n/regular-external 1234 100000 1 0 0 0 0.0 P - Z\n"
    + f"/regular-inline 4 100000 1 0 0 0 0.0 - hihi -\n/socket 0 140000 {ZERO}\n"
    + "/symlink 0 120000 1 0 0 0 0.0 /target - -\n",
    "nsec": "/ 0 40755 3 0 0 0 1700000000.5 - - -\n/a 1 100644 1 0 0 0 1700000000.4 - x -\n"
    "/b 0 40755 2 0 0 0 1700000000.4 - - -\n/c 4097 100644 1 0 0 0 1700000000.999999999 P - Z\n",
    "whiteout": EMPTY + f"/d 0 40755 2 0 0 0 0.0 - - -\n/d/gone 0 20000 {ZERO}\n",
    "special": f"/ 4096 40555 2 0 0 0 {M} - - - trusted.foo1=bar-1 user.foo2=bar-2\n"
    f"/blockdev 0 60777 1 0 0 107690 {M} - - - trusted.bar=bar-2\n"
    f"/chardev 0 20777 1 0 0 10769 {M} - - - trusted.foo=bar-2\n"
    f"/escaped-xattr 0 100777 1 0 0 0 {M} - - - trusted.overlay.redirect=/foo\\n user.overlay.redirect=/foo\\n"
    " user.foo=bar-2\n"
    f"/fifo 0 10777 1 0 0 0 {M} - - - trusted.bar=bar-2\n"
    f"/inline 15 100777 1 0 0 0 {M} - FOOBAR\\nINAFILE\\n - user.foo=bar-2\n"
    f"/whiteout 0 20777 1 0 0 0 {M} - - - trusted.foo=bar-2\n",
    "fixture": f"/ 0 40755 3 0 0 0 {T} - - -\n/hello-link.txt 22 100644 2 0 0 0 {T} - "
    "hello\\x20from\\x20test\\x20layer\\n -\n"
    f"/hello.txt 0 @120000 - - - - 0.0 /hello-link.txt - -\n/usr 0 40755 2 0 0 0 {T} - - -\n",
}
DIGESTS = json.loads((VECTORS / "digests-0.9.0.json").read_text())


@pytest.mark.parametrize("key", DIGESTS)
def test_image_ids_are_those_of_composefs_rs_0_9_0(key: str) -> None:
    name, version, size = key.split()
    found = {}
    for algorithm in Algorithm:
        digest = "5a" * algorithm.digest_size
        dump = DUMPS[name].replace(" P ", f" 5a/{digest[2:]} ").replace(" Z\n", f" {digest}\n")
        image = build_image(parse_dump(dump.encode()), algorithm, int(version))
        assert len(image) == int(size)
        found[algorithm.value] = fsverity.digest(image, algorithm).hex()
    assert found == DIGESTS[key]
