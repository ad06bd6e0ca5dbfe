"""Kernel arguments: what is written, what is read, and what is refused."""

from __future__ import annotations

import re

import pytest

from composefs_async.boot import Karg, choose_karg, format_karg, parse_kargs, replace_kargs, split_arguments
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import BootError

A, B = "ab" * 32, "cd" * 64
SHA256, SHA512 = ObjectId.from_hex(A), ObjectId.from_hex(B)


@pytest.mark.parametrize(
    ("image", "version", "options", "expected"),
    [
        (SHA256, 1, {}, f"composefs.digest=v1-sha256-12:{A}"),
        (SHA256, 0, {"insecure": True}, f"composefs.digest=?v1-sha256-12:{A}"),
        (SHA512, 1, {}, f"composefs.digest=v1-sha512-12:{B}"),
        (SHA512, 2, {}, f"composefs={B}"),
        (SHA512, 2, {"insecure": True, "form": "composefs"}, f"composefs=?{B}"),
        (SHA512, 1, {"form": "composefs"}, f"composefs={B}"),
        (SHA256, 1, {"form": "both", "insecure": True}, f"composefs.digest=?v1-sha256-12:{A} composefs=?{A}"),
    ],
)
def test_what_is_written_is_read(image: ObjectId, version: int, options: dict[str, object], expected: str) -> None:
    text = format_karg(image, version, **options)  # type: ignore[arg-type]
    assert text == expected
    for karg in parse_kargs(text.encode()):
        assert (karg.id, karg.insecure) == (image, options.get("insecure", False))
        assert karg.version == (1 if str(karg).startswith("composefs.digest") else None)


@pytest.mark.parametrize("form", ["composefs.digest", "both"])
def test_layout_2_has_one_form_that_is_written(form: str) -> None:
    with pytest.raises(BootError, match="composefs= alone"):
        format_karg(SHA256, 2, form=form)  # type: ignore[arg-type]
    with pytest.raises(BootError, match="no layout 3"):
        format_karg(SHA256, 3)
    assert parse_kargs(f"composefs.digest=v2-sha256-12:{A}".encode()) == [Karg(SHA256, 2, False)]


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (b"", []),
        (b" \t\n\0\0 ", []),
        (b"quiet  rw\troot=x\r\n", [b"quiet", b"rw", b"root=x"]),
        (b'a="b c" "d e"f g" h', [b'a="b c"', b'"d e"f', b'g" h']),
        (b"a\\ b", [b"a\\", b"b"]),
        (b"a\x0bb\x0cc\0", [b"a", b"b", b"c"]),
        (b"a \xff\0\n\0", [b"a", b"\xff"]),
    ],
)
def test_a_command_line_is_split_as_the_kernel_splits_it(command_line: bytes, expected: list[bytes]) -> None:
    assert split_arguments(command_line) == expected


def test_arguments_that_only_look_alike_do_not_count() -> None:
    line = f'xcomposefs={A} "composefs={A}" composefs.other=1 a="x composefs={A}" composefs composefs.digest'
    assert parse_kargs(line.encode()) == []


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("composefs=", "0 characters"),
        ("composefs=?", "0 characters"),
        (f"composefs={A[:-1]}", "63 characters"),
        (f"composefs=??{A}", "65 characters"),
        (f"composefs=sha256:{A}", "71 characters"),
        (f'composefs="{A}"', "66 characters"),
        (f"composefs={'g' * 64}", "64 characters"),
        (f"composefs.digest={A}", "is not composefs.digest=v1"),
        (f"composefs.digest=v3-sha256-12:{A}", "is not composefs.digest=v1"),
        (f"composefs.digest=v1-sha256-16:{A}", "is not composefs.digest=v1"),
        (f"composefs.digest=v1-sha1-12:{A}", "is not composefs.digest=v1"),
        (f"composefs.digest=v1-sha512-12:{A}", "64 digits are no sha512"),
        (f"composefs.digest=v1-sha256-12:{A}0", "65 characters"),
        (f"composefs={A}\0x", "a NUL byte at offset 74"),
        ("x" * (1 << 20) + "y", "more than"),
    ],
)
def test_a_malformed_argument_is_refused(argument: str, words: str) -> None:
    with pytest.raises(BootError, match=re.escape(words)) as caught:
        parse_kargs(f"{argument}\n".encode())
    assert len(str(caught.value)) < 300


def test_a_nul_right_behind_the_digest_does_not_count() -> None:
    assert parse_kargs(f"quiet composefs={B}\0".encode()) == [Karg(SHA512, None, False)]


def test_which_argument_libraries_go_by() -> None:
    line = f"composefs={A} composefs.digest=v1-sha512-12:{B} composefs.digest=?v2-sha256-12:{A} composefs=?{B}"
    kargs = parse_kargs(line.encode())
    assert choose_karg(kargs, Algorithm.SHA256) == Karg(SHA256, 2, True)
    assert choose_karg(kargs, Algorithm.SHA512) == Karg(SHA512, 1, False)
    assert choose_karg(kargs[:1], Algorithm.SHA256) == kargs[0]
    assert choose_karg(kargs[:1], Algorithm.SHA512) is None


@pytest.mark.parametrize(
    ("before", "extra", "after"),
    [
        ("", [], "K"),
        ("quiet rw", [], "quiet rw K"),
        (f"composefs={A} quiet composefs.digest=v1-sha256-12:{A} rw composefs=broken", [], "quiet rw K"),
        ("root=a quiet", ["root=b", "quiet", "new"], "root=b quiet K new"),
        ('opt="a b" rw=1', ["rw"], 'opt="a b" rw=1 K rw'),
    ],
)
def test_only_one_image_is_named_afterwards(before: str, extra: list[str], after: str) -> None:
    assert replace_kargs(before, "K", extra) == after
