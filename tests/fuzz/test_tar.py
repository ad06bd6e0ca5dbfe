"""Targets for fuzzers: tar headers, records of PAX, and the native code that passes over members.

Every run of the suite feeds each target its corpus and some thousand changes of it, always the same.  With atheris::

    COMPOSEFS_ASYNC_FUZZ_SECONDS=60 pytest tests/fuzz/test_tar.py      # each target for a minute
    python tests/fuzz/test_tar.py headers CORPUS -max_total_time=3600  # one of them, with options of libFuzzer

The native code alone is built with the sanitizers of gcc and driven by `members_fuzzer.c`; clang can build that with
libFuzzer.
"""

from __future__ import annotations

import gzip
import inspect
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from composefs_async.digest import ObjectId
from composefs_async.errors import OciError, TarError
from composefs_async.oci import filesystem
from composefs_async.oci.filesystem import TreeBuilder
from composefs_async.oci.tar import fields, members, sparse, split
from composefs_async.oci.tar import header as header_module
from composefs_async.oci.tar import pax as pax_module
from composefs_async.oci.tar.pax import PaxRecords
from composefs_async.oci.tar.sparse import SparseContent
from composefs_async.oci.tar.split import EXTERNAL, INLINE, LARGE_BEGIN, LARGE_PIECE, TarSplitter

HERE = Path(__file__).parent
VECTORS = HERE.parent / "vectors" / "tar"
NATIVE = HERE.parent.parent / "composefs_async" / "_native"
BLOCK = 512
CONTROL = 16
"""Bytes before an archive that say which of its blocks get the checksum of a header."""
ROUNDS = int(os.environ.get("COMPOSEFS_ASYNC_FUZZ_ROUNDS", "700"))
SECONDS = int(os.environ.get("COMPOSEFS_ASYNC_FUZZ_SECONDS", "0"))


# -- targets: bytes in, nothing out, an assertion if something is wrong -------------------------


def headers(data: bytes) -> None:
    """An archive whose headers are sound where the first bytes say so."""
    control, archive = int.from_bytes(data[:CONTROL], "little"), bytearray(data[CONTROL:])
    for number in range(len(archive) // BLOCK):
        if control >> number % (8 * CONTROL) & 1:
            seal(archive, number * BLOCK)
    check(bytes(archive))


def pax(data: bytes) -> None:
    """The data of an extended header, by themselves and before a file."""
    with suppress(ValueError):
        PaxRecords(data)
    archive = bytearray(header(b"x", len(data)) + data + bytes(-len(data) % BLOCK))
    for size in (0, 64, 700):
        check(bytes(archive) + header(b"0", size) + bytes(BLOCK * 2) + header(b"5", 0) + bytes(2 * BLOCK))


TARGETS: dict[str, Callable[[bytes], None]] = {"headers": headers, "pax": pax}


def seal(archive: bytearray, at: int) -> None:
    """Give the header at that place the checksum it should have."""
    archive[at + 148 : at + 156] = b" " * 8
    archive[at + 148 : at + 156] = b"%06o\0 " % sum(archive[at : at + BLOCK])


def header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("name")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)[:BLOCK]


def check(archive: bytes) -> None:
    """All ways to cut and read an archive agree, every byte comes back, and what is wrong is a `TarError`."""
    expected = outcome(archive, len(archive) + 1)
    assert outcome(archive, 700) == expected
    with without_native():
        assert outcome(archive, len(archive) + 1) == expected
        assert outcome(archive, 4099) == expected
    chunks, _ = expected
    if isinstance(chunks, list):
        tree(chunks)


def outcome(archive: bytes, piece: int) -> tuple[object, object]:
    """What becomes of an archive that comes in pieces: chunks and members, or the error."""
    splitter = TarSplitter(carry_limit=1024, piece_size=4096, max_file_size=1 << 20)
    try:
        events = [event for at in range(0, len(archive), piece) for event in splitter.feed(archive[at : at + piece])]
        events += splitter.feed(b"", final=True)
    except TarError as error:
        return error.reason, error.offset
    chunks: list[bytes | ObjectId] = []
    merged = large = b""
    for event in events:
        merged += event.data
        if event.kind == INLINE and chunks and not isinstance(chunks[-1], ObjectId):
            chunks[-1] += event.data
        elif event.kind == INLINE:
            chunks.append(event.data)
        elif event.kind in (LARGE_BEGIN, LARGE_PIECE):
            large = b"" if event.kind == LARGE_BEGIN else large + event.data
        else:
            content = event.data if event.kind == EXTERNAL else large
            assert len(content) == event.size > 64
            chunks.append(ObjectId(content[:32]))
    assert merged == archive
    return chunks, list(members.read_entries(chunks))


def tree(chunks: list[bytes | ObjectId]) -> None:
    """What can be split and read makes a tree or a typed error."""

    def contained(content: SparseContent) -> bytes:
        content.form.segments(bytes(content.stored))
        return b"x"

    builder = TreeBuilder(contained)
    builder.begin_layer("layer")
    with suppress(OciError, TarError):
        builder.add(members.read_entries(chunks))
        builder.finish(None)


