"""Programs that keep credentials: ``docker-credential-NAME``.

Owns the protocol with them (github.com/docker/docker-credential-helpers) and its limits.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from subprocess import PIPE

from anyio import BrokenResourceError, ClosedResourceError, create_task_group, fail_after, open_process
from anyio.abc import ByteReceiveStream, Process

from ..errors import AuthenticationError
from .access import Credentials
from .secret import Secret

__all__ = ["ask_helper", "erase_from_helper", "store_in_helper"]

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TIMEOUT = 60.0
_LIMIT = 64 << 10
_NOT_FOUND = "credentials not found in native keychain"
_QUOTED = 200


async def ask_helper(name: str, server: str, environ: Mapping[str, str], asked_by: str) -> Credentials | None:
    """What the helper *name* has for *server*; None if it has nothing.

    Args:
        asked_by: the file that names the helper, for messages.

    Raises:
        AuthenticationError: it cannot be run, fails, or answers what cannot be understood.
    """
    code, out, err = await _run(name, "get", server.encode(), environ, asked_by)
    if code != 0:
        said = (out.strip() or err.strip()).decode(errors="replace")
        if _NOT_FOUND in said:
            return None
        shown = "".join(char for char in err.decode(errors="replace") if char.isprintable())[:_QUOTED]
        raise AuthenticationError(server, reason=f"docker-credential-{name}, named by {asked_by}, failed: {shown}")
    try:
        answer = json.loads(out)
        username, secret = str(answer.get("Username") or ""), str(answer.get("Secret") or "")
    except (ValueError, AttributeError, RecursionError):
        raise AuthenticationError(server, reason=f"docker-credential-{name} gave no valid answer") from None
    if not username and not secret:
        return None
    origin = f"docker-credential-{name} ({asked_by})"
    if username == "<token>":
        return Credentials(identity_token=Secret(secret), origin=origin)
    return Credentials(username, Secret(secret), origin=origin)


async def store_in_helper(
    name: str, server: str, username: str, password: Secret, environ: Mapping[str, str], asked_by: str
) -> None:
    """Give credentials to a helper."""
    values = {"ServerURL": server, "Username": username, "Secret": password.reveal()}
    code, _, _ = await _run(name, "store", json.dumps(values).encode(), environ, asked_by)
    if code != 0:
        raise AuthenticationError(server, reason=f"docker-credential-{name}, named by {asked_by}, does not store it")


async def erase_from_helper(name: str, server: str, environ: Mapping[str, str], asked_by: str) -> bool:
    """Make a helper forget; False if it knew nothing."""
    code, _, _ = await _run(name, "erase", server.encode(), environ, asked_by)
    return code == 0


async def _run(
    name: str, action: str, request: bytes, environ: Mapping[str, str], asked_by: str
) -> tuple[int, bytes, bytes]:
    program = f"docker-credential-{name}"
    found = shutil.which(program, path=environ.get("PATH")) if _NAME.fullmatch(name) else None
    if found is None:
        raise AuthenticationError(reason=f"{program[:_QUOTED]}, which {asked_by} asks for, is not on PATH")
    out, err = bytearray(), bytearray()
    try:
        with fail_after(_TIMEOUT):
            process = await open_process(
                [found, action], stdin=PIPE, stdout=PIPE, stderr=PIPE, env=dict(environ), start_new_session=True
            )
            async with process:
                async with create_task_group() as tasks:
                    tasks.start_soon(_send, process, request)
                    if process.stdout is not None and process.stderr is not None:
                        tasks.start_soon(_collect, process.stdout, out, process)
                        tasks.start_soon(_collect, process.stderr, err, process)
                code = await process.wait()
    except TimeoutError:
        raise AuthenticationError(reason=f"{program}, named by {asked_by}, took more than {_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise AuthenticationError(reason=f"{program}, named by {asked_by}: {error.strerror}") from None
    if len(out) > _LIMIT:
        raise AuthenticationError(reason=f"{program}, named by {asked_by}, answered more than {_LIMIT} bytes")
    return code, bytes(out), bytes(err)


async def _send(process: Process, request: bytes) -> None:
    if process.stdin is not None:
        with suppress(BrokenResourceError, ClosedResourceError):  # of a program that reads nothing
            await process.stdin.send(request)
        await process.stdin.aclose()


async def _collect(stream: ByteReceiveStream, into: bytearray, process: Process) -> None:
    async for piece in stream:
        into += piece
        if len(into) > _LIMIT:
            with suppress(ProcessLookupError):  # it has just ended
                process.kill()
            return
