"""docker-registry, as Debian has it, with TLS, passwords and tokens; and skopeo and cfsctl at the other end."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from composefs_async.oci.layout_writer import OciLayoutWriter

PASSWORD = "s3cr3t-password"


@dataclass
class Registry:
    """One that runs."""

    host: str
    directory: Path
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    def requests(self) -> list[str]:
        """What it was asked: method and path."""
        lines = [line.split('"')[1] for line in self.log.read_text().splitlines() if " HTTP/1.1" in line]
        return [" ".join(line.split()[:2]) for line in lines]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def start(tool: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    """Start a registry with more configuration, as YAML below ``http:`` and at the top."""
    program, running = tool("docker-registry"), list[Registry]()

    def begin(http: str = "", more: str = "") -> Registry:
        host, directory = f"127.0.0.1:{_free_port()}", tmp_path / f"registry{len(running)}"
        directory.mkdir()
        config = directory / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {directory}/data}}\n"
            f"http:\n  addr: {host}\n{http}\n{more}"
        )
        log = directory / "log"
        with log.open("wb") as out:
            process = subprocess.Popen([program, "serve", config], stdout=out, stderr=out)
        running.append(Registry(host, directory, log, process))
        _wait_for(host, process)
        return running[-1]

    yield begin
    for registry in running:
        registry.process.terminate()
        registry.process.wait(10)


def _wait_for(host: str, process: subprocess.Popen[bytes]) -> None:
    name, _, port = host.partition(":")
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection((name, int(port)), 1).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    pytest.fail("docker-registry does not start")


@dataclass
class Cli:
    """Our command line, with a home of its own."""

    home: Path
    repo: Path
    seen: list[str] = field(default_factory=list[str])
    """All that it has printed."""

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-W", "error", "-m", "composefs_async", "--repo", str(self.repo), *map(str, arguments)]

    @property
    def environ(self) -> dict[str, str]:
        return {
            **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "REGISTRY_AUTH_FILE": str(self.home / "auth.json"),
        }

    def __call__(self, *arguments: str | Path, code: int = 0, stdin: str = "") -> str:
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            env=self.environ,
            input=stdin,
            timeout=120,
        )
        self.seen += [done.stdout, done.stderr]
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "home/run").mkdir(parents=True)
    cli = Cli(tmp_path / "home", tmp_path / "repo")
    cli("init", "--insecure")
    return cli


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image directory with the image ``one``: gzip, and zstd layers, the first of 24 MiB."""
    directory = tmp_path_factory.mktemp("registry") / "layout"
    writer = OciLayoutWriter(directory)
    layers = []
    for number, (size, packing) in enumerate([(24 << 20, "gzip"), (100_000, "zstd"), (3000, "gzip")]):
        layers.append(writer.add_layer(_tar(number, size), packing))  # type: ignore[arg-type]
    writer.add_image(layers, tag="one")
    return directory


def _tar(number: int, size: int) -> bytes:
    import io
    import random
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(f"file{number}")
        member.size = size
        archive.addfile(member, io.BytesIO(random.Random(number).randbytes(size)))
    return out.getvalue()


