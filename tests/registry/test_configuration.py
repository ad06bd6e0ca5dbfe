"""Files of this machine's user and administrator: where they are looked for, and what they say."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from composefs_async.errors import AuthenticationError, PolicyError, RegistryError, TransportError
from composefs_async.registry.access import Access, Credentials, Surroundings
from composefs_async.registry.auth_files import parse_auth_file
from composefs_async.registry.certs import find_certificates, make_context
from composefs_async.registry.credentials import CredentialStore, forget_credentials, store_credentials
from composefs_async.registry.policy import docker_scopes, load_policy, parse_policy, path_scopes
from composefs_async.registry.proxies import proxy_for
from composefs_async.registry.reference import parse_reference
from composefs_async.registry.registries_conf import load_registries_conf, parse_registries_conf
from composefs_async.registry.secret import Secret


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    """Everything of the system and of a user is below the temporary directory."""
    return Surroundings(
        {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run-user"), "PATH": str(tmp_path / "bin")},
        1000,
        tmp_path / "root",
    )


def write(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


# -- registries.conf ---------------------------------------------------------------------------

CONF = """
unqualified-search-registries = ["example.com"]
credential-helpers = ["secret"]

[[registry]]
prefix = "example.com/foo"
insecure = false
location = "internal.example:5000/bar"

[[registry.mirror]]
location = "mirror-1.example/mine"
insecure = true

[[registry.mirror]]
location = "mirror-2.example/mine"
pull-from-mirror = "digest-only"

[[registry.mirror]]
location = "mirror-3.example/mine"
pull-from-mirror = "tag-only"

[[registry]]
prefix = "*.wild.example"
location = "wild.internal/all"

[[registry]]
location = "blocked.example"
blocked = true

[[registry]]
location = "loose.example"
insecure = true

