"""Options of all commands that speak to registries, and what they mean; named as skopeo's and podman's."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..registry.access import Access, Credentials, Transfer
    from .context import Settings

__all__ = ["RegistryCommand", "access_of", "access_options", "run_within", "transfer_of", "transfer_options"]

T = TypeVar("T")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_FLAGS = re.compile(r"--(no-)?((?:src-|dest-|dst-)?tls-verify)")


class RegistryCommand(click.Command):
    """A command whose ``--tls-verify`` may have a value, after an equals sign, or none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse *args*, in which ``--tls-verify`` without a value means true."""
        end = args.index("--") if "--" in args else len(args)
        options = [self._explicit(each) for each in args[:end]]
        return super().parse_args(ctx, [*options, *args[end:]])

    @staticmethod
    def _explicit(argument: str) -> str:
        found = _FLAGS.fullmatch(argument)
        return f"--{found[2]}={'false' if found[1] else 'true'}" if found else argument


class Duration(click.ParamType[float]):
    """Seconds, or a number with a unit as Go writes it: ``500ms``, ``2m``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(str(value))
        if not found:
            self.fail(f"{value!r} is not a duration such as 2s", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


def access_options(prefix: str = "", what: str = "the registry") -> Callable[[Any], Any]:
    """The options that say how registries are reached.

    Args:
        prefix: ``src`` or ``dest``, where there are two.
        what: for the help.
    """
    names = [f"--{prefix}-"] if prefix else ["--"]
    if prefix == "dest":
        names.append("--dst-")

    def option(name: str, **settings: Any) -> Any:
        variable = f"{prefix}_{name}".strip("_").replace("-", "_")
        return click.option(*(f"{start}{name}" for start in names), variable, **settings)

    options = [
        option("tls-verify", type=bool, default=None, metavar="[=BOOL]", help=f"Verify certificates of {what}."),
        option("creds", metavar="USER[:PASSWORD]", help=f"Credentials for {what}; - reads them from standard input."),
        option("username", metavar="USER", help="The name alone; see --password-stdin."),
        option("password", metavar="PASSWORD", help="To go with --username; visible to others."),
        option("password-stdin", is_flag=True, help="Read the password for --username from standard input."),
        option("registry-token", metavar="TOKEN", help=f"An access token for {what}."),
        option("no-creds", is_flag=True, help=f"Use no credentials for {what}."),
        option("authfile", type=click.Path(), help="The only file to look for credentials in."),
        option("cert-dir", type=click.Path(), help="Certificates (*.crt, *.cert, *.key) for registries."),
    ]

    def decorate(function: Any) -> Any:
        for each in reversed(options):
            function = each(function)
        return function

    return decorate


def transfer_options(function: Any) -> Any:
    """The options that there is one of for all registries of a command."""
    for option in (
        click.option("--registries-conf", type=click.Path(), help="In place of registries.conf and its drop-ins."),
        click.option("--policy", "policy_file", type=click.Path(), help="In place of policy.json."),
        click.option("--insecure-policy", is_flag=True, help="Accept every image, whatever policy.json says."),
        click.option("--retry-times", type=click.IntRange(0), default=5, show_default=True, help="Attempts more."),
        click.option("--retry-delay", type=Duration(), default=0.5, show_default=True, help="Before the first one."),
        click.option("--timeout", type=Duration(), help="Give up after so long."),
        click.option("--jobs", type=click.IntRange(1), default=8, show_default=True, help="Connections to a host."),
        click.option("--user-agent", default="", metavar="TEXT", help="Follows ours."),
    ):
        function = option(function)
    return function


def access_of(options: dict[str, Any], prefix: str = "", settings: Settings | None = None) -> Access:
    """What the options of `access_options` and `transfer_options` say."""
    from pathlib import Path

    from ..registry.access import Access

    def given(name: str) -> Any:
        return options.get(f"{prefix}_{name}".strip("_"))

    def path(value: Any) -> Path | None:
        return Path(value) if value else None

    return Access(
        credentials=_credentials(given),
        authfile=path(given("authfile")),
        tls_verify=given("tls_verify"),
        cert_dir=path(given("cert_dir")),
        registries_conf=path(options.get("registries_conf")),
        policy="insecure" if options.get("insecure_policy") else path(options.get("policy_file")),
        bootc_auth=bool(options.get("bootc_auth")) or (settings is not None and settings.place == "system"),
        user_agent=options.get("user_agent") or "",
    )


def transfer_of(options: dict[str, Any]) -> Transfer:
    """What the options say about transferring."""
    from pathlib import Path

    from ..registry.access import Transfer

    given: dict[str, Any] = {
        "connections": options["jobs"],
        "retries": options["retry_times"],
        "retry_delay": options["retry_delay"],
    }
    if options.get("chunk_size"):
        given["chunk_size"] = options["chunk_size"]
    if options.get("spool_dir"):
        given["spool_directory"] = Path(options["spool_dir"])
    if options.get("no_spool"):
        given["spool"] = False
    if options.get("keep_blobs"):
        given["keep_blobs"] = True
    if options.get("link"):
        given["link"] = options["link"]
    if options.get("no_partial"):
        given["partial"] = False
    return Transfer(**given)


def _credentials(given: Callable[[str], Any]) -> Credentials | None:
    from ..registry.access import Credentials

    ways = [name for name in ("creds", "username", "registry_token", "no_creds") if given(name)]
    if len(ways) > 1:
        raise click.UsageError(f"--{ways[0].replace('_', '-')} and --{ways[1].replace('_', '-')} exclude each other")
    if given("no_creds"):
        return Credentials.anonymous()
    if given("registry_token"):
        return Credentials.token(given("registry_token"), "--registry-token")
    if given("username"):
        if given("password_stdin"):
            password = sys.stdin.readline().rstrip("\n")
        else:
            password = given("password") or _ask(given("username"))
        return Credentials.basic(given("username"), password, "--username")
    if given("password_stdin") or given("password"):
        raise click.UsageError("a password needs --username")
    if creds := given("creds"):
        text = sys.stdin.readline().rstrip("\n") if creds == "-" else creds
        username, colon, password = text.partition(":")
        return Credentials.basic(username, password if colon else _ask(username), "--creds")
    return None


def _ask(username: str) -> str:
    if not sys.stdin.isatty():
        raise click.UsageError(f"there is no password for {username}, and no terminal to ask on")
    return str(click.prompt(f"Password for {username}", hide_input=True, err=True))


def run_within(settings: Settings, timeout: float | None, work: Callable[[], Awaitable[T]]) -> T:
    """Run *work* on the event loop; an error after *timeout* seconds."""
    if timeout is None:
        return settings.run(work)

    async def bounded() -> T:
        from anyio import fail_after

        from ..errors import TransportError

        try:
            with fail_after(timeout):
                return await work()
        except TimeoutError:
            raise TransportError(f"not done within {timeout:g} s") from None

    return settings.run(bounded)
