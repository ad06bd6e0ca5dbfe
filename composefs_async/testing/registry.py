"""A registry in memory, for tests of clients: it keeps to the OCI distribution specification, or breaks it as told.

Owns names, blobs, uploads, referrers and access.  Does not own connections and faults (`testing.http`).  A test runs
it in its own event loop::

    registry = FakeRegistry()
    digest = registry.put_manifest("a/b", "latest", document, media_type)
    registry.faults.append(Fault("GET .*/blobs/", cut=1000, then="reset"))
    async with registry.serving() as address:
        ...
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from .http import Answer, Fault, FaultyServer, Seen

__all__ = ["Answer", "FakeRegistry", "Fault", "Seen", "TokenServer"]

_NAME = r"(?P<name>[a-z0-9._/-]+)"
_DIGEST = r"(?P<digest>[a-z0-9]+:[0-9a-f]+)"
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    """The digest that names *content*."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


@dataclass(slots=True)
class _Repository:
    blobs: set[str] = field(default_factory=set[str])
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict[str, tuple[str, bytes]])
    """By digest: media type and content."""
    tags: dict[str, str] = field(default_factory=dict[str, str])


class FakeRegistry(FaultyServer):
    """A registry.

    Args:
        ranges: it gives parts of blobs.
        referrers: it has the API of that name.
        heads: it answers HEAD for manifests.
        users: names and passwords; with them it wants Basic authentication, or tokens if *realm* is given.
        realm: the URL of a `TokenServer` whose tokens it takes.
        blobs_at: redirects requests for blobs to the URL that this gives for a digest.
    """

    def __init__(
        self,
        *,
        ranges: bool = True,
        referrers: bool = True,
        heads: bool = True,
        users: dict[str, str] | None = None,
        realm: TokenServer | None = None,
        blobs_at: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__(self.answer)
        self.ranges: bool = ranges
        self.referrers: bool = referrers
        self.heads: bool = heads
        self.users: dict[str, str] | None = users
        self.realm: TokenServer | None = realm
        self.blobs_at: Callable[[str], str] | None = blobs_at
        self.content: dict[str, bytes] = {}
        """All blobs, by digest."""
        self.repositories: dict[str, _Repository] = {}
        self.page_size: int | None = None
        """Entries of a page of tags."""
        self._uploads: dict[str, bytes] = {}
        self._numbers = itertools.count(1)
        self._routes: list[tuple[re.Pattern[str], Callable[[Seen, re.Match[str]], Answer]]] = [
            (re.compile("/v2/"), lambda seen, found: Answer()),
            (re.compile("/v2/_catalog"), self._catalog),
            (re.compile(f"/v2/{_NAME}/tags/list"), self._tags),
            (re.compile(f"/v2/{_NAME}/referrers/{_DIGEST}"), self._referrers),
            (re.compile(f"/v2/{_NAME}/blobs/uploads/(?P<session>[0-9]*)"), self._upload),
            (re.compile(f"/v2/{_NAME}/blobs/{_DIGEST}"), self._blob),
            (re.compile(f"/v2/{_NAME}/manifests/(?P<which>[^/]+)"), self._manifest),
        ]

    # -- what is in it -------------------------------------------------------------------------

    def repository(self, name: str) -> _Repository:
        """The repository of that name, which is made if needed."""
        return self.repositories.setdefault(name, _Repository())

    def put_blob(self, name: str, content: bytes, algorithm: str = "sha256") -> str:
        """Add a blob; returns its digest."""
        digest = digest_of(content, algorithm)
        self.content[digest] = content
        self.repository(name).blobs.add(digest)
        return digest

    def put_manifest(self, name: str, tag: str | None, content: bytes, media_type: str = OCI_MANIFEST) -> str:
        """Add a manifest or index; returns its digest."""
        digest = digest_of(content)
        repository = self.repository(name)
        repository.manifests[digest] = media_type, content
        if tag is not None:
            repository.tags[tag] = digest
        return digest

    # -- requests ------------------------------------------------------------------------------

    async def answer(self, seen: Seen) -> Answer:
        """The answer to a request."""
        for pattern, route in self._routes:
            if found := pattern.fullmatch(seen.path):
                return self._refused(seen, found) or route(seen, found)
        return _error(404, "UNSUPPORTED")

    def _refused(self, seen: Seen, found: re.Match[str]) -> Answer | None:
        shown = seen.headers.get("authorization", "")
        if self.realm is not None:
            name = found.groupdict().get("name")
            actions = "pull" if seen.method in ("GET", "HEAD") else "pull,push"
            if self.realm.allows(shown.removeprefix("Bearer "), name, actions):
                return None
            scope = f',scope="repository:{name}:{actions}"' if name else ""
            challenge = f'Bearer realm="{self.realm.url}",service="fake"{scope}'
        elif self.users is not None:
            if shown.startswith("Basic ") and _pair(shown) in self.users.items():
                return None
            challenge = 'Basic realm="fake"'
        else:
            return None
        return Answer(401, {"www-authenticate": challenge}, _errors("UNAUTHORIZED"))

    def _manifest(self, seen: Seen, found: re.Match[str]) -> Answer:
        repository, which = self.repository(found["name"]), found["which"]
        if seen.method == "PUT":
            tag = None if ":" in which else which
            digest = self.put_manifest(found["name"], tag, seen.body, seen.headers.get("content-type", ""))
            headers = {"docker-content-digest": digest, "location": f"/v2/{found['name']}/manifests/{digest}"}
            subject = json.loads(seen.body).get("subject")
            if subject and self.referrers:
                headers["oci-subject"] = subject["digest"]
            return Answer(201, headers)
        if seen.method == "HEAD" and not self.heads:
            return Answer(405)
        digest = repository.tags.get(which, which)
        if seen.method == "DELETE" and digest in repository.manifests:
            del repository.manifests[digest]
            return Answer(202)
        if digest not in repository.manifests:
            return _error(404, "MANIFEST_UNKNOWN")
        media_type, content = repository.manifests[digest]
        return Answer(200, {"content-type": media_type, "docker-content-digest": digest}, content)

    def _blob(self, seen: Seen, found: re.Match[str]) -> Answer:
        digest = found["digest"]
        if digest not in self.repository(found["name"]).blobs:
            return _error(404, "BLOB_UNKNOWN")
        if self.blobs_at is not None:
            return Answer(307, {"location": self.blobs_at(digest)})
        return serve_content(seen, self.content[digest], self.ranges)

    def _tags(self, seen: Seen, found: re.Match[str]) -> Answer:
        name = found["name"]
        if name not in self.repositories:
            return _error(404, "NAME_UNKNOWN")
        page, link = self._page(seen, sorted(self.repositories[name].tags))
        return Answer(200, {"link": link} if link else {}, json.dumps({"name": name, "tags": page}).encode())

    def _catalog(self, seen: Seen, found: re.Match[str]) -> Answer:
        page, link = self._page(seen, sorted(self.repositories))
        return Answer(200, {"link": link} if link else {}, json.dumps({"repositories": page}).encode())

    def _page(self, seen: Seen, names: list[str]) -> tuple[list[str], str]:
        last = parse_qs(urlsplit(seen.target).query).get("last", [""])[0]
        names = [name for name in names if name > last]
        if self.page_size is None or len(names) <= self.page_size:
            return names, ""
        page = names[: self.page_size]
        return page, f'<{seen.path}?n={self.page_size}&last={page[-1]}>; rel="next"'

    def _referrers(self, seen: Seen, found: re.Match[str]) -> Answer:
        if not self.referrers:
            return Answer(404)
        entries = []
        for digest, (media_type, content) in self.repository(found["name"]).manifests.items():
            document = json.loads(content)
            if document.get("subject", {}).get("digest") == found["digest"]:
                kind = document.get("artifactType") or document["config"]["mediaType"]
                entry = {"mediaType": media_type, "digest": digest, "size": len(content), "artifactType": kind}
                entries.append(entry)
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return Answer(200, {"content-type": OCI_INDEX}, json.dumps(index).encode())

    # -- uploads -------------------------------------------------------------------------------

    def _upload(self, seen: Seen, found: re.Match[str]) -> Answer:
        name, session = found["name"], found["session"]
        query = parse_qs(urlsplit(seen.target).query)
        if seen.method == "POST":
            mounted, origin = query.get("mount", [""])[0], query.get("from", [""])[0]
            if mounted and origin and mounted in self.repository(origin).blobs:
                self.repository(name).blobs.add(mounted)
                return Answer(201, {"location": f"/v2/{name}/blobs/{mounted}", "docker-content-digest": mounted})
            session = str(next(self._numbers))
            self._uploads[session] = b""
            return Answer(202, {"location": f"/v2/{name}/blobs/uploads/{session}?state=kept", "range": "0-0"})
        if session not in self._uploads:
            return _error(404, "BLOB_UPLOAD_UNKNOWN")
        location = f"/v2/{name}/blobs/uploads/{session}?state=kept"
        if seen.method == "DELETE":
            del self._uploads[session]
            return Answer(204)
        if seen.method == "GET":
            return Answer(204, {"location": location, "range": f"0-{max(0, len(self._uploads[session]) - 1)}"})
        if "content-range" in seen.headers and not seen.headers["content-range"].startswith(
            f"{len(self._uploads[session])}-"
        ):
            return Answer(416, {"location": location, "range": f"0-{max(0, len(self._uploads[session]) - 1)}"})
        self._uploads[session] += seen.body
        if seen.method == "PATCH":
            return Answer(202, {"location": location, "range": f"0-{max(0, len(self._uploads[session]) - 1)}"})
        digest, content = query.get("digest", [""])[0], self._uploads.pop(session)
        if not digest or digest_of(content, digest.partition(":")[0]) != digest:
            return _error(400, "DIGEST_INVALID")
        self.put_blob(name, content, digest.partition(":")[0])
        return Answer(201, {"location": f"/v2/{name}/blobs/{digest}", "docker-content-digest": digest})


class TokenServer(FaultyServer):
    """Gives tokens for a `FakeRegistry`.

    Args:
        users: names and passwords; others get tokens to pull with, unless *anonymous* is False.
    """

    def __init__(self, users: dict[str, str] | None = None, *, anonymous: bool = True) -> None:
        super().__init__(self.answer)
        self.users: dict[str, str] = users or {}
        self.anonymous: bool = anonymous
        self.tokens: dict[str, set[str]] = {}
        """Scopes of the tokens that are valid."""
        self.expires_in: int = 300
        self.only_access_token: bool = False
        self.refresh_tokens: set[str] = set()
        self.scheme: str = "http"
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        """URL at which clients get tokens."""
        return f"{self.scheme}://{self.address}/token"

    def allows(self, token: str, name: str | None, actions: str) -> bool:
        """Whether *token* is good for that."""
        if token not in self.tokens:
            return False
        wanted = set(actions.split(","))
        granted = (scope.rsplit(":", 1) for scope in self.tokens[token])
        return name is None or any(
            where == f"repository:{name}" and wanted <= set(allowed.split(",")) for where, allowed in granted
        )

    async def answer(self, seen: Seen) -> Answer:
        """The answer to a request for a token."""
        if seen.method == "POST":
            form = parse_qs(seen.body.decode())
            if form.get("refresh_token", [""])[0] not in self.refresh_tokens:
                return _error(401, "UNAUTHORIZED")
            return self._grant(form.get("scope", [""])[0].split(), True)
        query = parse_qs(urlsplit(seen.target).query)
        shown = seen.headers.get("authorization", "")
        if shown and _pair(shown) not in self.users.items():
            return _error(401, "UNAUTHORIZED")
        if not shown and not self.anonymous:
            return _error(401, "UNAUTHORIZED")
        return self._grant(query.get("scope", []), bool(shown))

    def _grant(self, scopes: list[str], known: bool) -> Answer:
        token = f"token-{next(self._numbers)}"
        self.tokens[token] = {scope if known else re.sub(":pull,push$", ":pull", scope) for scope in scopes}
        key = "access_token" if self.only_access_token else "token"
        return Answer(200, {}, json.dumps({key: token, "expires_in": self.expires_in}).encode())


def serve_content(seen: Seen, content: bytes, ranges: bool) -> Answer:
    """The answer to GET or HEAD of something with a size."""
    found = _RANGE.fullmatch(seen.headers.get("range", "")) if ranges else None
    if found is None:
        return Answer(200, {"content-type": "application/octet-stream"}, content)
    start, end = int(found[1]), int(found[2]) + 1
    if start >= len(content):
        return Answer(416, {"content-range": f"bytes */{len(content)}"})
    end = min(end, len(content))
    return Answer(206, {"content-range": f"bytes {start}-{end - 1}/{len(content)}"}, content[start:end])


def _pair(header: str) -> tuple[str, str]:
    name, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
    return name, password


def _errors(code: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": code.lower().replace("_", " ")}]}).encode()


def _error(status: int, code: str) -> Answer:
    return Answer(status, {"content-type": "application/json"}, _errors(code))