[[registry]]
prefix = "example.com/foo/deep"
location = "deep.example"
"""
D = "sha256:" + 64 * "a"
LOCATIONS = {
    "example.com/foo/x:1": ["mirror-1.example/mine/x!", "mirror-3.example/mine/x", "internal.example:5000/bar/x"],
    f"example.com/foo/x@{D}": ["mirror-1.example/mine/x!", "mirror-2.example/mine/x", "internal.example:5000/bar/x"],
    "example.com/foo:1": ["mirror-1.example/mine!", "mirror-3.example/mine", "internal.example:5000/bar"],
    "example.com/foobar:1": ["example.com/foobar"],
    "example.com/foo/deep/y:1": ["deep.example/y"],
    "a.b.wild.example/x:1": ["a.b.wild.example/x"],
    "loose.example/x:1": ["loose.example/x!"],
    "loose.example:5000/x:1": ["loose.example:5000/x!"],
    "other.example/x:1": ["other.example/x"],
}


@pytest.mark.parametrize(("reference", "expected"), LOCATIONS.items())
def test_where_a_reference_may_be_had(reference: str, expected: list[str]) -> None:
    conf = parse_registries_conf(CONF)
    found = conf.locations(parse_reference(f"docker://{reference}"))
    assert [f"{each.name}{'!' if each.insecure else ''}" for each in found] == expected
    assert [each.mirror for each in found] == [True] * (len(found) - 1) + [False]
    pushed = conf.locations(parse_reference(f"docker://{reference}"), push=True)
    assert [each.name for each in pushed] == [found[-1].name]


def test_what_is_blocked_is_an_error_that_names_the_file() -> None:
    with pytest.raises(RegistryError, match=r"registries\.conf blocks blocked\.example"):
        parse_registries_conf(CONF).locations(parse_reference("docker://blocked.example/x"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[registries.search]\nregistries = []", "version 2"),
        ("x = ", "not valid TOML"),
        ("[[registry]]", "neither prefix nor location"),
        ('[[registry]]\nprefix = "a.example"', "no location"),
        ('[[registry]]\nlocation = "https://a.example"', "no scheme"),
        ('[[registry]]\nlocation = "a"\npull-from-mirror = "all"', "belongs into"),
        ('[[registry]]\nlocation = "a"\n[[registry.mirror]]\nlocation = "b"\npull-from-mirror = "x"', "none of"),
        ('[[registry]]\nlocation = "a"\n[[registry.mirror]]', "no location"),
        ('[[registry]]\nprefix = "*.a/b"\nlocation = "a"', "only the name of a domain"),
        ("[[registry]]\nlocation = 5", "not a string"),
        ('[[registry]]\nlocation = "a"\ninsecure = "yes"', "neither true nor false"),
        (
            '[[registry]]\nlocation = "a"\n[[registry]]\nprefix = "b"\nlocation = "a"\ninsecure = true',
            "differently for a",
        ),
    ],
)
def test_a_configuration_that_cannot_be_understood(text: str, words: str) -> None:
    with pytest.raises(TransportError, match=words):
        parse_registries_conf(text)


def test_files_of_registries_conf(around: Surroundings) -> None:
    def entry(name: str) -> str:
        return f'[[registry]]\nprefix = "p.example"\nlocation = "{name}.example"\n'

    def location(where: Surroundings, file: Path | None = None) -> str:
        return load_registries_conf(where, file).locations(parse_reference("docker://p.example/x"))[0].host

    assert location(around) == "p.example"
    write(around.system("usr/share/containers/registries.conf"), entry("vendor"))
    assert location(around) == "vendor.example"
    write(around.system("etc/containers/registries.conf"), entry("etc"))
    assert location(around) == "etc.example"
    write(around.system("etc/containers/registries.conf.d/50.conf"), entry("etc-50"))
    write(around.system("etc/containers/registries.conf.d/40.conf"), entry("etc-40"))
    write(around.system("etc/containers/registries.conf.d/60.txt"), "nonsense")
    assert location(around) == "etc-50.example"
    write(around.config_home / "containers/registries.conf.d/50.conf", entry("user-50"))
    assert location(around) == "user-50.example"
    write(around.config_home / "containers/registries.conf.d/70.conf", entry("user-70"))
    assert location(around) == "user-70.example"
    override = write(around.home / "override", entry("override"))
    variables = {**around.variables, "CONTAINERS_REGISTRIES_CONF_OVERRIDE": str(override)}
    assert location(replace(around, variables=variables)) == "override.example"
    alone = write(around.home / "alone", entry("alone"))
    assert location(replace(around, variables={**around.variables, "CONTAINERS_REGISTRIES_CONF": str(alone)})) == (
        "alone.example"
    )
    assert location(around, alone) == "alone.example"
    with pytest.raises(TransportError, match="missing"):
        location(around, around.home / "missing")


# -- credentials -------------------------------------------------------------------------------


def auth(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


FILE = {
    "auths": {
        "example.org/a/b": auth("deep", "1"),
        "example.org/a": auth("shallow", "2"),
        "example.org": auth("host", "3:with:colons"),
        "https://index.docker.io/v1/": auth("hub", "4"),
        "http://old.example/v2/": auth("old", "5"),
        "empty.example": {},
        "split.example": {"username": "split", "password": "6"},
        "broken.example": {"auth": "!!!"},
        "identity.example": {"auth": "", "identitytoken": "idt"},
        "token.example": {"registrytoken": "regt"},
        "nul.example": {"auth": base64.b64encode(b"nul:7\0\0").decode()},
    }
}
ENTRIES = {
    ("example.org", "a/b/c"): "deep",
    ("example.org", "a/b"): "deep",
    ("example.org", "a/bb"): "shallow",
    ("example.org", "x"): "host",
    ("docker.io", "library/x"): "hub",
    ("old.example", "x"): "old",
    ("empty.example", "x"): None,
    ("split.example", "x"): "split",
    ("broken.example", "x"): None,
    ("nul.example", "x"): "nul",
    ("other.example", "x"): None,
}


@pytest.mark.parametrize(("asked", "username"), ENTRIES.items(), ids=["/".join(key) for key in ENTRIES])
def test_entries_of_a_file(asked: tuple[str, str], username: str | None) -> None:
    file = parse_auth_file(json.dumps(FILE).encode(), "auth.json")
    found = next(iter(file.find(*asked)), None)
    assert (found.username if isinstance(found, Credentials) else None) == username


def test_secrets_of_a_file_are_secret() -> None:
    file = parse_auth_file(json.dumps(FILE).encode(), "auth.json")
    found = [next(iter(file.find(host, "x"))) for host in ("example.org", "identity.example", "token.example")]
    assert isinstance(found[0], Credentials)
    assert found[0].password.reveal() == "3:with:colons"
    assert [word for word in ("colons", "idt", "regt") if word in f"{found} {found[0].password} {file}"] == []
    assert repr(Secret("x")) == str(Secret("x")) == "***"


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"auths": 5}', b'{"auths": {"h": 5}}'])
def test_a_broken_file_is_named_and_not_quoted(content: bytes) -> None:
    with pytest.raises(TransportError, match=r"auth\.json"):
        list(parse_auth_file(content, "auth.json").find("h", "x"))


async def _user(around: Surroundings, access: Access | None = None, *, logical: bool = True) -> str | None:
    store = CredentialStore(access or Access(), around)
    found = await store.find("h.example", "a", logical=logical)
    return found.credentials.username if found.credentials else None


@pytest.mark.anyio
async def test_places_of_credentials_from_the_last_to_the_first(around: Surroundings, tmp_path: Path) -> None:
    def file(name: str) -> str:
        return json.dumps({"auths": {"h.example": auth(name, "x")}})

    assert await _user(around) is None
    write(around.home / ".dockercfg", json.dumps({"h.example": auth("dockercfg", "x")}))
    assert await _user(around) == "dockercfg"
    write(around.home / ".docker/config.json", file("docker"))
    assert await _user(around) == "docker"
    write(around.config_home / "containers/auth.json", file("config"))
    assert await _user(around) == "config"
    write(tmp_path / "run-user/containers/auth.json", file("runtime"))
    assert await _user(around) == "runtime"
    write(around.config_home / "ostree/auth.json", file("ostree-config"))
    assert await _user(around, Access(bootc_auth=True)) == "ostree-config"
    write(tmp_path / "run-user/ostree/auth.json", file("ostree-run"))
    assert await _user(around, Access(bootc_auth=True)) == "ostree-run"
    assert await _user(around) == "runtime"
    write(tmp_path / "docker-config/config.json", file("docker-config"))
    with_docker = replace(around, variables={**around.variables, "DOCKER_CONFIG": str(tmp_path / "docker-config")})
    assert await _user(with_docker) == "docker-config"
    variable = write(tmp_path / "variable", file("variable"))
    with_variable = replace(with_docker, variables={**with_docker.variables, "REGISTRY_AUTH_FILE": str(variable)})
    assert await _user(with_variable) == "variable"
    given = write(tmp_path / "given", file("given"))
    assert await _user(with_variable, Access(authfile=given)) == "given"
    explicit = Access(authfile=given, credentials=Credentials.basic("explicit", "x"))
    assert await _user(with_variable, explicit) == "explicit"
    assert await _user(with_variable, explicit, logical=False) == "given"
    assert await _user(with_variable, Access(credentials=Credentials.anonymous()), logical=False) is None
    with pytest.raises(TransportError, match="missing"):
        await _user(around, Access(authfile=tmp_path / "missing"))


def helper(path: Path, script: str) -> None:
    write(path, f"#!/bin/sh\n{script}\n", 0o755)


HELPERS = {
    'read -r host; echo "{\\"Username\\":\\"u-$host\\",\\"Secret\\":\\"s\\"}"': "u-h.example",
    'echo "credentials not found in native keychain"; exit 1': None,
    'echo "{}"': None,
    'echo "the keychain is locked" >&2; exit 1': "locked",
    "echo nonsense": "no valid answer",
    "head -c 100000 /dev/zero": "more than|no valid answer|failed",
}


@pytest.mark.anyio
@pytest.mark.parametrize(("script", "expected"), HELPERS.items(), ids=[str(each) for each in range(len(HELPERS))])
async def test_helpers(script: str, expected: str | None, around: Surroundings, tmp_path: Path) -> None:
    variables = {**around.variables, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    around = replace(around, variables=variables)
    helper(tmp_path / "bin/docker-credential-x", script)
    for config in ({"credHelpers": {"h.example": "x"}}, {"credsStore": "x"}):
        write(around.home / ".docker/config.json", json.dumps(config))
        if expected is None or expected.startswith("u-"):
            assert await _user(around) == expected
        else:
            with pytest.raises(AuthenticationError, match=expected):
                await _user(around)
    store = CredentialStore(Access(), around, ["x", "containers-auth.json"])
    if expected is not None and expected.startswith("u-"):
        found = (await store.find("h.example", "a", logical=True)).credentials
        assert found is not None
        assert found.username == expected


@pytest.mark.anyio
async def test_a_helper_that_is_not_there_or_has_a_bad_name(around: Surroundings) -> None:
    for name in ("missing", "../../bin/sh", "a b"):
        write(around.home / ".docker/config.json", json.dumps({"credsStore": name}))
        with pytest.raises(AuthenticationError, match=r"not on PATH"):
            await _user(around)


@pytest.mark.anyio
async def test_login_keeps_what_else_is_in_the_file(around: Surroundings, tmp_path: Path) -> None:
    path = write(
        tmp_path / "run-user/containers/auth.json", json.dumps({"x": 1, "auths": {"o.example": auth("o", "")}})
    )
    await store_credentials(path, "h.example", "user", "pass")
    assert json.loads(path.read_bytes()) == {
        "x": 1,
        "auths": {"o.example": auth("o", ""), "h.example": auth("user", "pass")},
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert await _user(around) == "user"
    assert await forget_credentials(Access(), around, "h.example")
    assert not await forget_credentials(Access(), around, "h.example")
    assert json.loads(path.read_bytes()) == {"x": 1, "auths": {"o.example": auth("o", "")}}


@pytest.mark.anyio
async def test_a_file_that_others_can_read_is_told(around: Surroundings, tmp_path: Path) -> None:
    import os

    write(tmp_path / "run-user/containers/auth.json", "{}", 0o644)
    store = CredentialStore(Access(), replace(around, uid=os.getuid()))
    await store.find("h.example", "a", logical=True)
    assert ["can be read by others" in each for each in store.warnings] == [True]


# -- proxies and certificates ------------------------------------------------------------------

P = {"https_proxy": "http://p:1", "HTTP_PROXY": "http://q:2"}
PROXIES = [
    (P, "https", "example.org", "http://p:1"),
    (P, "http", "example.org", "http://q:2"),
    ({**P, "REQUEST_METHOD": "GET"}, "http", "example.org", None),
    (P, "https", "127.0.0.1", None),
    (P, "https", "localhost", None),
    ({**P, "no_proxy": "example.org"}, "https", "a.example.org", None),
    ({**P, "NO_PROXY": ".example.org"}, "https", "a.example.org", None),
    ({**P, "no_proxy": "example.org:444"}, "https", "example.org", "http://p:1"),
    ({**P, "no_proxy": "x, 10.0.0.0/8"}, "https", "10.1.1.1", None),
    ({**P, "no_proxy": "*"}, "https", "example.org", None),
    ({**P, "no_proxy": "ample.org"}, "https", "example.org", "http://p:1"),
    ({"ALL_PROXY": "p:1"}, "https", "example.org", "http://p:1"),
    ({"https_proxy": "low", "HTTPS_PROXY": "up"}, "https", "example.org", "http://low"),
    ({}, "https", "example.org", None),
]


@pytest.mark.parametrize(("environ", "scheme", "host", "expected"), PROXIES)
def test_proxies(environ: dict[str, str], scheme: str, host: str, expected: str | None) -> None:
    assert proxy_for(environ, scheme, host, 443 if scheme == "https" else 80) == expected


def test_directories_of_certificates(around: Surroundings, tmp_path: Path) -> None:
    def found(cert_dir: Path | None = None) -> list[str]:
        certificates = find_certificates(around, "h.example:5000", cert_dir)
        return [str(path.relative_to(tmp_path)) for path in certificates.authorities]

    assert found() == []
    expected = []
    for directory in (
        "root/etc/docker/certs.d",
        "root/usr/share/containers/certs.d",
        "root/etc/containers/certs.d",
        "root/etc/containers/certs.rootless.d",
        "home/.config/containers/certs.d",
    ):
        write(tmp_path / directory / "h.example:5000/ca.crt", "x")
        expected.append(f"{directory}/h.example:5000/ca.crt")
        assert found() == [expected[-1]]
    write(tmp_path / "given/other.crt", "x")
    assert found(tmp_path / "given") == ["given/other.crt"]
    write(tmp_path / "given/client.cert", "x")
    with pytest.raises(TransportError, match=r"has no client\.key beside it; files of authorities end in \.crt"):
        found(tmp_path / "given")
    write(tmp_path / "given/client.key", "x")
    certificates = find_certificates(around, "h", tmp_path / "given")
    assert [(a.name, b.name) for a, b in certificates.clients] == [("client.cert", "client.key")]
    with pytest.raises(TransportError, match=r"other\.crt has no certificate"):
        make_context(around, certificates, verify=True)
    with pytest.raises(TransportError, match="No such file"):
        found(tmp_path / "missing")


# -- policy ------------------------------------------------------------------------------------

ACCEPT, REJECT = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]
POLICY = {
    "default": REJECT,
    "transports": {
        "docker": {
            "example.org": ACCEPT,
            "example.org/secret": REJECT,
            "example.org/secret/open:1": ACCEPT,
            "*.wild.example": ACCEPT,
            "gpg.example": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}],
            "both.example": [*ACCEPT, *REJECT],
            "rekor.example": [{"type": "sigstoreSigned", "keyPath": "/k", "rekorPublicKeyPath": "/r"}],
            "cosign.example": [{"type": "sigstoreSigned", "keyPath": "/k"}],
        },
        "oci": {"/images": ACCEPT},
    },
}
DECISIONS = {
    "example.org/x": None,
    "example.org/secret": "rejects",
    "example.org/secret/deep": "rejects",
    "example.org/secret/open:1": None,
    "example.org/secret/open:2": "rejects",
    "a.b.wild.example/x": None,
    "wild.example/x": "rejects",
    "other.example/x": "rejects",
    "gpg.example/x": r"signature \(signedBy\).*skopeo copy",
    "both.example/x": "rejects",
    "rekor.example/x": "rekorPublicKeyPath",
    "cosign.example/x": None,
}


@pytest.mark.parametrize(("reference", "words"), DECISIONS.items())
def test_decisions_of_a_policy(reference: str, words: str | None) -> None:
    policy, parsed = parse_policy(json.dumps(POLICY).encode(), "p.json"), parse_reference(f"docker://{reference}")
    if words is None:
        demands = policy.check(str(parsed), "docker", docker_scopes(parsed))
        assert len(demands) == reference.startswith("cosign")
    else:
        with pytest.raises(PolicyError, match=words):
            policy.check(str(parsed), "docker", docker_scopes(parsed))


def test_scopes() -> None:
    assert docker_scopes(parse_reference("docker://a.example.org:5000/x/y:1")) == [
        "a.example.org:5000/x/y:1",
        "a.example.org:5000/x/y",
        "a.example.org:5000/x",
        "a.example.org:5000",
        "*.example.org",
        "*.org",
    ]
    assert path_scopes("/images/a/") == ["/images/a", "/images", "/"]
    policy = parse_policy(json.dumps(POLICY).encode(), "p.json")
    assert policy.check("oci:/images/a", "oci", path_scopes("/images/a")) == []
    with pytest.raises(PolicyError):
        policy.check("oci:/x", "oci", path_scopes("/x"))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"default":[]}',
        '{"default":[{"type":"reject"}],"x":1}',
        '{"default":[{"type":"reject"}],"default":[{"type":"reject"}]}',
        '{"default":[{"type":"maybe"}]}',
        '{"default":[{"type":"reject","x":1}]}',
        '{"default":[{}]}',
        '{"default":[{"type":"signedBy"}]}',
        '{"default":[{"type":"sigstoreSigned"}]}',
        '{"default":[{"type":"sigstoreSigned","keyPath":"/a","keyData":"eA=="}]}',
        '{"default":[{"type":"sigstoreSigned","keyPath":5}]}',
        '{"default":[{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"x"}}]}',
        '{"default":[{"type":"reject"}],"transports":{"docker":[]}}',
        '{"default":[{"type":"reject"}],"transports":{"docker":{"":[]}}}',
    ],
)
def test_a_policy_that_is_not_valid_allows_nothing(text: str) -> None:
    with pytest.raises(PolicyError, match="it is not valid"):
        parse_policy(text.encode(), "p.json")


def test_files_of_the_policy(around: Surroundings, tmp_path: Path) -> None:
    assert load_policy(Access(), around) is None
    text = json.dumps({"default": REJECT})
    expected = [
        write(around.system("usr/share/containers/policy.json"), text),
        write(around.system("etc/containers/policy.json"), text),
        write(around.config_home / "containers/policy.json", text),
    ]
    for path in reversed(expected):
        policy = load_policy(Access(), around)
        assert policy is not None
        assert policy.file == str(path)
        path.unlink()
    given = write(tmp_path / "given.json", text)
    for access, variables in (
        (Access(policy=given), {}),
        (Access(), {"CONTAINERS_POLICY_JSON": str(given)}),
    ):
        policy = load_policy(access, replace(around, variables={**around.variables, **variables}))
        assert policy is not None
        assert policy.file == str(given)
    assert load_policy(Access(policy="insecure"), around) is None
    with pytest.raises(TransportError):
        load_policy(Access(policy=tmp_path / "missing"), around)