@contextmanager
def without_native() -> Iterator[None]:
    before = split.NATIVE, members.NATIVE
    split.NATIVE = members.NATIVE = False  # type: ignore[misc]
    try:
        yield
    finally:
        split.NATIVE, members.NATIVE = before  # type: ignore[misc]


# -- corpora -----------------------------------------------------------------------------------


def corpus(target: str) -> list[bytes]:
    if target == "pax":
        records = [b"path=usr/a", b"linkpath=t", b"size=65", b"uid=-1", b"gid=0", b"mtime=-1.5", b"mtime="]
        records += [b"SCHILY.xattr.user.a=\0\n", b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.size=700"]
        records += [b"GNU.sparse.name=n/", b"GNU.sparse.map=0,64", b"GNU.sparse.offset=1", b"GNU.sparse.numbytes=64"]
        records += [b"GNU.sparse.numblocks=1", b"GNU.sparse.realsize=99"]
        return [record(each) for each in records] + [b"".join(map(record, records[at : at + 4])) for at in range(14)]
    archives = [gzip.decompress(path.read_bytes())[:20_000] for path in sorted(VECTORS.glob("*.tar.gz"))]
    archives += [archive(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    return [bytes(CONTROL) + each for each in archives] + [b"\xff" * CONTROL + each for each in archives]


def record(body: bytes) -> bytes:
    length = len(body) + 3
    return b"%d %b\n" % (length + (length > 9), body)


def archive(form: int) -> bytes:
    """One member of each kind, long names and a sparse file among them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for number, kind in enumerate(b"0512346"):
            info = tarfile.TarInfo("d/" * number + f"name{number}")
            info.type, info.linkname = bytes([kind]), "name0" if kind in b"12" else ""
            info.size = 70 if kind == 0x30 else 0
            if form != tarfile.USTAR_FORMAT:
                info.name = "long/" * 30 + info.name
            if form == tarfile.PAX_FORMAT and kind == 0x30:
                info.pax_headers = {"GNU.sparse.map": "5,30,99,40", "GNU.sparse.size": "139"}
            made.addfile(info, io.BytesIO(b"x" * info.size))
    return out.getvalue()


def changed(data: bytes, source: random.Random) -> bytes:
    """Some bytes set, exchanged, taken out or put in twice."""
    made = bytearray(data)
    for _ in range(source.randrange(1, 5)):
        at, length = source.randrange(len(made) or 1), source.choice([1, 1, 2, 8, 12, BLOCK])
        match source.randrange(5):
            case 0 | 1:
                made[at : at + 1] = bytes([source.choice(b"\0\x01 /.0123456789gKLSxustar\x7f\x80\xff,=\n")])
            case 2:
                made[at : at + length] = made[length : 2 * length]
            case 3:
                del made[at : at + length]
            case _:
                made[at:at] = made[at - at % BLOCK : at - at % BLOCK + length]
    return bytes(made)


# -- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_and_changes_of_it(target: str) -> None:
    source, inputs = random.Random(7), corpus(target)
    for data in inputs:
        TARGETS[target](data)
    for _ in range(ROUNDS):
        TARGETS[target](changed(source.choice(inputs), source))


@pytest.mark.skipif(not SECONDS, reason="takes minutes; COMPOSEFS_ASYNC_FUZZ_SECONDS asks for it")
@pytest.mark.parametrize("target", TARGETS)
def test_atheris_finds_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    for number, data in enumerate(corpus(target)):
        (tmp_path / str(number)).write_bytes(data)
    command = [sys.executable, __file__, target, str(tmp_path), f"-max_total_time={SECONDS}", "-max_len=20000"]
    run = subprocess.run([*command, "-verbosity=0"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-5000:]


@pytest.fixture(scope="module")
def members_fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native code alone, with the sanitizers of gcc."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not on PATH")
    program = tmp_path_factory.mktemp("fuzz") / "members"
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    sources = [str(HERE / "members_fuzzer.c"), str(NATIVE / "members.c")]
    command = ["gcc", *flags, "-fno-sanitize-recover=all", f"-I{NATIVE}", "-DSTANDALONE", *sources, "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr:
        pytest.skip("gcc has no sanitizers here")
    assert built.returncode == 0, built.stderr
    return program


def test_native_code_stays_in_its_buffers(members_fuzzer: Path, tmp_path: Path) -> None:
    paths = []
    for number, data in enumerate(corpus("headers")):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(data)
    command = [members_fuzzer, str(5_000 * SECONDS or 5_000), *paths]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-5000:]


def main() -> None:
    import atheris

    target = TARGETS[sys.argv.pop(1)]
    for module in (fields, header_module, pax_module, sparse, split, members, filesystem):
        for owner in (module, *filter(inspect.isclass, vars(module).values())):
            for found in vars(owner).values():
                if inspect.isfunction(found) and found.__module__ == module.__name__:
                    atheris.instrument_func(found)  # all that Python has loaded would take minutes
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
