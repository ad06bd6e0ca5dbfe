"""Commands that make images: ``oci build``, ``oci config``."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from .context import Settings, as_json, print_json
from .oci_pull import PlatformType
from .progress import progress_option, showing

if TYPE_CHECKING:
    from ..oci.building import config as configs
    from ..oci.importing.pull_result import PullResult
    from ..progress import ProgressCallback
    from ..repository import Repository

__all__ = ["build", "config"]


class Pair(click.ParamType[tuple[str, str]]):
    name = "K=V"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return str(value[0]), str(value[1])
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not of the form K=V", param, ctx)
        return key, text


class Words(click.ParamType[list[str]]):
    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        try:
            words = json.loads(str(value))
        except ValueError:
            words = None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            self.fail(f"{value!r} is no JSON array of strings", param, ctx)
        return words


class Owner(click.ParamType[tuple[int, int]]):
    name = "UID:GID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        user, _, group = str(value).partition(":")
        if not user.isdecimal() or not group.isdecimal():
            self.fail(f"{value!r} is not of the form UID:GID", param, ctx)
        return int(user), int(group)


def _config_options(function: Any) -> Any:
    for option in (
        click.option("--annotation", "annotations", type=Pair(), multiple=True, help="Of the manifest."),
        click.option("--stop-signal", help="That ends the program."),
        click.option("--volume", "volumes", multiple=True, help="A directory whose content is kept apart."),
        click.option("--port", "exposed", multiple=True, metavar="PORT/PROTOCOL", help="A port that is served."),
        click.option("--workdir", help="Where the program starts."),
        click.option("--user", "run_as", help="That the program runs as."),
        click.option("--label", "labels", type=Pair(), multiple=True, help="A label."),
        click.option("--env", "env", type=Pair(), multiple=True, help="A variable of the environment."),
        click.option("--cmd", type=Words(), help="What is run, or its arguments: '[\"-v\"]'."),
        click.option("--entrypoint", type=Words(), help="What is run; the base's command is dropped."),
    ):
        function = option(function)
    return function


def _settings(options: dict[str, Any]) -> configs.ConfigSettings:
    from ..oci.building.config import ConfigSettings

    return ConfigSettings(
        entrypoint=options["entrypoint"],
        cmd=options["cmd"],
        env=dict(options["env"]),
        labels=dict(options["labels"]),
        user=options["run_as"],
        workdir=options["workdir"],
        exposed=options["exposed"],
        volumes=options["volumes"],
        stop_signal=options["stop_signal"],
    )


@click.command
@click.argument("tag")
@click.option("--from", "base", metavar="NAME", help="An image of the repository that the layers go on.")
@click.option("--layer", "tars", multiple=True, metavar="TAR", help="A layer, packed or not; - is standard input.")
@click.option("--directory", "directories", multiple=True, metavar="DIR[:AT]", help="A layer of a directory's content.")
@click.option("--owner", type=Owner(), help="Of everything from directories.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these paths of directories out.")
@click.option("--platform", type=PlatformType(), help="OS/ARCH[/VARIANT], if it is not this machine's.")
@click.option("--created", type=int, metavar="SECONDS", help="SOURCE_DATE_EPOCH if not given, else 1970.")
@_config_options
@progress_option
@as_json
@click.pass_obj
def build(
    settings: Settings,
    /,
    *,
    tag: str,
    base: str | None,
    tars: tuple[str, ...],
    directories: tuple[str, ...],
    owner: tuple[int, int] | None,
    exclude: tuple[str, ...],
    platform: Any,
    created: int | None,
    progress: str,
    json_output: bool,
    **options: Any,
) -> None:
    """Make an image and tag it as TAG; print the digest of its manifest.

    Layers go on each other in this order: those of --from, tars, directories.  The same input makes the same image,
    whenever and wherever: no time of day goes into it, and of files only what belongs to them.
    """

    async def work(repo: Repository, show: ProgressCallback) -> PullResult:
        from ..oci.building.builder import build_image
        from .oci_layers import _standard_input

        made = partial(build_image, repo, platform=platform, created=created, base=base, progress=show)
        async with made() as builder:
            for tar in tars:
                await builder.add_tar(_standard_input() if tar == "-" else tar)
            for directory in directories:
                path, _, at = directory.partition(":")
                await builder.add_directory(path, at=at or "/", owner=owner, exclude=exclude)
            builder.config(_settings(options))
            builder.annotations(dict(options["annotations"]))
            return await builder.commit(tag)

    if "-" in tars and sys.stdin.isatty():
        raise click.UsageError("there is no layer on standard input, but a terminal")
    with settings.open() as repo, showing(progress) as show:
        result = settings.run(partial(work, repo, show))
    _print(result, json_output)


@click.command
@click.argument("image")
@click.argument("tag")
@click.option("--created", type=int, metavar="SECONDS", help="SOURCE_DATE_EPOCH if not given, else 1970.")
@_config_options
@progress_option
@as_json
@click.pass_obj
def config(
    settings: Settings,
    /,
    *,
    image: str,
    tag: str,
    created: int | None,
    progress: str,
    json_output: bool,
    **options: Any,
) -> None:
    """Make an image of the layers of IMAGE with other settings, and tag it as TAG."""
    from ..oci.building.builder import edit_config

    with settings.open() as repo, showing(progress) as show:
        work = partial(edit_config, repo, image, _settings(options), tag=tag, created=created, progress=show)
        result = settings.run(partial(work, annotations=dict(options["annotations"])))
    _print(result, json_output)


def _print(result: PullResult, json_output: bool) -> None:
    if json_output:
        print_json({"manifest": result.manifest_digest, "config": result.config_digest, "tagged": result.tag})
    else:
        click.echo(result.manifest_digest)
