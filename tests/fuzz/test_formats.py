"""Targets for fuzzers: splitstreams, EROFS images, dump files and the documents of OCI.

Every run of the suite feeds each target its corpus and some hundred changes of it, always the same.  Longer::

    COMPOSEFS_ASYNC_FUZZ_SECONDS=60 pytest tests/fuzz/test_formats.py     # each target for a minute, anew each time
    python tests/fuzz/test_formats.py images CORPUS -max_total_time=3600  # with atheris, and options of libFuzzer
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async.digest import Algorithm
from composefs_async.erofs.reader.superblock import parse_superblock
from composefs_async.erofs.reader.tree import image_to_tree
from composefs_async.erofs.references import image_object_ids, possible_object_ids
from composefs_async.errors import AlgorithmMismatchError, DumpfileError, ErofsError, OciError, SplitstreamError
from composefs_async.oci.documents import parse_config, parse_index, parse_manifest
from composefs_async.splitstream import BytesSource, SplitstreamReader
from composefs_async.tree.dumpfile import parse_dump
from composefs_async.tree.dumpwriter import write_dump

VECTORS = Path(__file__).parent.parent / "vectors"
DIGEST = "sha256:" + "ab" * 32
LARGEST = 200_000
"""Bytes of a file of the corpus: larger ones make slow rounds."""
ROUNDS = int(os.environ.get("COMPOSEFS_ASYNC_FUZZ_ROUNDS", "300"))
SECONDS = int(os.environ.get("COMPOSEFS_ASYNC_FUZZ_SECONDS", "0"))


# -- targets: bytes in, nothing out, an exception if something is wrong --------------------------


def splitstreams(data: bytes) -> None:
    """Everything that a stream says, with and without its objects."""
    try:
        reader = SplitstreamReader(BytesSource(data))
        _ = reader.named_refs, bytes(reader.object_refs), reader.content_type, reader.stream_size
        for _ in reader.chunks():
            pass
        for _ in SplitstreamReader(BytesSource(data)).cat(lambda object_id: [object_id]):
            pass
    except (SplitstreamError, AlgorithmMismatchError):
        pass


def images(data: bytes) -> None:
    """The tree of an image, which must be one that can be printed and read again."""
    for algorithm in Algorithm:
        possible_object_ids(data, algorithm)
        with contextlib.suppress(ErofsError):
            image_object_ids(data, algorithm)
    try:
        parse_superblock(data)
        root = image_to_tree(data)
    except ErofsError:
        return
    lines = b"".join(write_dump(root))
    try:
        again = parse_dump(lines)
    except DumpfileError:  # images may have longer contents and targets than dump files
        return
    assert b"".join(write_dump(again)) == lines


def dumps(data: bytes) -> None:
    """A tree that can be read is written in a form that does not change any more."""
    try:
        lines = b"".join(write_dump(parse_dump(data)))
    except DumpfileError:
        return
    assert b"".join(write_dump(parse_dump(lines))) == lines


def documents(data: bytes) -> None:
    """The same bytes as each kind of document."""
    for parse in (parse_index, parse_manifest, parse_config):
        with contextlib.suppress(OciError):
            parse(data, DIGEST)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "splitstreams": splitstreams,
    "images": images,
    "dumps": dumps,
    "documents": documents,
}


def corpus(target: str) -> list[bytes]:
    """Real files, and unusual ones."""
    match target:
        case "splitstreams":
            paths = sorted((VECTORS / "splitstream").glob("*.splitstream"))
        case "images":
            paths = sorted(VECTORS.rglob("*.img"))
        case "dumps":
            lines = json.loads((VECTORS / "dump" / "lines.json").read_text())
            unusual = [data.encode("latin1") for _, data, _ in lines]
            return unusual + [path.read_bytes() for path in sorted(VECTORS.rglob("*.dump"))]
        case _:
            blobs = sorted((VECTORS / "layouts").glob("*/blobs/*/*"))
            paths = [*sorted((VECTORS / "layouts").glob("*/index.json")), *(path for path in blobs if is_json(path))]
    return [path.read_bytes() for path in paths if path.stat().st_size <= LARGEST]


def is_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"{"


def changed(data: bytes, source: random.Random) -> bytes:
    """Some bytes set, numbers moved, parts taken out, put in twice or exchanged."""
    made = bytearray(data)
    for _ in range(source.randrange(1, 5)):
        at, length = source.randrange(len(made) or 1), source.choice([1, 1, 2, 4, 8, 32, 100])
        match source.randrange(6):
            case 0:
                made[at : at + 1] = bytes([source.choice(b'\0\x01\x7f\x80\xff \n"-/0@[\\]{}')])
            case 1:
                made[at : at + 1] = bytes([source.randrange(256)])
            case 2:
                number = int.from_bytes(made[at : at + 4], "little") + source.choice([-1, 1, 1 << 31])
                made[at : at + 4] = (number & 0xFFFFFFFF).to_bytes(4, "little")
            case 3:
                del made[at : at + length]
            case 4:
                made[at:at] = made[at : at + length]
            case _:
                made[at : at + length] = bytes(length)
    return bytes(made)


# -- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_and_changes_of_it(target: str) -> None:
    source, inputs = random.Random(7), corpus(target)
    assert len(inputs) > 5
    for data in inputs:
        TARGETS[target](data)
    for _ in range(ROUNDS):
        try_one(target, changed(source.choice(inputs), source))


@pytest.mark.skipif(not SECONDS, reason="takes minutes; COMPOSEFS_ASYNC_FUZZ_SECONDS asks for it")
@pytest.mark.parametrize("target", TARGETS)
def test_changes_for_a_while(target: str) -> None:
    seed = time.time_ns()
    source, inputs = random.Random(seed), corpus(target)
    rounds, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        data = changed(source.choice(inputs), source)
        try_one(target, data)
        if source.random() < 0.02:  # go on from some of what was made
            inputs.append(data)
        rounds += 1
    print(f"{target}: {rounds} inputs, seed {seed}")


def try_one(target: str, data: bytes) -> None:
    try:
        TARGETS[target](data)
    except Exception as error:
        error.add_note(f"input: {data.hex()}")
        raise


def main() -> None:
    import atheris

    target = TARGETS[sys.argv.pop(1)]
    atheris.instrument_all()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
