"""How images outside the repository are named on the command line: references, and plain paths, which are sniffed."""

from __future__ import annotations

import os
from typing import Any

import click

from .hints import meant_reference

__all__ = ["STANDARD_INPUT", "ImageReference", "sniffed"]

STANDARD_INPUT = "-"


class ImageReference(click.ParamType[str]):
    """A reference of any transport; the path of an archive or an image directory; or ``-``, standard input."""

    name = "image"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return *value* if it is a reference to an image, else fail with a hint."""
        from ..errors import InvalidNameError
        from ..oci.sources.opening import check_reference

        reference = sniffed(str(value))
        try:
            check_reference(reference)
        except InvalidNameError as error:
            meant = meant_reference(reference)
            self.fail(f"{error}. Did you mean {meant!r}?" if meant else str(error), param, ctx)
        return reference


def sniffed(text: str) -> str:
    """The reference that *text* is, or that the file or directory at that path stands for, by what is in it."""
    from ..oci.sources.opening import is_reference

    if is_reference(text) and not os.path.exists(text):
        return text
    path, colon, rest = text, "", ""
    if text != STANDARD_INPUT and not os.path.exists(text):
        path, colon, rest = text.partition(":")
    if os.path.isfile(os.path.join(path, "oci-layout")):
        return f"oci:{path}{colon}{rest}"
    if os.path.isdir(path):
        return f"dir:{path}" if os.path.isfile(os.path.join(path, "manifest.json")) else text
    if path == STANDARD_INPUT or os.path.exists(path):
        return f"archive:{path}{colon}{rest}"
    return text
