"""Images are fetched from public addresses only, by the address that was checked, bounded in bytes and redirects."""

import asyncio

import httpx
import pytest

from anysam.serve.problems import Problem
from anysam.serve.url_fetch import fetch_image, is_public

PUBLIC = "93.184.216.34"


def fetch(url, names, answers, limit=1000):
    """Fetch with a resolver that knows `names`, from servers that give `answers` by Host and path; what was asked."""
    asked = []

    async def resolve(host, port):
        if host not in names:
            raise OSError("no such name")
        return names[host]

    def answer(request):
        asked.append((request.url.host, request.headers["host"], request.extensions["sni_hostname"]))
        return answers[request.headers["host"] + request.url.path]

    transport = httpx.MockTransport(answer)
    try:
        return asyncio.run(fetch_image(url, limit, resolve=resolve, transport=transport)), asked
    except Problem as problem:
        return problem, asked


def test_the_connection_goes_to_the_address_that_was_checked():
    found, asked = fetch(
        "https://photos.example/a.png?x=1",
        {"photos.example": [PUBLIC]},
        {"photos.example/a.png": httpx.Response(200, content=b"png")},
    )
    assert found == b"png" and asked == [(PUBLIC, "photos.example", "photos.example")]


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.5"],
        ["169.254.169.254"],
        ["::1"],
        ["fe80::1%eth0"],
        ["::ffff:127.0.0.1"],
        ["0.0.0.0"],
        ["100.64.0.1"],
        [PUBLIC, "192.168.1.1"],
        [],
    ],
    ids=str,
)
def test_names_of_private_addresses_are_refused_before_anything_is_sent(addresses):
    found, asked = fetch("http://inside.example/", {"inside.example": addresses}, {})
    assert isinstance(found, Problem) and found.status == 403 and asked == []


def test_a_redirect_is_checked_like_the_first_address():
    names = {"out.example": [PUBLIC], "in.example": ["10.1.1.1"]}
    answers = {"out.example/a": httpx.Response(302, headers={"location": "http://in.example/secret"})}
    found, asked = fetch("http://out.example/a", names, answers)
    assert found.status == 403 and len(asked) == 1
    answers["out.example/a"] = httpx.Response(302, headers={"location": "/b"})
    answers["out.example/b"] = httpx.Response(200, content=b"ok")
    assert fetch("http://out.example/a", names, answers)[0] == b"ok"
    answers["out.example/b"] = httpx.Response(307, headers={"location": "/b"})
    found, asked = fetch("http://out.example/a", names, answers)
    assert found.status == 422 and len(asked) == 4
    answers["out.example/b"] = httpx.Response(301, headers={"location": "file:///etc/passwd"})
    assert fetch("http://out.example/a", names, answers)[0].status == 422


def test_what_is_too_large_missing_or_no_address_is_refused():
    names = {"a.example": [PUBLIC]}
    assert fetch("http://a.example/", names, {"a.example/": httpx.Response(200, content=b"1" * 1001)})[0].status == 413
    assert fetch("http://a.example/", names, {"a.example/": httpx.Response(404)})[0].status == 422
    for url in (
        "ftp://a.example/",
        "http://",
        "http://user:pw@a.example/",
        "http://a.example:99999/",
        "a.png",
        "http://b.example/",
    ):
        found, asked = fetch(url, names, {})
        assert found.status == 422 and asked == [], url


@pytest.mark.parametrize(
    "address, public",
    [
        (PUBLIC, True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::a00:1", False),  # 10.0.0.1 behind a translator
        ("2002:7f00:1::", False),  # 127.0.0.1 as 6to4
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("192.0.2.1", False),
        ("not an address", False),
    ],
)
def test_public_addresses_are_told_from_others(address, public):
    assert is_public(address) is public