def _digest(layout: Path) -> str:
    return str(json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"])


def _skopeo(tool: Callable[[str], Path], *arguments: str | Path) -> None:
    done = subprocess.run([tool("skopeo"), *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_skopeo_pushed_is_pulled_and_what_we_push_skopeo_pulls(
    start: Callable[..., Registry], cli: Cli, layout: Path, tool: Callable[[str], Path], tmp_path: Path
) -> None:
    registry = start()
    reference = f"docker://{registry.host}/a/b:1"
    _skopeo(tool, "copy", "--dest-tls-verify=false", f"oci:{layout}:one", reference)
    assert _digest(layout) in cli("oci", "pull", "--tls-verify=false", "--keep-blobs", reference, "x")
    before = len(registry.requests())
    cli("oci", "pull", "--tls-verify=false", reference, "x")
    assert registry.requests()[before:] == ["HEAD /v2/a/b/manifests/1"]
    cli(
        "oci", "push", "--tls-verify=false", "x", f"docker://{registry.host}/c/d:2", "--digestfile", tmp_path / "digest"
    )
    assert (tmp_path / "digest").read_text() == _digest(layout)
    cli("oci", "copy", "--tls-verify=false", reference, f"oci:{tmp_path}/copied:3")
    for number, source in enumerate((f"docker://{registry.host}/c/d:2", f"oci:{tmp_path}/copied:3")):
        _skopeo(tool, "copy", "--src-tls-verify=false", source, f"dir:{tmp_path}/{number}")
        assert (tmp_path / f"{number}/manifest.json").read_bytes() == _manifest(layout)
    assert cli("oci", "tags", "--tls-verify=false", f"docker://{registry.host}/c/d") == "2\n"
    assert cli("oci", "manifest", "digest", "--tls-verify=false", reference) == f"{_digest(layout)}\n"
    assert cli("oci", "manifest", "get", "--tls-verify=false", reference).encode() == _manifest(layout)
    assert json.loads(cli("oci", "catalog", "--tls-verify=false", registry.host, "--json"))["repositories"] == [
        "a/b",
        "c/d",
    ]
    assert "has no such thing" in cli("oci", "pull", "--tls-verify=false", f"{reference}0", "y", code=3)
    assert "speaks no TLS" in cli("oci", "pull", "--retry-times=0", reference, "y", code=9)


def _manifest(layout: Path) -> bytes:
    return (layout / "blobs/sha256" / _digest(layout).partition(":")[2]).read_bytes()


def test_cfsctl_pulls_what_we_pushed(
    start: Callable[..., Registry], cli: Cli, tool: Callable[[str], Path], tmp_path: Path
) -> None:
    layout = Path(__file__).parents[1] / "vectors/layouts/basic"  # cfsctl makes images only of what has /usr
    registry, cfsctl = start(), tool("cfsctl")
    tool("skopeo")
    cli("oci", "pull", "--keep-blobs", f"oci:{layout}", "x")
    cli("oci", "push", "--tls-verify=false", "x", f"docker://{registry.host}/c/d:1")
    conf = cli.home / ".config/containers/registries.conf"  # which skopeo, that cfsctl runs, reads
    conf.parent.mkdir(parents=True)
    conf.write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
    other = tmp_path / "other"
    for command in (
        ["init", "--insecure", str(other)],
        ["oci", "pull", f"docker://{registry.host}/c/d:1", "y"],
    ):
        done = subprocess.run(
            [cfsctl, "--repo", str(other), *command],
            capture_output=True,
            text=True,
            check=False,
            env=cli.environ,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr


def test_passwords_over_tls(
    start: Callable[..., Registry], cli: Cli, layout: Path, tool: Callable[[str], Path], tmp_path: Path
) -> None:
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    server.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    server.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    (tmp_path / "certs").mkdir()
    authority.cert_pem.write_to_path(str(tmp_path / "certs/ca.crt"))
    (tmp_path / "htpasswd").write_text(f"user:{_bcrypt(PASSWORD, tool)}\n")
    registry = start(
        f"  tls: {{certificate: {tmp_path}/cert.pem, key: {tmp_path}/key.pem}}",
        f"auth:\n  htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}\n",
    )
    reference = f"docker://{registry.host}/a/b:1"
    trust = f"--cert-dir={tmp_path}/certs"
    cli("oci", "pull", "--keep-blobs", f"oci:{layout}:one", "x")
    assert "certificate is not valid" in cli("oci", "push", "x", reference, code=9)
    error = cli("oci", "push", trust, "x", reference, code=9)
    assert "no credentials were found in" in error
    assert str(cli.home / "auth.json") in error
    cli("oci", "push", trust, f"--creds=user:{PASSWORD}x", "x", reference, code=9)
    cli("oci", "push", trust, "--creds=-", "x", reference, stdin=f"user:{PASSWORD}\n")
    cli("oci", "login", trust, "--username=user", "--password-stdin", registry.host, stdin=f"{PASSWORD}\n")
    assert (cli.home / "auth.json").stat().st_mode & 0o777 == 0o600
    assert cli("oci", "tags", trust, reference) == "1\n"
    assert cli("oci", "tags", "--tls-verify=false", reference) == "1\n"
    cli("oci", "pull", trust, reference, "y")
    cli("oci", "logout", registry.host)
    cli("oci", "tags", trust, reference, code=9)
    cli("oci", "login", trust, "--username=user", "--password=wrong", registry.host, code=9)
    assert [text for text in cli.seen if PASSWORD in text] == []


def _bcrypt(password: str, tool: Callable[[str], Path]) -> str:
    """A hash that docker-registry takes."""
    program = f"print crypt('{password}', '$2b$05$abcdefghijklmnopqrstuu')"
    return subprocess.run([tool("perl"), "-e", program], capture_output=True, text=True, check=True).stdout


class TokenServer:
    """Gives tokens that docker-registry believes (distribution, spec/auth/jwt.md)."""

    def __init__(self, certificate: str, key: RSAPrivateKey) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, body = outer.answer(self.path, self.headers.get("Authorization", ""), certificate, key)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/token"

    @staticmethod
    def answer(path: str, shown: str, certificate: str, key: RSAPrivateKey) -> tuple[int, bytes]:
        user = ""
        if shown.startswith("Basic "):
            user, _, password = base64.b64decode(shown[6:]).decode().partition(":")
            if password != PASSWORD:
                return 401, b"{}"
        query = parse_qs(urlsplit(path).query)
        access = []
        for scope in query.get("scope", []):
            kind, name, actions = scope.split(":", 2)
            allowed = [each for each in actions.split(",") if user or each == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        claims = {
            "iss": "issuer", "sub": user, "aud": query["service"][0], "exp": now + 60, "nbf": now - 5, "iat": now,
            "jti": "1", "access": access,
        }  # fmt: skip
        head = {"typ": "JWT", "alg": "RS256", "x5c": [certificate]}
        signed = f"{_b64(json.dumps(head).encode())}.{_b64(json.dumps(claims).encode())}"
        token = f"{signed}.{_b64(key.sign(signed.encode(), padding.PKCS1v15(), SHA256()))}"
        return 200, json.dumps({"token": token, "expires_in": 60}).encode()


def _b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenServer]:
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    signer = authority.issue_cert("issuer.example", key_type=trustme.KeyType.RSA)
    authority.cert_pem.write_to_path(str(tmp_path / "root.pem"))
    certificate = base64.b64encode(ssl.PEM_cert_to_DER_cert(signer.cert_chain_pems[0].bytes().decode())).decode()
    key = load_pem_private_key(signer.private_key_pem.bytes(), None)
    assert isinstance(key, RSAPrivateKey)
    server = TokenServer(certificate, key)
    thread = threading.Thread(target=server.server.serve_forever)
    thread.start()
    yield server
    server.server.shutdown()
    thread.join()
    server.server.server_close()


def test_tokens(start: Callable[..., Registry], tokens: TokenServer, cli: Cli, layout: Path, tmp_path: Path) -> None:
    settings = f"realm: {tokens.url}, service: test, issuer: issuer, rootcertbundle: {tmp_path}/root.pem"
    registry = start(more=f"auth:\n  token: {{{settings}}}\n")
    reference = f"docker://{registry.host}/a/b:1"
    cli("oci", "pull", "--keep-blobs", f"oci:{layout}:one", "x")
    assert "answered 401" in cli("oci", "push", "--tls-verify=false", "x", reference, code=9)
    cli("oci", "push", "--tls-verify=false", f"--creds=user:{PASSWORD}", "x", reference)
    tokens.asked.clear()
    cli("oci", "pull", "--tls-verify=false", reference, "y")
    assert len(tokens.asked) == 1
    cli("oci", "pull", "--tls-verify=false", f"--creds=user:{PASSWORD}x", reference, "z", code=9)
    cli("oci", "copy", "--tls-verify=false", f"--creds=user:{PASSWORD}", reference, f"docker://{registry.host}/c/d:1")
    assert [text for text in cli.seen if PASSWORD in text] == []


@pytest.mark.parametrize("megabytes", [4, 16])
def test_a_pull_that_was_killed_goes_on(megabytes: int, start: Callable[..., Registry], cli: Cli, layout: Path) -> None:
    registry = start()
    reference = f"docker://{registry.host}/a/b:1"
    cli("oci", "copy", "--tls-verify=false", f"oci:{layout}:one", reference)
    command = cli.command(
        "oci", "pull", "--tls-verify=false", "--jobs=1", "--chunk-size=1048576", "--progress=json", reference, "x"
    )
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=cli.environ
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "bytes-fetched" and event["received"] >= megabytes << 20:
                process.send_signal(signal.SIGKILL)
                break
        process.communicate()
    found = json.loads(cli("oci", "pull", "--tls-verify=false", "--json", "--progress=none", reference, "x"))
    size = sum(layer["size"] for layer in json.loads(_manifest(layout))["layers"])
    if process.returncode == -signal.SIGKILL and found["resumed"]:
        assert found["resumed"] >= (megabytes << 20) - (6 << 20)
    assert found["fetched"] + found["resumed"] <= size + (2 << 20)
    assert list((cli.repo / ".composefs-async/spool").iterdir()) == []
