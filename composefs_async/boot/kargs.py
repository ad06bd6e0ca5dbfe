"""Kernel arguments that say which image a machine boots; no I/O.

Owns ``composefs=`` and ``composefs.digest=``, and splitting a command line as the kernel does: at white space outside
of double quotes, without escapes.  Does not own where a command line comes from (`uki`, `entries`).

===================================  =================================================
argument                             meaning
===================================  =================================================
``composefs.digest=v1-sha256-12:H``  an image in layout 0 or 1; ``v1-sha512-12`` likewise
``composefs.digest=v2-…``            one in layout 2; read, never written
``composefs=H``                      of any layout; what layout 2 and bootc write
``?`` before the value               fs-verity is not required
===================================  =================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..digest import Algorithm, ObjectId
from ..errors import BootError, FormatError

__all__ = [
    "FORMS",
    "Form",
    "Karg",
    "choose_karg",
    "format_karg",
    "parse_kargs",
    "replace_kargs",
    "require_form",
    "split_arguments",
]

Form = Literal["composefs.digest", "composefs", "both"]
FORMS: Final[tuple[Form, ...]] = ("composefs.digest", "composefs", "both")

COMMAND_LINE_LIMIT: Final = 1 << 20
"""Bytes of a command line that is read; kernels take some thousand."""

_PLAIN: Final = b"composefs="
_TAGGED: Final = b"composefs.digest="
_SPACE: Final = b" \t\n\r\f\v"
_value = re.compile(rb"v([0-9])-(sha256|sha512)-([0-9]{1,2}):([0-9a-fA-F]*)")
_hexadecimal = re.compile(rb"[0-9a-fA-F]*")
_BLOCK: Final = b"12"  # the binary logarithm of fs-verity's block size


@dataclass(frozen=True, slots=True)
class Karg:
    """One argument."""

    id: ObjectId
    version: int | None
    """Version, as ``composefs.digest=`` says it: 1 for the layouts 0 and 1, or 2; None for ``composefs=``."""
    insecure: bool

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm by which the image is named."""
        return self.id.algorithm

    def __str__(self) -> str:
        mark = "?" if self.insecure else ""
        if self.version is None:
            return f"composefs={mark}{self.id.hex()}"
        return f"composefs.digest={mark}v{self.version}-{self.algorithm.value}-12:{self.id.hex()}"


def format_karg(image: ObjectId, version: int, *, insecure: bool = False, form: Form | None = None) -> str:
    """The argument for an image in layout *version* (0, 1 or 2), without a line end.

    Args:
        insecure: do not require fs-verity.
        form: without it, what fits the layout: ``composefs`` for 2, otherwise ``composefs.digest``.

    Raises:
        BootError: layout 2 has no form ``composefs.digest`` that is written.
    """
    require_form(version, form)
    chosen = form or ("composefs" if version == 2 else "composefs.digest")
    tagged, plain = Karg(image, 1, insecure), Karg(image, None, insecure)
    return {"composefs.digest": f"{tagged}", "composefs": f"{plain}", "both": f"{tagged} {plain}"}[chosen]


def require_form(version: int, form: Form | None) -> None:
    """Refuse what `format_karg` would refuse, before the image is there.

    Raises:
        BootError
    """
    if version not in (0, 1, 2):
        raise BootError("kernel argument", f"there is no layout {version}, only 0, 1 and 2")
    if version == 2 and form in ("composefs.digest", "both"):
        raise BootError("kernel argument", "an image in layout 2 is named by composefs= alone")


def split_arguments(command_line: bytes) -> list[bytes]:
    """The arguments of a command line; NULs and white space at its end do not count.

    Raises:
        BootError: it is too long, or has a NUL elsewhere, so that programs disagree on where it ends.
    """
    if len(command_line) > COMMAND_LINE_LIMIT:
        raise BootError("kernel command line", f"{len(command_line)} bytes are more than {COMMAND_LINE_LIMIT}")
    text = command_line.rstrip(b"\0" + _SPACE)
    if b"\0" in text:
        raise BootError("kernel command line", f"a NUL byte at offset {text.index(0)}, before its end")
    found, start, quoted = [], 0, False
    for at in range(len(text) + 1):
        byte = text[at : at + 1]
        if byte == b'"':
            quoted = not quoted
        elif not byte or (byte in _SPACE and not quoted):
            if at > start:
                found.append(text[start:at])
            start = at + 1
    return found


def parse_kargs(command_line: bytes) -> list[Karg]:
    """Every argument that names an image, in order.

    Raises:
        BootError: one is malformed, which the program that mounts the root would not bear either.
    """
    return [karg for token in split_arguments(command_line) if (karg := _parse(token)) is not None]


def choose_karg(kargs: Iterable[Karg], algorithm: Algorithm) -> Karg | None:
    """The argument that the libraries go by: the first ``composefs.digest=`` of *algorithm*, else ``composefs=``."""
    of_algorithm = [karg for karg in kargs if karg.algorithm is algorithm]
    tagged = (karg for karg in of_algorithm if karg.version is not None)
    return next(tagged, next((karg for karg in of_algorithm if karg.version is None), None))


def replace_kargs(command_line: str, karg: str, extra: Sequence[str] = ()) -> str:
    """*command_line* with *karg*, without any other argument that names an image, and with *extra*.

    An argument of *extra* takes the place of the first one with the same key.
    """
    text = command_line.encode(errors="surrogateescape")
    tokens = [token for token in split_arguments(text) if not token.startswith((_PLAIN, _TAGGED))]
    tokens.append(karg.encode())
    for argument in extra:
        raw = argument.encode(errors="surrogateescape")
        key, equals, _ = raw.partition(b"=")
        fits = [at for at, token in enumerate(tokens) if token == raw or (equals and token.startswith(key + b"="))]
        if fits:
            tokens[fits[0]] = raw
        else:
            tokens.append(raw)
    return b" ".join(tokens).decode(errors="surrogateescape")


def _parse(token: bytes) -> Karg | None:
    if token.startswith(_PLAIN):
        value = token.removeprefix(_PLAIN)
        digits = value.removeprefix(b"?")
        return Karg(_id(token, digits), None, digits is not value)
    if not token.startswith(_TAGGED):
        return None
    value = token.removeprefix(_TAGGED)
    rest = value.removeprefix(b"?")
    found = _value.fullmatch(rest)
    if not found or found[1] not in (b"1", b"2") or found[3] != _BLOCK:
        raise BootError(f"kernel argument {_shown(token)}", "it is not composefs.digest=v1-sha256-12:… or -sha512-")
    image = _id(token, found[4])
    if image.algorithm.value.encode() != found[2]:
        raise BootError(f"kernel argument {_shown(token)}", f"{len(found[4])} digits are no {found[2].decode()}")
    return Karg(image, int(found[1]), rest is not value)


def _id(token: bytes, digits: bytes) -> ObjectId:
    try:
        if not _hexadecimal.fullmatch(digits):
            raise FormatError
        return ObjectId.from_hex(digits.decode())
    except FormatError:
        reason = f"{len(digits)} characters are no digest, which has 64 or 128 hexadecimal digits"
        raise BootError(f"kernel argument {_shown(token)}", reason) from None


def _shown(token: bytes) -> str:
    text = token[:60].decode(errors="backslashreplace")
    return repr(text) + ("…" if len(token) > 60 else "")
