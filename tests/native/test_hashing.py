"""Two SHA-256 streams hashed in step, against hashlib."""

from __future__ import annotations

import hashlib
import random
from types import ModuleType

import pytest

SIZES = (0, 1, 55, 56, 63, 64, 65, 119, 1000, 20_000)


@pytest.fixture
def state(core: ModuleType) -> bytearray:
    found = core.sha256_pair()
    if found is None:
        pytest.skip("this processor has no SHA extensions")
    assert isinstance(found, bytearray)
    return found


def digests(pieces: list[bytes], other: bytes) -> tuple[bytes, bytes]:
    return hashlib.sha256(b"".join(pieces)).digest(), hashlib.sha256(other).digest()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("other", SIZES)
def test_any_two_lengths(core: ModuleType, state: bytearray, size: int, other: int) -> None:
    piece, rest = random.Random(size).randbytes(size), random.Random(-other).randbytes(other)
    core.sha256_pair_update(state, [piece], rest)
    assert core.sha256_pair_digests(state) == digests([piece], rest)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_size_in_any_number_of_calls(core: ModuleType, state: bytearray, seed: int) -> None:
    source = random.Random(seed)
    before, others = [], b""
    for _ in range(12):
        pieces = [source.randbytes(source.choice(SIZES)) for _ in range(source.randrange(5))]
        other = source.randbytes(source.choice(SIZES))
        core.sha256_pair_update(state, pieces, other)
        before += pieces
        others += other
        assert core.sha256_pair_digests(state) == digests(before, others)


def test_the_length_of_long_streams(core: ModuleType, state: bytearray) -> None:
    block, count = bytes(1 << 20), 520  # more than 2**32 bits
    expected = hashlib.sha256()
    for _ in range(count):
        core.sha256_pair_update(state, [block], block)
        expected.update(block)
    assert core.sha256_pair_digests(state) == (expected.digest(), expected.digest())


def test_what_cannot_be_is_refused(core: ModuleType, state: bytearray) -> None:
    with pytest.raises(ValueError, match="more than 64 pieces"):
        core.sha256_pair_update(state, [b""] * 65, b"")
    with pytest.raises(ValueError, match="not the state"):
        core.sha256_pair_update(bytearray(5), [], b"")
    with pytest.raises(ValueError, match="not the state"):
        core.sha256_pair_digests(bytearray(5))
    with pytest.raises(TypeError):
        core.sha256_pair_update(state, [7], b"")
    assert core.sha256_pair_digests(state) == digests([], b"")
