"""References and header lines: what is understood, and what is not."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefs_async.errors import InvalidNameError, TransportError
from composefs_async.registry.addresses import HostClass, classify, may_lead_to
from composefs_async.registry.challenge import Challenge, parse_challenges
from composefs_async.registry.links import next_page
from composefs_async.registry.ranges import Answer, RangeSet, judge, parse_content_range
from composefs_async.registry.reference import Reference, parse_reference
from composefs_async.registry.retrying import Budget, FailedAttemptError, retry_after
from composefs_async.registry.urls import add_query, resolve_location, shown
from composefs_async.registry.warnings_header import parse_warnings

D = "sha256:" + 64 * "a"

REFERENCES = {
    "alpine": "docker.io/library/alpine:latest",
    "alpine:3": "docker.io/library/alpine:3",
    "docker.io/alpine": "docker.io/library/alpine:latest",
    "index.docker.io/alpine": "docker.io/library/alpine:latest",
    "a/b": "docker.io/a/b:latest",
    "host:5000": "docker.io/library/host:5000",
    "host:5000/a": "host:5000/a:latest",
    "localhost/a": "localhost/a:latest",
    "localhost:80/a/b/c:x_y.z-1": "localhost:80/a/b/c:x_y.z-1",
    "Host/a": "Host/a:latest",
    "example.org/a__b/c-d/e.f/g---h": "example.org/a__b/c-d/e.f/g---h:latest",
    "[::1]/a": "[::1]/a:latest",
    "[2001:db8::1]:5000/a:1": "[2001:db8::1]:5000/a:1",
    "127.0.0.1:1/a": "127.0.0.1:1/a:latest",
    f"example.org/a@{D}": f"example.org/a@{D}",
    f"example.org/a:1@{D}": f"example.org/a:1@{D}",
    f"alpine@sha512:{128 * '0'}": f"docker.io/library/alpine@sha512:{128 * '0'}",
    "example.org/" + 255 * "a": "example.org/" + 255 * "a" + ":latest",
    "a:" + 128 * "t": "docker.io/library/a:" + 128 * "t",
    "example-1.org/a": "example-1.org/a:latest",
    "_": None,
    "": None,
    "A": None,
    "a/B": None,
    "example.org/Abc": None,
    "a//b": None,
    "a/": None,
    "/a": None,
    "a/../b": None,
    "a/./b": None,
    "a b": None,
    "a\n": None,
    "a:": None,
    "a:.x": None,
    "a:-x": None,
    "a:" + 129 * "t": None,
    "a:ü": None,
    "a@": None,
    "a@sha256:abc": None,
    f"a@{D}0": None,
    f"a@{D.upper()}": None,
    f"a@md5:{32 * 'a'}": None,
    "a@sha256:../../etc/passwd": None,
    64 * "a": None,
    "https://example.org/a": None,
    "docker://a": None,
    "a?x=1": None,
    "a#x": None,
    "a___b": None,
    "a..b": None,
    "-a": None,
    "a-": None,
    "example.org:0/a": None,
    "example.org:65536/a": None,
    "example.org:x/a": None,
    "[::1%25eth0]/a": None,
    "-example.org/a": None,
    "example..org/a": None,
    "example.org/" + 256 * "a": None,
}


@pytest.mark.parametrize(("text", "canonical"), REFERENCES.items(), ids=[text[:40] or "empty" for text in REFERENCES])
def test_references(text: str, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(InvalidNameError):
            parse_reference(f"docker://{text}")
    else:
        parsed = parse_reference(f"docker://{text}")
        assert parsed.canonical == canonical
        assert parse_reference(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alpine", "did you mean docker://alpine"),
        ("docker:/alpine", "did you mean docker://alpine?"),
        ("docker:alpine:3", "did you mean docker://alpine:3?"),
        ("oci:x", "not a reference to a registry"),
        ("docker://", "the name is missing"),
        ("docker://a/B", "lower case"),
        (f"docker://{64 * 'f'}", "looks like the id"),
        ("docker://https://x/y", "give no scheme"),
        ("docker://a b", "no spaces"),
    ],
)
def test_mistakes_have_their_own_message(text: str, words: str) -> None:
    with pytest.raises(InvalidNameError, match=words):
        parse_reference(text)


_COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)


@given(
    st.sampled_from(["example.org", "localhost", "h:5000", "[::1]:2", "docker.io"]),
    st.lists(_COMPONENT, min_size=2, max_size=4),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    st.sampled_from([None, D]),
)
def test_what_a_reference_prints_is_the_same_reference(
    domain: str, path: list[str], tag: str | None, digest: str | None
) -> None:
    reference = Reference(domain, "/".join(path), tag, digest)
    assert parse_reference(str(reference), default_tag=None) == reference


CHALLENGES = {
    'Bearer realm="https://a/t",service="s",scope="repository:x:pull"': [
        Challenge("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull"})
    ],
    'Basic realm="x"': [Challenge("basic", {"realm": "x"})],
    "Basic": [Challenge("basic")],
    'Basic realm="a, b" , Bearer realm = "c"': [
        Challenge("basic", {"realm": "a, b"}),
        Challenge("bearer", {"realm": "c"}),
    ],
    'BEARER Realm="a\\"b",SCOPE="x:y:pull,push z"': [Challenge("bearer", {"realm": 'a"b', "scope": "x:y:pull,push z"})],
    "Negotiate, Bearer realm=x": [Challenge("negotiate"), Challenge("bearer", {"realm": "x"})],
    "Negotiate abc==, Basic realm=y": [Challenge("negotiate", {}, "abc=="), Challenge("basic", {"realm": "y"})],
    'Bearer realm="x",realm="y"': [Challenge("bearer", {"realm": "x"})],
    'Bearer realm="x",error="insufficient_scope"': [Challenge("bearer", {"realm": "x", "error": "insufficient_scope"})],
    'Bearer realm="x", service="unterminated': [Challenge("bearer", {"realm": "x"})],
    "": [],
    ",,, ,": [],
    '"nonsense"': [],
}


@pytest.mark.parametrize(("line", "expected"), CHALLENGES.items())
def test_challenges(line: str, expected: list[Challenge]) -> None:
    found = parse_challenges([line])
    assert [(each.scheme, dict(each.parameters), each.token68) for each in found][: len(expected)] == [
        (each.scheme, dict(each.parameters), each.token68) for each in expected
    ]
    assert len(found) in (len(expected), len(expected) + line.count("unterminated"))


@given(st.lists(st.text(alphabet='Bearer basic="\\,;=:/ \t*é', max_size=60), max_size=4))
def test_challenges_of_any_text_end(lines: list[str]) -> None:
    assert len(parse_challenges(lines)) <= 32


LINKS = {
    '</v2/a/tags/list?n=1&last=x>; rel="next"': "/v2/a/tags/list?n=1&last=x",
    "</v2/b>; rel=next": "/v2/b",
    '<https://elsewhere.example/v2/b?x>; rel="next"': "/v2/b?x",
    '<list?last=b>; rel="next"': "/v2/a/tags/list?last=b",
    '</v2/x>; rel="prev", </v2/y>; title="a,b"; rel="other next"': "/v2/y",
    '</v2/x>; rel="prev"': None,
    "": None,
    "</v2/x>": None,
}


@pytest.mark.parametrize(("line", "expected"), LINKS.items())
def test_links_to_the_next_page(line: str, expected: str | None) -> None:
    assert next_page([line], "/v2/a/tags/list") == expected


@pytest.mark.parametrize("line", ['</admin>; rel="next"', '<http://x/>; rel="next"', '</v2/%2e/../../x>; rel="next"'])
def test_a_link_that_leads_elsewhere_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="leads to"):
        next_page([line], "/v2/a/tags/list")


def test_warnings() -> None:
    lines = ['299 - "a \\"b\\""', '299 - "a \\"b\\""', '199 - "no"', '299 - "x\x1b[31m"', "nonsense", '299 - ""']
    assert parse_warnings(lines) == ['a "b"', "x[31m"]
    assert parse_warnings([f'299 - "{5000 * "x"}"']) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-9/100", (0, 10, 100)),
        ("Bytes 5-5/*", (5, 6, None)),
        ("bytes */7", (None, None, 7)),
        ("bytes 9-0/100", None),
        ("bytes 0-9", None),
        ("items 0-9/100", None),
        ("bytes -9/100", None),
        ("", None),
    ],
)
def test_content_ranges(text: str, expected: tuple[int | None, int | None, int | None] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="Content-Range"):
            parse_content_range(text)
    else:
        assert parse_content_range(text) == expected


@pytest.mark.parametrize(
    ("status", "content_range", "length", "asked", "answer"),
    [
        (206, ["bytes 10-19/100"], 10, True, Answer.PART),
        (206, ["bytes 10-15/100"], 6, True, Answer.PART),
        (206, ["bytes 10-19/*"], 10, True, Answer.PART),
        (206, ["bytes 10-29/100"], 20, True, Answer.NO_RANGES),
        (206, ["bytes 9-19/100"], 11, True, Answer.NO_RANGES),
        (206, ["bytes 10-19/99"], 10, True, Answer.WRONG_SIZE),
        (206, [], 10, True, Answer.NO_RANGES),
        (206, ["bytes 10-19/100", "bytes 10-19/100"], 10, True, Answer.NO_RANGES),
        (206, ["bytes 10-19/100"], 10, False, Answer.REFUSED),
        (200, [], 100, True, Answer.WHOLE),
        (200, [], None, True, Answer.WHOLE),
        (200, [], 99, True, Answer.WRONG_SIZE),
        (416, ["bytes */100"], None, True, Answer.NO_RANGES),
        (416, [], None, True, Answer.NO_RANGES),
        (416, ["bytes */50"], None, True, Answer.WRONG_SIZE),
        (416, [], None, False, Answer.REFUSED),
        (204, [], None, True, Answer.REFUSED),
        (302, [], None, True, Answer.REFUSED),
        (404, [], None, True, Answer.REFUSED),
    ],
)
def test_answers_to_a_request_for_a_part(
    status: int, content_range: list[str], length: int | None, asked: bool, answer: Answer
) -> None:
    assert judge(status, content_range, length, 10, 20, 100, asked).answer is answer


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12), st.integers(0, 60))
def test_a_set_of_ranges_is_the_set_of_its_numbers(ranges: list[tuple[int, int]], offset: int) -> None:
    numbers = {number for start, end in ranges for number in range(start, end)}
    found = RangeSet([(start, end) for start, end in ranges])
    assert found.total == len(numbers)
    assert {number for start, end in found.as_list() for number in range(start, end)} == numbers
    missing = {number for start, end in found.gaps(0, 61) for number in range(start, end)}
    assert missing == set(range(61)) - numbers
    end = found.end_from(offset)
    assert all(number in numbers for number in range(offset, end))
    assert end not in numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 5.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        ("880.092µs", None),
        ("-5", None),
        ("99999999999999", None),
        (None, None),
        ("", None),
    ],
)
def test_when_to_come_back(text: str | None, expected: float | None) -> None:
    assert retry_after(text, datetime.fromtimestamp(10, UTC).timestamp()) == expected


def test_delays_grow_and_differ_and_attempts_end() -> None:
    budget = Budget(5, 0.5, random.Random(1).uniform)
    failure = FailedAttemptError(TransportError("x"), "y")
    delays = [budget.next_delay(failure) for _ in range(5)]
    assert all(0 <= delay <= 0.5 * 2**number for number, delay in enumerate(delays, 1))
    with pytest.raises(TransportError, match="x"):
        budget.next_delay(failure)
    budget.renew()
    assert budget.next_delay(FailedAttemptError(TransportError("x"), "y", after=7)) >= 7
    for hopeless in (
        FailedAttemptError(TransportError("x"), "y", again=False),
        FailedAttemptError(TransportError("x"), "y", after=121),
    ):
        with pytest.raises(TransportError):
            Budget(5, 0.5).next_delay(hopeless)


HOSTS = {
    "example.org": HostClass.PUBLIC,
    "8.8.8.8": HostClass.PUBLIC,
    "10.1.2.3": HostClass.PRIVATE,
    "fd12::1": HostClass.PRIVATE,
    "localhost": HostClass.LOOPBACK,
    "x.localhost.": HostClass.LOOPBACK,
    "127.9.9.9": HostClass.LOOPBACK,
    "::1": HostClass.LOOPBACK,
    "::ffff:127.0.0.1": HostClass.LOOPBACK,
    "2130706433": HostClass.LOOPBACK,
    "0x7f.1": HostClass.LOOPBACK,
    "169.254.169.254": HostClass.FORBIDDEN,
    "::ffff:169.254.169.254": HostClass.FORBIDDEN,
    "fe80::1": HostClass.FORBIDDEN,
    "0.0.0.0": HostClass.FORBIDDEN,
    "::": HostClass.FORBIDDEN,
    "224.0.0.1": HostClass.FORBIDDEN,
    "fd00:ec2::254": HostClass.FORBIDDEN,
    "100.100.100.200": HostClass.FORBIDDEN,
}


@pytest.mark.parametrize(("host", "expected"), HOSTS.items())
def test_classes_of_hosts(host: str, expected: HostClass) -> None:
    assert classify(host) is expected
    assert may_lead_to("registry.example.org", host) is (expected in (HostClass.PUBLIC, HostClass.PRIVATE))
    assert may_lead_to("registry.example.org", host, credentials=True) is (expected is HostClass.PUBLIC)
    assert may_lead_to("127.0.0.1", host, credentials=True) is (expected in (HostClass.PUBLIC, HostClass.LOOPBACK))
    assert may_lead_to("10.0.0.1", host, credentials=True) is (expected in (HostClass.PUBLIC, HostClass.PRIVATE))
    assert may_lead_to(host, host)


def test_urls_are_shown_without_their_secrets() -> None:
    assert shown("https://u:p@example.org:444/a/b?signature=secret#x") == "https://example.org:444/a/b"
    assert shown("nonsense") == "a malformed URL"
    assert add_query("https://a/t?x=1", [("scope", "repository:a/b:pull")]) == (
        "https://a/t?x=1&scope=repository%3Aa%2Fb%3Apull"
    )
    assert resolve_location("https://a/v2/x", "/y z?s=%2F&t=1#f") == "https://a/y%20z?s=%2F&t=1"
    for bad in ("ftp://x/", "https://u:p@x/", "//[", "http:///x", "https://x:99999/"):
        with pytest.raises(ValueError, match=r".+"):
            resolve_location("https://a/", bad)
