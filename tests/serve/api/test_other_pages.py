"""Pages of other sites, in the browser of somebody who reaches the service: they may not use it without a key."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from ascend_m1_serve.api import ApiOptions, create_app
from ascend_m1_serve.api.guards import RefuseOtherPages
from ascend_m1_serve.run import Service, applications, everywhere
from ascend_m1_serve.server import Address

from .running import Running

POST, STOP, READ = ("POST", "/v1/tokenizer"), ("GET", "/stopService"), ("GET", "/v1/models")
HERE, OTHER = "http://here:1025", "http://evil.example:1025"
OWN, CROSS = {"sec-fetch-site": "same-origin", "origin": HERE}, {"sec-fetch-site": "cross-site", "origin": OTHER}
BODY = {"inputs": "x"}


def status(app: Any, method: str, path: str, base: str = HERE, **more: Any) -> int:
    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base) as client:
            return (await client.request(method, path, **more)).status_code

    return asyncio.run(ask())


async def fine(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("request_", "headers", "expected"),
    [
        (POST, {}, 200),  # no browser
        (POST, OWN, 200),
        (POST, {"origin": HERE}, 200),  # over plain HTTP to another machine, or an older browser
        (POST, {"sec-fetch-site": "same-origin", "origin": "https://proxy.example"}, 200),  # which changed Host
        (POST, CROSS, 403),
        (POST, {"sec-fetch-site": "same-site", "origin": "http://here:80"}, 403),
        (POST, {"origin": OTHER}, 403),
        (POST, {"origin": "http://here"}, 403),
        (POST, {"origin": "null"}, 403),
        (STOP, {}, 200),
        (STOP, {"sec-fetch-site": "none"}, 200),  # typed by the user
        (STOP, {"sec-fetch-site": "cross-site"}, 403),  # an <img>
        (READ, CROSS, 200),  # the page cannot read it; a link from elsewhere may be followed
    ],
)
def test_who_may(request_: tuple[str, str], headers: dict[str, str], expected: int) -> None:
    assert status(RefuseOtherPages(fine, local=False), *request_, headers=headers) == expected


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        *((base, 200) for base in ("http://localhost:1025", "http://127.0.0.1:1025", "http://[::1]:1025")),
        ("http://a.localhost", 200),
        *((base, 403) for base in (OTHER, "http://localhost.evil.example", "http://127.0.0.1.evil.example:1025")),
    ],
)
def test_a_name_that_leads_here(base: str, expected: int) -> None:
    """As a page's own name may: for the browser it is the page's own site. Where others listen any name may be ours."""
    local, open_ = RefuseOtherPages(fine, local=True), RefuseOtherPages(fine, local=False)
    for request in (POST, STOP):
        headers = {"origin": base} if request is POST else {}
        assert status(local, *request, base, headers=headers) == expected
        assert status(open_, *request, base, headers=headers) == 200
    assert status(local, *POST, base) == 200  # no browser sends it so


def test_a_key_is_enough(service: Running) -> None:
    app = create_app(service.front)
    assert status(app, *POST, json=BODY) == status(app, *POST, json=BODY, headers=OWN) == 200
    assert status(app, *POST, content=b'{"inputs": "x"}', headers={**CROSS, "content-type": "text/plain"}) == 403
    locked = create_app(service.front, ApiOptions(key="k"))
    assert status(locked, *POST, json=BODY, headers=CROSS) == 401
    assert status(locked, *POST, json=BODY, headers={**CROSS, "authorization": "Bearer k"}) == 200


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", 403), ("0.0.0.0", 200)])
def test_names_are_looked_at_where_only_this_machine_asks(service: Running, host: str, expected: int) -> None:
    ((app, _),) = applications(service.front, Service("m1-icd10", everywhere(Address(host, 1025))))
    assert status(app, *POST, OTHER, json=BODY, headers={"origin": OTHER}) == expected
