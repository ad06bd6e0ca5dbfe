"""Digests of content that is in memory."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefs_async import _native, fsverity
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.fsverity import _python

ALGORITHMS = list(Algorithm)


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


# All but the empty file confirmed with `fsverity digest`, half of them measured by a kernel.
KNOWN = [
    (
        b"",
        "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95",
        "ccf9e5aea1c2a64efa2f2354a6024b90dffde6bbc017825045dce374474e13d1"
        "0adb9dadcc6ca8e17a3c075fbd31336e8f266ae6fa93a6c3bed66f9e784e5abf",
    ),
    (
        b"hello world",
        "1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64",
        "18430270729d162d4e469daca123ae61893db4b0583d8f7081e3bf4f92b88ba5"
        "14e7982f10733fb6aa895195c5ae8fd2eb2c47a8be05513ce5a0c51a6f570409",
    ),
    (
        bytes(4095),
        "5372beb83c78537c8970c8361e3254119fafdf1763854ecd57d3f0fe2da7c719",
        "e2397c3e051f7ab08e0133d71ef9e62cf1ce6dccefa097af3658b0ecbfe532f2"
        "f2968787d0d693ad96a1053610d7aac3b5743d13f323a69f85e804d5fca5dc27",
    ),
    (
        bytes(4096),
        "babc284ee4ffe7f449377fbf6692715b43aec7bc39c094a95878904d34bac97e",
        "928922686c4caf32175f5236a7f964e9925d10a74dc6d8344a8bd08b23c228ff"
        "5792573987d7895f628f39c4f4ebe39a7367d7aeb16aaa0cd324ac1d53664e61",
    ),
    (
        bytes(4097),
        "093756e4ea9683329106d4a16982682ed182c14bf076463a9e7f97305cbac743",
        "4339f5da3788e60fa6857bd7040fadccd6f125b2c2334777eb14ed55179ad887"
        "d9131e9ce78485afc23051392b71e015528abbb7be07ed7073c56480b15cedf1",
    ),
    (
        pattern(4096),
        "13e9b8848ae484a36acb3f3cac0ceb2f7601e96633d15c92f9bd3dd44e492157",
        "7bf994782b368ecc4e20ce9144701b1a30524d5bbc90987625de22eebc8cf370"
        "ec846c1b5e77f9099c6f6cfc0b590359b9ac8083a43e5f7fa5ec05a25dab6e03",
    ),
    (
        pattern(4097),
        "b0d074abef4d544404facfab6ba242f6a8ccbde90f1325cd286f3c8aa8d0f8aa",
        "97a1e45daaa69bd7b31908cf835318ba36476984ffa7f4a5913c0187db04ce5f"
        "19dc80306f493741d4ad1cdd212b7a9d2691aa3d42563d35471363fbb0fc7f1c",
    ),
    (
        pattern(524288),
        "d82861203d50ae9b60948504a704f35f5118bd229aeb1a22d6dae47b1767c4c4",
        "7b3d245f9dc3169e2f721fa32f735149ace066408e783d5d79e21f9761e2efc3"
        "9fb016b0a94e0a00af41a32fa5283b189899b0f27f91d013be745709678c0278",
    ),
    (
        pattern(524289),
        "4dc6905041c9c4ee73e13b53f63f5d289c46da359b664a965ead7f8cc4d799d4",
        "60b58fe0f1e5198627ffb6be091eef60edce9b4ff6ee43884ba78a831ecdecc1"
        "572729afc5ebeb09101e3f102c9d7142ab4f66216198d85f8c7194eca7885bb2",
    ),
    (
        pattern(2**20 + 1),
        "89f2376c7699bfe271478a8e3356d434d4a35784edce47fac74c8e5bc7456c1d",
        "fcaffb1aaac7a827418e03bfde3a626f8a58abe522590c4fa6a9bd7edda64111"
        "1ae208857cf02a6a5b8dd433dbb9c8cfc5d030133d33cc2856e36776ccb23fc9",
    ),
]
NAMES = ["empty", "hello", "zero-4095", "zero-4096", "zero-4097", "4096", "4097", "524288", "524289", "1MiB+1"]

# Around blocks, whole levels of both algorithms, pieces, and the point where a level of the Hasher is folded twice.
SIZES = [
    *(0, 1, 63, 64, 65, 4095, 4096, 4097, 8192),
    *(64 * 4096 + extra for extra in (-1, 0, 1)),
    *(128 * 4096 + extra for extra in (-1, 0, 1, 4096, 4097)),
    *(256 * 4096 + extra for extra in (-1, 0, 1)),
    *(16 * 64 * 4096 + extra for extra in (0, 1)),
    *(16 * 128 * 4096 + extra for extra in (0, 1)),
    64 * 64 * 4096 + 1,
]
CONTENT = pattern(max(SIZES))


def one_shot(size: int, algorithm: Algorithm) -> ObjectId:
    """The plainest way there is: whole levels, no folding."""
    level = _python.hash_blocks(CONTENT[:size], algorithm)
    return ObjectId(_python.digest_of_level(level, size, algorithm, _python.hash_blocks))


@pytest.mark.parametrize(("content", "sha256", "sha512"), KNOWN, ids=NAMES)
def test_digest_is_what_the_kernel_measures(fsverity: ModuleType, content: bytes, sha256: str, sha512: str) -> None:
    assert [str(fsverity.digest(content, algorithm)) for algorithm in ALGORITHMS] == [sha256, sha512]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES)
def test_digest_of_sizes_around_every_boundary(fsverity: ModuleType, size: int, algorithm: Algorithm) -> None:
    view = memoryview(CONTENT)[:size]
    expected = one_shot(size, algorithm)
    starts = range(0, size, fsverity.PIECE)
    pieces = [fsverity.piece_hashes(view[at : at + fsverity.PIECE], algorithm) for at in starts]
    assert fsverity.digest(view, algorithm) == expected
    assert fsverity.digest_from_pieces(pieces, size, algorithm) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_digest_many_equals_one_by_one(fsverity: ModuleType, algorithm: Algorithm) -> None:
    items = [memoryview(CONTENT)[:size] for size in SIZES] * 2 + [b"", bytearray(b"hello world")] * 300
    assert fsverity.digest_many(items, algorithm) == [_python.digest(item, algorithm) for item in items]
    assert fsverity.digest_many([], algorithm) == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_results_are_object_ids(fsverity: ModuleType, algorithm: Algorithm) -> None:
    hasher = fsverity.Hasher(algorithm)
    results = [
        fsverity.digest(b"x", algorithm),
        fsverity.digest_from_pieces([fsverity.piece_hashes(b"x", algorithm)], 1, algorithm),
        *fsverity.digest_many([b"x"], algorithm),
        hasher.id(),
    ]
    assert [type(result) for result in results] == [ObjectId] * 4
    assert type(hasher.digest()) is bytes


@given(data=st.data())
def test_hasher_is_not_misled_by_the_sizes_of_pieces(data: st.DataObject) -> None:
    algorithm = data.draw(st.sampled_from(ALGORITHMS))
    size = data.draw(st.sampled_from(SIZES[:20]))
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=12)))
    hasher = fsverity.Hasher(algorithm)
    for start, end in zip([0, *cuts], [*cuts, size], strict=True):
        hasher.update(memoryview(CONTENT)[start:end])
    assert (hasher.size, hasher.id()) == (size, one_shot(size, algorithm))


@pytest.mark.parametrize("step", [1000, 4096, 65536, 2**20 + 1])
def test_hasher_fed_with_equal_pieces(fsverity: ModuleType, step: int) -> None:
    for algorithm in ALGORITHMS:
        hasher = fsverity.Hasher(algorithm)
        for at in range(0, 9_000_001, step):
            hasher.update(CONTENT[at : min(at + step, 9_000_001)])
        assert hasher.id() == one_shot(9_000_001, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hasher_gives_the_digest_so_far_and_goes_on(fsverity: ModuleType, algorithm: Algorithm) -> None:
    hasher = fsverity.Hasher(algorithm)
    for start, end in zip([0, *SIZES], SIZES, strict=False):
        if start > end:
            continue
        hasher.update(CONTENT[start:end])
        assert hasher.id() == one_shot(end, algorithm), end


def test_hasher_memory_stays_flat(fsverity: ModuleType) -> None:
    for algorithm in ALGORITHMS:
        hasher = fsverity.Hasher(algorithm)
        for _ in range(5):
            hasher.update(CONTENT)
            held = len(hasher._rest) + sum(len(level) for level in hasher._levels)
            assert held < fsverity.PIECE + 2 * 16 * 4096 + 4096


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [2**21, 2**21 + 1, 2**21 + 4097, 3 * 2**20])
def test_pieces_may_be_several_units_long(fsverity: ModuleType, size: int, algorithm: Algorithm) -> None:
    for units in (1, 2, 3, 8):
        step = units * fsverity.PIECE
        pieces = [fsverity.piece_hashes(CONTENT[at : min(at + step, size)], algorithm) for at in range(0, size, step)]
        assert fsverity.digest_from_pieces(pieces, size, algorithm) == one_shot(size, algorithm)


@pytest.mark.parametrize("size", [0, 1, 4096, 600_000, 1 << 40])
def test_pieces_that_do_not_add_up_are_refused(fsverity: ModuleType, size: int) -> None:
    piece = fsverity.piece_hashes(bytes(fsverity.PIECE), Algorithm.SHA512)
    with pytest.raises(ValueError, match=f"are not those of {size} bytes"):
        fsverity.digest_from_pieces([piece], size, Algorithm.SHA512)


@given(content=st.binary(max_size=20_000), algorithm=st.sampled_from(ALGORITHMS))
def test_both_implementations_agree(content: bytes, algorithm: Algorithm) -> None:
    assert fsverity.digest(content, algorithm) == _python.digest(content, algorithm)
    assert fsverity.piece_hashes(content, algorithm) == _python.piece_hashes(content, algorithm)


def test_descriptor_layout(fsverity: ModuleType) -> None:
    root = bytes(range(32))
    expected = b"\1\1\x0c\0" + bytes(4) + (4097).to_bytes(8, "little") + root + bytes(32 + 32 + 144)
    assert fsverity.descriptor(Algorithm.SHA256, 4097, root) == expected


@pytest.mark.parametrize(("size", "root"), [(1, bytes(31)), (1, bytes(64)), (-1, bytes(32)), (1 << 64, bytes(32))])
def test_descriptor_of_the_impossible_is_refused(fsverity: ModuleType, size: int, root: bytes) -> None:
    with pytest.raises(ValueError, match=r"a (root hash|file)"):
        fsverity.descriptor(Algorithm.SHA256, size, root)


@pytest.mark.parametrize("wrong", ["text", memoryview(bytes(100))[::2], None])
def test_what_is_not_contiguous_bytes_is_a_type_error(fsverity: ModuleType, wrong: object) -> None:
    for call in (
        fsverity.digest,
        fsverity.piece_hashes,
        lambda data, algorithm: fsverity.digest_many([data], algorithm),
    ):
        with pytest.raises((TypeError, BufferError)):
            call(wrong, Algorithm.SHA256)


def test_public_names_come_from_the_backend_in_force() -> None:
    module = {"native": "_compiled", "python": "_python"}[_native.BACKEND]
    assert fsverity.digest.__module__ == f"composefs_async.fsverity.{module}"
    assert all(hasattr(fsverity, name) for name in fsverity.__all__)


HOLES = [*SIZES[:20], 64 * 64 * 4096 + 1, 2 * 64 * 4096 + 4096, 3 * 128 * 4096 - 1]


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_holes_count_as_the_zeros_that_they_are(data: st.DataObject) -> None:
    algorithm = data.draw(st.sampled_from(ALGORITHMS))
    parts = data.draw(
        st.lists(st.tuples(st.sampled_from(HOLES), st.sampled_from([0, 1, 100, 4096, 5000, 600_000])), max_size=4)
    )
    hasher, whole = fsverity.Hasher(algorithm), bytearray()
    for hole, content in parts:
        hasher.update_zeros(hole)
        hasher.update(CONTENT[:content])
        whole += bytes(hole) + CONTENT[:content]
    assert (hasher.size, hasher.id()) == (len(whole), fsverity.digest(whole, algorithm))
    assert len(hasher._rest) < fsverity.PIECE


def test_holes_of_any_size_take_little(fsverity: ModuleType) -> None:
    for algorithm in ALGORITHMS:
        hasher, small = fsverity.Hasher(algorithm), fsverity.Hasher(algorithm)
        for count in ((1 << 62) - 5, 1 << 61, 12345):
            hasher.update_zeros(count)
            hasher.update(b"x")
            assert len(hasher._rest) + sum(len(level) for level in hasher._levels) < 13 * 16 * 4096
        small.update_zeros(1 << 62)
        assert hasher.id() != small.id()
