"""What a shell is offered where the name of an image is wanted: the tags of the repository."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..errors import ComposefsError
from ..naming import TAGS, decode_tag
from .context import Settings

__all__ = ["ImageName"]


class ImageName(click.ParamType[str]):
    """Text, completed by the tags that are there."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return *value* as it is; the command looks it up."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the tags of the repository that begin with *incomplete*; none on errors."""
        settings = Settings.of_options(ctx.find_root().params)
        with suppress(ComposefsError, OSError, click.UsageError), settings.open() as repo:
            names = (decode_tag(reference) for reference, _ in repo.named_streams(TAGS) if "/" not in reference)
            return [CompletionItem(each) for each in sorted(names) if each.startswith(incomplete)]
        return []
