"""Sparse members of PAX archives: what their maps mean, which are refused, and the files that images refer to."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from composefs_async import fsverity
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.erofs.reader.tree import image_to_tree
from composefs_async.errors import DigestMismatchError, OciError, TarError
from composefs_async.oci import erofs_images
from composefs_async.oci.catalogue import open_image
from composefs_async.oci.filesystem import tree_from_layers
from composefs_async.oci.importing.layers import import_layer
from composefs_async.oci.importing.pull import pull
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.limits import Limits
from composefs_async.oci.platforms import Platform
from composefs_async.oci.stored_layers import layer_content, layer_dump, layer_entries, layer_info
from composefs_async.oci.tar.members import EntryType, TarEntry
from composefs_async.oci.tar.sparse import MAX_MAP, SparseContent
from composefs_async.repository import Repository
from composefs_async.tree.inodes import ExternalFile, InlineFile
from composefs_async.tree.walk import find

from ..conftest import Tar

PLATFORM = Platform("linux", "amd64")
FORMS = ["0.0", "0.1", "1.0"]
Pieces = list[tuple[int, bytes]]


def content_of(size: int, pieces: Pieces) -> bytes:
    made = bytearray(size)
    for offset, data in pieces:
        made[offset : offset + len(data)] = data
    return bytes(made)


def sparse(tar: Tar, form: str, size: int, pieces: Pieces, name: bytes = b"usr/s", **changes: Any) -> bytes:
    """A member as GNU tar writes it; *changes* are records in place of others, None for none."""
    numbers = [number for offset, data in pieces for number in (offset, len(data))]
    data = b"".join(data for _, data in pieces)
    blocks = (b"GNU.sparse.numblocks", b"%d" % len(pieces))
    if form == "0.0":
        records = [(b"path", name), (b"GNU.sparse.size", b"%d" % size), blocks]
        keys = [b"GNU.sparse.offset", b"GNU.sparse.numbytes"] * len(pieces)
        records += [(key, b"%d" % number) for key, number in zip(keys, numbers, strict=True)]
    elif form == "0.1":
        text = b",".join(b"%d" % number for number in numbers)
        records = [(b"GNU.sparse.name", name), (b"GNU.sparse.size", b"%d" % size), blocks, (b"GNU.sparse.map", text)]
    else:
        text = b"".join(b"%d\n" % number for number in [len(pieces), *numbers])
        data = tar.padded(changes.pop("map", text)) + data
        records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", name)]
        records.append((b"GNU.sparse.realsize", b"%d" % size))
    given = {key.encode(): value for key, value in changes.pop("records", {}).items()}
    records = [(key, given.pop(key, value)) for key, value in records] + list(given.items())
    kept = [(key, value) for key, value in records if value is not None]
    return tar.pax(*kept) + tar.member(b"GNUSparseFile.0/s", data, **changes)


def contents(entry: TarEntry, data: bytes) -> bytes:
    """What a sparse file contains, whose data in the archive are *data*."""
    assert isinstance(entry.content, SparseContent)
    assert entry.size == entry.content.form.size
    segments, at = entry.content.form.segments(data)  # type: ignore[misc]
    made = bytearray(entry.size)
    for offset, length in segments:
        made[offset : offset + length] = data[at : at + length]
        at += length
    assert at == len(data)
    return bytes(made)


def read(tar: Tar, archive: bytes, piece: int = 0) -> tuple[TarEntry, bytes]:
    """The first member and its data in the archive, which come back at whatever place the archive is cut."""
    whole = archive + tar.member(b"after", b"y" * 70) + tar.end
    chunks = tar.chunks(whole, piece, carry_limit=4096, piece_size=4096)
    first, after = tar.entries(whole, piece, carry_limit=4096, piece_size=4096)
    assert (after.path, after.size, after.offset) == (b"after", 70, len(archive))
    assert isinstance(first.content, SparseContent)
    if not isinstance(first.content.stored, ObjectId):
        return first, first.content.stored
    header = archive[first.offset :]
    data = header[512 : 512 + first.content.form.stored]
    assert first.content.stored == tar.object_id(data)
    assert first.content.stored in chunks
    return first, data


SHAPES: dict[str, tuple[int, Pieces]] = {
    "hole before": (65_536, [(30_000, b"data")]),
    "hole behind": (65_536, [(0, b"x" * 600), (65_536, b"")]),
    "holes between": (10_000, [(0, b"a" * 512), (1024, b"b" * 512), (9000, b"c" * 1000)]),
    "pieces that touch": (2000, [(0, b"a" * 512), (512, b"b" * 512), (1024, b""), (1024, b"c" * 976)]),
    "nothing but a hole": (1 << 20, [(1 << 20, b"")]),
    "nothing but a hole, no piece": (4096, []),
    "no hole": (700, [(0, b"x" * 700)]),
    "empty": (0, [(0, b"")]),
    "64 bytes": (64, [(60, b"end!")]),
    "65 bytes": (65, [(61, b"end!")]),
    "large data": (1 << 21, [(4096, bytes(range(256)) * 400), (1 << 20, b"z" * 100_000)]),
    "many pieces": (4096 * 3000, [(4096 * number, b"%05d" % number) for number in range(3000)]),
    "64 bytes of data": (5000, [(100, b"x" * 64)]),
    "65 bytes of data": (5000, [(100, b"x" * 65)]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("piece", [0, 300, 4096])
def test_pieces_stand_where_the_map_says(tar: Tar, shape: str, form: str, piece: int) -> None:
    size, pieces = SHAPES[shape]
    entry, data = read(tar, sparse(tar, form, size, pieces), piece)
    assert (entry.path, entry.type, entry.size) == (b"usr/s", EntryType.FILE, size)
    assert contents(entry, data) == content_of(size, pieces)


@pytest.mark.parametrize("form", FORMS)
def test_records_that_may_be_missing_or_empty(tar: Tar, form: str) -> None:
    pieces = [(10, b"x" * 90), (100, b"")]
    for records in (
        {"GNU.sparse.numblocks": None},
        {"GNU.sparse.size": None, "GNU.sparse.realsize": b"100"},
        {"GNU.sparse.size": b"", "GNU.sparse.realsize": b"100"},
        {"GNU.sparse.name": b"", "path": b"usr/s"},
        {"GNU.sparse.name": None, "path": b"usr/s"},
        {"GNU.sparse.name": b"usr/s", "path": b"other"},
        {"comment": b"x", "GNU.sparse.unknown": b"y"},
    ):
        entry, data = read(tar, sparse(tar, form, 100, pieces, records=records))
        assert entry.path == b"usr/s"
        assert contents(entry, data) == content_of(100, pieces)


def test_size_of_the_data_may_be_that_of_pax(tar: Tar) -> None:
    whole = sparse(tar, "1.0", 1000, [(900, b"x" * 100)], records={"size": b"612"})
    archive = whole[:1024] + tar.header(b"a", size=7) + whole[1536:]
    entry, data = read(tar, archive)
    assert contents(entry, data) == content_of(1000, [(900, b"x" * 100)])


def test_without_a_size_the_file_is_as_large_as_the_data(tar: Tar) -> None:
    entry, _ = read(tar, sparse(tar, "0.1", 9, [(0, b"x" * 70)], records={"GNU.sparse.size": None}))
    assert entry.size == 70


@pytest.mark.parametrize(
    "records",
    [{"GNU.sparse.name": b"n"}, {"GNU.sparse.size": b"9"}, {"GNU.sparse.realsize": b"9"}, {"GNU.sparse.map": b""}],
)
def test_a_member_without_a_map_is_none(tar: Tar, records: dict[str, bytes]) -> None:
    archive = tar.pax(*((key.encode(), value) for key, value in records.items())) + tar.member(b"a", b"x" * 70)
    assert [(entry.path, entry.size) for entry in tar.entries(archive + tar.end)] == [(b"a", 70)]


def numbered(*numbers: int) -> bytes:
    return b"".join(b"%d\n" % number for number in numbers)


def lies(tar: Tar) -> dict[str, tuple[bytes, str]]:
    ten, one = [(5, b"x" * 10)], "1.0"
    made = {
        "1.0, no map": (sparse(tar, one, 100, ten, map=bytes(512)), "do not begin with a map"),
        "1.0, no number": (sparse(tar, one, 100, ten, map=b"one\n5\n10\n"), "no number"),
        "1.0, number without end": (sparse(tar, one, 100, ten, map=b"1" * 600), "do not begin with a map"),
        "1.0, negative": (sparse(tar, one, 100, ten, map=b"1\n-5\n10\n"), "no number"),
        "1.0, signed": (sparse(tar, one, 100, ten, map=b"1\n+5\n10\n"), "no number"),
        "1.0, of 64 bits": (sparse(tar, one, 100, ten, map=numbered(1, 1 << 63, 10)), "no number of 63 bits"),
        "1.0, empty number": (sparse(tar, one, 100, ten, map=b"1\n\n10\n"), "no number"),
        "1.0, more than there is": (sparse(tar, one, 100, ten, map=numbered(9, 5, 10)), "does not end"),
        "1.0, absurdly many": (sparse(tar, one, 100, ten, map=numbered(1 << 40, 5, 10)), "more than"),
        "1.0, less data": (sparse(tar, one, 100, ten, map=numbered(1, 5, 11)), "10 bytes of data and a map of 11"),
        "1.0, more data": (sparse(tar, one, 100, ten, map=numbered(1, 5, 9)), "10 bytes of data and a map of 9"),
        "1.0, beyond the end": (sparse(tar, one, 14, ten), "10 bytes at 5"),
        "1.0, overlap": (sparse(tar, one, 100, [(0, b"x" * 10), (9, b"y")]), "1 bytes at 9, behind 10"),
        "1.0, no data": (
            tar.pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")) + tar.header(),
            "hold no map",
        ),
        "0.0, out of turn": (
            tar.pax((b"GNU.sparse.numbytes", b"1"), (b"GNU.sparse.offset", b"1")) + tar.member(b"a", b"x"),
            "do not take turns",
        ),
        "0.0, half a pair": (tar.pax((b"GNU.sparse.offset", b"1")) + tar.member(b"a", b"x"), "no pairs"),
        "0.1, half a pair": (tar.pax((b"GNU.sparse.map", b"1")) + tar.member(b"a", b"x"), "no pairs"),
        "0.1, empty number": (tar.pax((b"GNU.sparse.map", b",")) + tar.member(b"a", b"x"), "no number"),
        "unknown version": (sparse(tar, one, 9, ten, records={"GNU.sparse.minor": b"1"}), "which is not known"),
        "no version": (sparse(tar, one, 9, ten, records={"GNU.sparse.minor": None}), "which is not known"),
        "directory": (sparse(tar, "0.1", 0, [], kind=b"5"), "no file"),
        "link": (sparse(tar, "0.1", 0, [(0, b"")], kind=b"1", link=b"x"), "no file"),
    }
    for form in ("0.0", "0.1"):
        made[f"{form}, number of pieces"] = (
            sparse(tar, form, 100, ten, records={"GNU.sparse.numblocks": b"2"}),
            "of 2 pieces",
        )
        made[f"{form}, number of pieces no number"] = (
            sparse(tar, form, 100, ten, records={"GNU.sparse.numblocks": b"x"}),
            "no number",
        )
        made[f"{form}, size no number"] = sparse(tar, form, 100, ten, records={"GNU.sparse.size": b"-1"}), "no number"
        made[f"{form}, beyond the end"] = sparse(tar, form, 14, ten), "10 bytes at 5"
        made[f"{form}, overlap"] = sparse(tar, form, 100, [(0, b"x" * 10), (9, b"y")]), "1 bytes at 9, behind 10"
        made[f"{form}, descending"] = sparse(tar, form, 100, [(50, b"x"), (0, b"y")]), "1 bytes at 0, behind 51"
        less = sparse(tar, form, 100, ten)[:-1024] + tar.member(b"a", b"x" * 9)
        made[f"{form}, less data"] = less, "9 bytes of data and a map of 10"
    return made


@pytest.mark.parametrize("piece", [0, 700])
@pytest.mark.parametrize("carry", [64, 1 << 20])
def test_maps_that_lie_are_refused(tar: Tar, piece: int, carry: int) -> None:
    for name, (archive, reason) in lies(tar).items():
        with pytest.raises(TarError) as caught:
            tar.chunks(archive + tar.end, piece, carry_limit=carry, piece_size=4096)
        assert reason in caught.value.reason, name
        assert caught.value.offset in range(0, 2049, 512), name


@pytest.mark.parametrize("form", FORMS)
def test_the_limit_is_that_of_the_file_not_of_its_data(tar: Tar, form: str) -> None:
    archive = sparse(tar, form, 1_000_001, [(0, b"x")]) + tar.end
    with pytest.raises(TarError, match="a member of 1000001 bytes, more than 1000000"):
        tar.chunks(archive, max_file_size=1_000_000)
    assert tar.entries(archive, max_file_size=1_000_001)[0].size == 1_000_001


def test_a_map_has_a_mebibyte_at_most(tar: Tar) -> None:
    count = (MAX_MAP - 20) // 8
    numbers = numbered(count) + b"100\n000\n" * count
    entry, _ = read(tar, sparse(tar, "1.0", 100, [], map=numbers + bytes(-len(numbers) % 512)))
    assert entry.size == 100
    for piece in (0, 100_000):
        longer = numbered(count + 10) + b"100\n000\n" * (count + 10)
        with pytest.raises(TarError, match="does not end"):
            tar.chunks(sparse(tar, "1.0", 100, [], map=longer) + tar.end, piece)


PIECES = st.lists(
    st.tuples(st.sampled_from([0, 1, 511, 512, 4096, 70_000]), st.sampled_from([0, 1, 63, 65, 512, 5000])), max_size=6
)


def placed(gaps: list[tuple[int, int]]) -> Pieces:
    at, pieces = 0, []
    for number, (hole, length) in enumerate(gaps):
        pieces.append((at + hole, bytes([65 + number]) * length))
        at += hole + length
    return pieces


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FORMS), PIECES, st.sampled_from([0, 1, 5000]), st.integers(100, 5000))
def test_any_map_is_read_as_python_reads_it(
    tar: Tar, form: str, gaps: list[tuple[int, int]], tail: int, piece: int
) -> None:
    pieces = placed(gaps)
    size = tail + (pieces[-1][0] + len(pieces[-1][1]) if pieces else 0)
    archive = sparse(tar, form, size, pieces)
    entry, data = read(tar, archive, piece)
    assert contents(entry, data) == content_of(size, pieces)
    if pieces:  # tarfile takes a file without pieces in the forms 0.0 and 0.1 for an empty one
        with tarfile.open(fileobj=io.BytesIO(archive + tar.end)) as reference:
            file = reference.extractfile(reference.getmembers()[0])
            assert file is not None
            assert file.read() == content_of(size, pieces)


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
@pytest.mark.parametrize("form", FORMS)
def test_other_programs_unpack_the_same(tar: Tar, form: str, program: str, tmp_path: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on PATH")
    for number, (size, pieces) in enumerate(SHAPES.values()):
        odd = any(len(data) % 512 for _, data in pieces[:-1] if data)  # GNU tar fills each piece up to a block
        if (odd and program == "tar") or not pieces:
            continue
        place = tmp_path / str(number)
        place.mkdir()
        archive = sparse(tar, form, size, [*pieces, (size, b"")]) + tar.end  # where the last hole ends
        subprocess.run([program, "-x", "-f", "-", "-C", place], input=archive, check=True, capture_output=True)
        assert (place / "usr/s").read_bytes() == content_of(size, pieces)


# -- in a repository ---------------------------------------------------------------------------


@pytest.fixture(params=[Algorithm.SHA256, Algorithm.SHA512], ids=["sha256", "sha512"])
def repo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", algorithm=request.param, insecure=True) as made:
        yield made


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image_of(path: Path, *layers: bytes) -> str:
    writer = OciLayoutWriter(path)
    writer.add_image([writer.add_layer(layer) for layer in layers], tag="t", platform=PLATFORM)
    return f"oci:{path}:t"


def layer_of(tar: Tar, form: str) -> bytes:
    members = [
        sparse(tar, form, size, pieces, b"usr/%d" % number) for number, (size, pieces) in enumerate(SHAPES.values())
    ]
    links = [tar.header(b"usr/link%d" % number, b"1", link=b"usr/%d" % number) for number in range(len(SHAPES))]
    return tar.header(b"usr", b"5", mode=0o755) + b"".join(members + links) + tar.end


def check_tree(repo: Repository, tree: Any, *, stored: bool = True) -> None:
    for number, (size, pieces) in enumerate(SHAPES.values()):
        inode, expected = find(tree, b"/usr/%d" % number), content_of(size, pieces)
        assert find(tree, b"/usr/link%d" % number) is inode
        if size <= 64:
            assert isinstance(inode, InlineFile)
            assert inode.content == expected
            continue
        assert isinstance(inode, ExternalFile)
        assert (inode.size, inode.digest) == (size, fsverity.digest(expected, repo.algorithm))
        if stored:
            assert repo.read_object(ObjectId(inode.digest or b"")) == expected


@pytest.mark.anyio
@pytest.mark.parametrize("form", FORMS)
async def test_image_refers_to_the_whole_file_and_the_archive_comes_back(
    tar: Tar, form: str, repo: Repository, tmp_path: Path
) -> None:
    archive = layer_of(tar, form)
    result = await pull(repo, image_of(tmp_path / "image", archive), tag="t", platform=PLATFORM)
    assert result.image_id is not None
    check_tree(repo, image_to_tree(repo.read_object(result.image_id)))
    assert b"".join(layer_content(repo, sha256(archive))) == archive
    assert repo.fsck().ok
    repo.gc()
    assert repo.fsck().ok
    check_tree(repo, image_to_tree(repo.read_object(result.image_id)))


@pytest.mark.anyio
async def test_image_can_be_made_later_from_the_stream(tar: Tar, repo: Repository, tmp_path: Path) -> None:
    archive = layer_of(tar, "1.0")
    at_once = Repository.init(tmp_path / "other", algorithm=repo.algorithm, insecure=True)
    with at_once:
        expected = (await pull(at_once, image_of(tmp_path / "image", archive), tag="t", platform=PLATFORM)).image_id
    await pull(repo, f"oci:{tmp_path}/image:t", tag="t", platform=PLATFORM, make_images=False)
    objects = sum(1 for path in (tmp_path / "repo/objects").rglob("*") if path.is_file())
    check_tree(repo, erofs_images.image_tree(repo, open_image(repo, "t"), None), stored=False)
    assert sum(1 for path in (tmp_path / "repo/objects").rglob("*") if path.is_file()) == objects
    image = erofs_images.ensure_images(repo, "t")
    assert list(image.images.values()) == [expected]
    check_tree(repo, image_to_tree(repo.read_object(expected or ObjectId(b""))))


@pytest.mark.anyio
async def test_members_are_listed_as_the_files_that_they_mean(tar: Tar, repo: Repository) -> None:
    archive = sparse(tar, "1.0", 65_536, [(30_000, b"data")]) + sparse(tar, "0.1", 10, [(8, b"me")], b"small") + tar.end
    await import_layer(repo, sha256(archive), async_chunks(archive))
    large = fsverity.digest(content_of(65_536, [(30_000, b"data")]), repo.algorithm)
    lines = list(layer_dump(repo, sha256(archive)))
    assert lines[0].split(b" ")[:3] == [b"/usr/s", b"65536", b"100644"]
    assert large.hex().encode() in lines[0]
    assert rb"\x00\x00\x00\x00\x00\x00\x00\x00me" in lines[1]
    info = layer_info(repo, sha256(archive))
    assert (info.size, info.entries, info.external_objects, info.external_size) == (len(archive), 2, 1, 516)
    assert [entry.size for entry in layer_entries(repo, sha256(archive))] == [65_536, 10]


async def async_chunks(data: bytes) -> Any:
    for at in range(0, len(data), 100_000):
        yield data[at : at + 100_000]


@pytest.mark.anyio
async def test_holes_take_neither_memory_nor_space(tar: Tar, repo: Repository, tmp_path: Path) -> None:
    size = 1 << 40
    archive = tar.header(b"usr", b"5") + sparse(tar, "1.0", size, [(1 << 39, b"middle"), (size, b"")]) + tar.end
    reference = image_of(tmp_path / "image", archive)
    tracemalloc.start()
    start = time.monotonic()
    result = await pull(repo, reference, tag="t", platform=PLATFORM)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    assert time.monotonic() - start < 60
    inode = find(image_to_tree(repo.read_object(result.image_id or ObjectId(b""))), b"/usr/s")
    assert isinstance(inode, ExternalFile)
    path = tmp_path / "repo/objects" / ObjectId(inode.digest or b"").path
    assert (inode.size, path.stat().st_size) == (size, size)
    assert path.stat().st_blocks * 512 < 1 << 20
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 10, (1 << 39) - 2) == b"\0\0middle\0\0"


@pytest.mark.anyio
async def test_pull_refuses_files_beyond_the_limit(tar: Tar, repo: Repository, tmp_path: Path) -> None:
    reference = image_of(tmp_path / "image", sparse(tar, "1.0", 1 << 30, [(0, b"x")]) + tar.end)
    with pytest.raises(TarError, match="more than 1000000"):
        await pull(repo, reference, tag="t", platform=PLATFORM, limits=Limits(max_file_size=1_000_000))


@pytest.mark.anyio
async def test_data_that_have_changed_are_not_taken(tar: Tar, repo: Repository, tmp_path: Path) -> None:
    archive = tar.header(b"usr", b"5") + sparse(tar, "1.0", 65_536, [(30_000, b"data" * 100)]) + tar.end
    await pull(repo, image_of(tmp_path / "image", archive), tag="t", platform=PLATFORM, make_images=False)
    (entry,) = [entry for entry in layer_entries(repo, sha256(archive)) if entry.size]
    assert isinstance(entry.content, SparseContent)
    path = tmp_path / "repo/objects" / ObjectId(entry.content.stored).path
    path.chmod(0o644)
    good = path.read_bytes()
    for content, error in ((good[:-1] + b"X", DigestMismatchError), (b"9" * len(good), OciError)):
        path.write_bytes(content)
        with pytest.raises(error):
            erofs_images.image_tree(repo, open_image(repo, "t"))


def test_a_tree_without_a_repository_has_no_sparse_files(tar: Tar) -> None:
    entries = tar.entries(sparse(tar, "0.1", 100, [(0, b"x")]) + tar.end)
    with pytest.raises(OciError, match=r"'usr/s'.*a sparse file"):
        tree_from_layers([entries])
    found: Callable[[SparseContent], bytes] = lambda content: content.stored + bytes(99)  # noqa: E731
    assert find(tree_from_layers([entries], None, sparse=found), b"/usr/s") is not None
