"""Who is shown what: tokens, passwords, certificates; and that nobody else sees any of it."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from composefs_async import Repository, oci
from composefs_async.errors import AuthenticationError, RegistryError, TransportError
from composefs_async.progress import Message, ProgressEvent, RateLimit, RegistryWarning, SourceChosen
from composefs_async.registry.access import Access, Credentials
from composefs_async.testing.http import FaultyServer, Seen
from composefs_async.testing.registry import Answer, FakeRegistry, Fault, TokenServer, serve_content

from .conftest import QUICK, SmallImage

pytestmark = pytest.mark.anyio

SECRET = "s3cr3t-password"
USERS = {"user": SECRET}


async def pull(repo: Repository, host: str, access: Access, **options: object) -> oci.PullResult:
    return await oci.pull(repo, f"docker://{host}/a/b:1", access=access, transfer=QUICK, **options)  # type: ignore[arg-type]


async def test_a_private_registry_costs_three_requests_more(
    repo: Repository, image: SmallImage, access: Access
) -> None:
    realm = TokenServer(USERS, anonymous=False)
    registry = FakeRegistry(realm=realm)
    image.put(registry)
    access = replace(access, credentials=Credentials.basic("user", SECRET))
    async with realm.serving(), registry.serving() as host:
        await pull(repo, host, access)
        assert registry.count("HEAD") == 2
        assert realm.count("GET /token") == 1
        [asked] = realm.seen
        assert asked.target == "/token?service=fake&scope=repository%3Aa%2Fb%3Apull&account=user"
        assert len(registry.seen) == 7
    # The password went to the token server alone, the token to the registry alone.
    assert {text.split()[0] for text in realm.authorizations} == {"Basic"}
    assert {text.split()[0] for text in registry.authorizations} == {"Bearer"}


async def test_anonymous_tokens(repo: Repository, image: SmallImage, access: Access) -> None:
    realm = TokenServer(USERS)
    realm.only_access_token = True
    registry = FakeRegistry(realm=realm)
    image.put(registry)
    async with realm.serving(), registry.serving() as host:
        await pull(repo, host, access)
    assert realm.authorizations == []


async def test_basic_authentication(repo: Repository, image: SmallImage, access: Access) -> None:
    registry = FakeRegistry(users=USERS)
    image.put(registry)
    async with registry.serving() as host:
        await pull(repo, host, replace(access, credentials=Credentials.basic("user", SECRET)))
    assert len(registry.authorizations) == len(registry.seen) - 1


async def test_an_access_token_is_sent_as_it_is(repo: Repository, image: SmallImage, access: Access) -> None:
    realm = TokenServer()
    realm.tokens["given"] = {"repository:a/b:pull"}
    registry = FakeRegistry(realm=realm)
    image.put(registry)
    async with realm.serving(), registry.serving() as host:
        await pull(repo, host, replace(access, credentials=Credentials.token("given")))
    assert set(registry.authorizations) == {"Bearer given"}
    assert realm.seen == []


@pytest.mark.parametrize("knows_post", [True, False])
async def test_an_identity_token_is_exchanged(
    knows_post: bool, repo: Repository, image: SmallImage, access: Access, tmp_path: Path
) -> None:
    realm = TokenServer({"<token>": "identity"}, anonymous=False)
    realm.refresh_tokens = {"identity"}
    if not knows_post:
        realm.faults = [Fault("POST", status=404, times=-1)]
    registry = FakeRegistry(realm=realm)
    image.put(registry)
    async with realm.serving(), registry.serving() as host:
        file = tmp_path / "auth.json"
        file.write_text(json.dumps({"auths": {host: {"identitytoken": "identity"}}}))
        await pull(repo, host, replace(access, authfile=file))
    assert realm.seen[0].method == "POST"
    assert b"grant_type=refresh_token" in realm.seen[0].body


async def test_a_token_that_ends_in_the_middle_is_renewed(repo: Repository, image: SmallImage, access: Access) -> None:
    realm = TokenServer()

    class Forgetful(FakeRegistry):
        async def answer(self, seen: Seen) -> Answer:
            found = await super().answer(seen)
            if seen.headers.get("authorization") and len(self.seen) % 3 == 0:
                realm.tokens.clear()
            return found

    registry = Forgetful(realm=realm)
    image.put(registry)
    async with realm.serving(), registry.serving() as host:
        result = await pull(repo, host, access)
    assert result.manifest_digest == image.digest
    assert realm.count("GET") >= 2


async def _refused(repo: Repository, host: str, access: Access) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        await pull(repo, host, access)
    return caught.value


async def test_a_refusal_says_what_was_shown_or_where_was_looked(
    repo: Repository, image: SmallImage, access: Access, tmp_path: Path
) -> None:
    registry = FakeRegistry(users=USERS)
    image.put(registry)
    async with registry.serving() as host:
        error = await _refused(repo, host, access)
        assert (error.host, error.scope) == (host, "repository:a/b:pull")
        assert error.looked_in[0].endswith("auth.json")
        assert "no credentials were found in" in str(error)
        assert str(tmp_path / "home/.docker/config.json") in str(error)
        wrong = replace(access, credentials=Credentials.basic("user", "wrong-password", "--creds"))
        error = await _refused(repo, host, wrong)
    assert "credentials of user from --creds" in str(error)
    assert "wrong-password" not in str(error)


async def test_a_token_server_that_refuses_is_not_asked_without_credentials(
    repo: Repository, image: SmallImage, access: Access
) -> None:
    realm = TokenServer({"user": "other"})
    registry = FakeRegistry(realm=realm)
    image.put(registry)
    async with realm.serving(), registry.serving() as host:
        error = await _refused(repo, host, replace(access, credentials=Credentials.basic("user", SECRET)))
    assert len(realm.seen) == 1
    assert SECRET not in str(error)


REALMS = {
    "redirects": ([Fault("GET /token", status=302, headers={"location": "http://127.0.0.1:1/x"})], "redirects"),
    "no token": ([Fault("GET /token", body=b"{}")], "no token"),
    "not JSON": ([Fault("GET /token", body=b"nonsense")], "not JSON"),
    "endless": ([Fault("GET /token", endless=True)], "more than"),
    "a token with a line break": ([Fault("GET /token", body=b'{"token":"a\\r\\nX: y"}')], "no token"),
    "down": ([Fault("GET /token", status=500, times=-1)], "answered 500"),
}


@pytest.mark.parametrize("name", REALMS)
async def test_a_token_server_that_misbehaves(name: str, repo: Repository, image: SmallImage, access: Access) -> None:
    faults, words = REALMS[name]
    realm = TokenServer(USERS)
    realm.faults = [replace(fault) for fault in faults]
    registry = FakeRegistry(realm=realm)
    image.put(registry)
    async with realm.serving(), registry.serving() as host:
        with pytest.raises(TransportError, match=words):
            await pull(repo, host, access)


async def test_a_token_server_that_fails_at_first_is_asked_again(
    repo: Repository, image: SmallImage, access: Access
) -> None:
    realm = TokenServer()
    realm.faults = [Fault("GET /token", status=503, times=2), Fault("GET /token", before_head=True)]
    registry = FakeRegistry(realm=realm)
    image.put(registry)
    async with realm.serving(), registry.serving() as host:
        assert (await pull(repo, host, access)).manifest_digest == image.digest


EVIL_REALMS = [
    "http://169.254.169.254/token",
    "http://10.0.0.1/token",
    "http://user:pass@127.0.0.1/token",
    "file:///etc/passwd",
    "http://[fe80::1]/token",
]


@pytest.mark.parametrize("url", EVIL_REALMS)
async def test_credentials_go_to_no_token_server_in_a_strange_place(
    url: str, repo: Repository, image: SmallImage, access: Access
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    registry.faults = [Fault("", status=401, headers={"www-authenticate": f'Bearer realm="{url}"'}, times=-1)]
    async with registry.serving() as host:
        error = await _refused(repo, host, replace(access, credentials=Credentials.basic("user", SECRET)))
    assert "token server" in str(error)
    assert registry.authorizations == []


async def test_an_unknown_scheme_is_named(repo: Repository, image: SmallImage, access: Access) -> None:
    registry = FakeRegistry()
    registry.faults = [Fault("", status=401, headers={"www-authenticate": "Negotiate"}, times=-1)]
    async with registry.serving() as host:
        assert "offers negotiate" in str(await _refused(repo, host, access))


async def test_a_redirect_gets_blobs_and_no_credentials(repo: Repository, image: SmallImage, access: Access) -> None:
    elsewhere = FaultyServer(lambda seen: _content(image, seen))
    realm = TokenServer(USERS)
    registry = FakeRegistry(
        realm=realm, blobs_at=lambda digest: f"http://{elsewhere.address}/blob?digest={digest}&signature={SECRET}"
    )
    image.put(registry)
    elsewhere.faults = [
        Fault("GET /blob", cut=100),
        Fault("GET /blob", status=403),
        Fault("GET /blob", status=401, headers={"www-authenticate": 'Basic realm="x"'}),
    ]
    async with elsewhere.serving("127.0.0.2"), realm.serving(), registry.serving() as host:
        result = await pull(repo, host, replace(access, credentials=Credentials.basic("user", SECRET)))
    assert result.manifest_digest == image.digest
    assert elsewhere.authorizations == []
    assert all("cookie" not in seen.headers for seen in elsewhere.seen)


async def _content(image: SmallImage, seen: Seen) -> Answer:
    digest = seen.target.partition("digest=")[2].partition("&")[0]
    return serve_content(seen, image.blobs[digest], True)


async def test_a_place_that_refuses_for_ever_is_an_error_without_its_secret(
    repo: Repository, image: SmallImage, access: Access
) -> None:
    elsewhere = FaultyServer(lambda seen: _content(image, seen))
    elsewhere.faults = [Fault("", status=403, times=-1)]
    registry = FakeRegistry(blobs_at=lambda digest: f"http://{elsewhere.address}/b?digest={digest}&s={SECRET}")
    image.put(registry)
    async with elsewhere.serving("127.0.0.2"), registry.serving() as host:
        with pytest.raises((RegistryError, AuthenticationError)) as caught:
            await pull(repo, host, access)
    assert SECRET not in str(caught.value)


# -- mirrors -----------------------------------------------------------------------------------


@pytest.fixture
async def mirrored(
    image: SmallImage, access: Access, tmp_path: Path
) -> AsyncIterator[tuple[FakeRegistry, FakeRegistry, Access, str]]:
    """A registry and its mirror."""
    primary, mirror = FakeRegistry(), FakeRegistry()
    image.put(primary)
    image.put(mirror, "mirrored/b")
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(primary.serving())
        other = await stack.enter_async_context(mirror.serving("127.0.0.2"))
        conf = tmp_path / "registries.conf"
        conf.write_text(
            f'[[registry]]\nprefix = "{host}/a"\nlocation = "{host}/a"\n'
            f'[[registry.mirror]]\nlocation = "{other}/mirrored"\n'
        )
        yield primary, mirror, replace(access, registries_conf=conf), host


async def test_a_mirror_is_asked_first_and_gets_no_explicit_credentials(
    mirrored: tuple[FakeRegistry, FakeRegistry, Access, str],
    repo: Repository,
    image: SmallImage,
    events: list[ProgressEvent],
) -> None:
    _, mirror, access, host = mirrored
    mirror.users = {"someone": "else"}
    access = replace(access, credentials=Credentials.basic("user", SECRET))
    result = await pull(repo, host, access, progress=events.append)
    assert (result.manifest_digest, result.source) == (image.digest, host)
    assert mirror.authorizations == []
    assert mirror.count("") == 1
    mirror.users = None
    [chosen] = [event for event in events if isinstance(event, SourceChosen)]
    assert not chosen.mirror


async def test_one_layer_that_a_mirror_lacks_comes_from_the_registry(
    mirrored: tuple[FakeRegistry, FakeRegistry, Access, str],
    repo: Repository,
    image: SmallImage,
    events: list[ProgressEvent],
) -> None:
    primary, mirror, access, host = mirrored
    mirror.repository("mirrored/b").blobs.remove(image.layers[1])
    mirror.faults = [Fault(f"blobs/{image.layers[2]}", cut=10, times=-1)]
    result = await pull(repo, host, access, progress=events.append)
    assert (result.manifest_digest, result.source) == (image.digest, mirror.address)
    assert primary.count("GET .*/blobs/") == 2
    assert primary.count("manifests") == 0


async def test_errors_of_mirrors_are_told_and_that_of_the_registry_is_raised(
    mirrored: tuple[FakeRegistry, FakeRegistry, Access, str], repo: Repository, events: list[ProgressEvent]
) -> None:
    primary, mirror, access, host = mirrored
    mirror.faults = [Fault("", status=400, times=-1)]
    primary.faults = [Fault("", status=410, times=-1)]
    with pytest.raises(RegistryError, match="answered 410"):
        await pull(repo, host, access, progress=events.append)
    assert ["answered 400" in event.text for event in events if isinstance(event, Message)] == [True]


# -- TLS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _server(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_a_private_authority_in_certs_d(
    repo: Repository, image: SmallImage, access: Access, authority: trustme.CA, tmp_path: Path
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    strict = replace(access, tls_verify=True)
    async with registry.serving(tls=_server(authority)) as host:
        with pytest.raises(TransportError, match="the certificate is not valid"):
            await pull(repo, host, strict)
        assert registry.seen == []
        directory = tmp_path / "home/.config/containers/certs.d" / host
        directory.mkdir(parents=True)
        authority.cert_pem.write_to_path(str(directory / "ca.crt"))
        assert (await pull(repo, host, strict)).manifest_digest == image.digest
        assert (await pull(repo, host, replace(access, tls_verify=False))).manifest_digest == image.digest


async def test_a_certificate_of_another_host_is_refused(
    repo: Repository, image: SmallImage, access: Access, authority: trustme.CA, tmp_path: Path
) -> None:
    registry = FakeRegistry()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    strict = replace(access, tls_verify=True, cert_dir=tmp_path)
    async with registry.serving(tls=_server(authority, "other.example")) as host:
        with pytest.raises(TransportError, match="the certificate is not valid"):
            await pull(repo, host, strict)


async def test_client_certificates_go_to_their_registry_alone(
    repo: Repository, image: SmallImage, access: Access, authority: trustme.CA, tmp_path: Path
) -> None:
    wants = _server(authority)
    wants.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(wants)
    asks = _server(authority, "127.0.0.2")
    asks.verify_mode = ssl.CERT_OPTIONAL
    authority.configure_trust(asks)
    elsewhere = FaultyServer(lambda seen: _content(image, seen))
    registry = FakeRegistry(blobs_at=lambda digest: f"https://{elsewhere.address}/b?digest={digest}")
    image.put(registry)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    strict = replace(access, tls_verify=True, cert_dir=tmp_path)
    async with elsewhere.serving("127.0.0.2", tls=asks), registry.serving(tls=wants) as host:
        with pytest.raises(TransportError):
            await pull(repo, host, strict)
        client = authority.issue_cert("client.example")
        client.private_key_pem.write_to_path(str(tmp_path / "client.key"))
        client.cert_chain_pems[0].write_to_path(str(tmp_path / "client.cert"))
        assert (await pull(repo, host, strict)).manifest_digest == image.digest


async def test_http_without_tls_is_refused_unless_it_is_allowed(
    repo: Repository, image: SmallImage, access: Access, tmp_path: Path
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    async with registry.serving() as host:
        with pytest.raises(TransportError, match="speaks no TLS"):
            await pull(repo, host, replace(access, tls_verify=None))
        conf = tmp_path / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
        await pull(repo, host, replace(access, tls_verify=None, registries_conf=conf))


# -- what is told ------------------------------------------------------------------------------


async def test_warnings_and_rate_limits_are_told_once(
    repo: Repository, image: SmallImage, access: Access, events: list[ProgressEvent]
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    headers = {
        "warning": '299 - "old\x1b[2J news"',
        "ratelimit-limit": "100;w=21600",
        "ratelimit-remaining": "93;w=21600",
        "docker-ratelimit-source": "192.0.2.1",
    }
    registry.faults = [Fault("", headers=headers, times=-1)]
    async with registry.serving() as host:
        await pull(repo, host, access, progress=events.append)
    assert [event for event in events if isinstance(event, RegistryWarning | RateLimit)] == [
        RegistryWarning(host, "old[2J news"),
        RateLimit(host, 100, 93, 21600, "192.0.2.1"),
    ]


@pytest.mark.parametrize("fault", [{"cut": 1000}, {"cut": 1000, "chunked": True}, {"cut": 1000, "then": "reset"}])
async def test_an_end_that_tls_did_not_announce_is_no_end(
    fault: dict[str, Any],
    repo: Repository,
    image: SmallImage,
    access: Access,
    authority: trustme.CA,
    tmp_path: Path,
) -> None:
    registry = FakeRegistry()
    image.put(registry)
    registry.faults = [Fault("GET .*/blobs/", times=3, **fault)]
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    strict = replace(access, tls_verify=True, cert_dir=tmp_path)
    async with registry.serving(tls=_server(authority)) as host:
        assert (await pull(repo, host, strict)).manifest_digest == image.digest
