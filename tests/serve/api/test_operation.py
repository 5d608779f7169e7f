"""What operators rely on: models, health, metrics, limits, keys, clients that go away, draining."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import OpenAI
from safetensors.torch import load_file, save_file

from ascend_m1_serve.api import ApiOptions
from ascend_m1_serve.api.mindie_management import responds
from ascend_m1_serve.protocol import Stats

from .adapters import save
from .running import Running, embedded, running, wait_until
from .test_chat import ANSWER, ASK

LONG = {"model": "m1-icd10", "prompt": "Once", "max_tokens": 900, "ignore_eos": True}


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What was logged of requests."""
    return [record.fields for record in caplog.records if record.name == "ascend_m1_serve.access"]  # type: ignore[attr-defined]


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("m1-icd10", "MindIE Server")
    assert client.models.retrieve("m1-icd10") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_health_and_metrics(service: Running, client: OpenAI) -> None:
    client.chat.completions.create(model="m1-icd10", messages=ASK)
    assert httpx.get(f"{service.url}/health").status_code == 200
    assert httpx.get(f"{service.url}/ready").status_code == 200
    text = httpx.get(f"{service.url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = '{model_name="m1-icd10"}'
    assert float(values[f"request_success_total{label}"]) >= 1
    assert float(values[f"generation_tokens_total{label}"]) >= 2
    assert float(values[f"num_requests_running{label}"]) == 0
    assert float(values[f"time_to_first_token_seconds_count{label}"]) >= 1
    stats = httpx.get(f"{service.url}/stats").json()
    assert stats["free_blocks"] == stats["blocks"]


def test_a_client_that_goes_away_frees_its_place(service: Running) -> None:
    stats = service.front.engine.stats
    with httpx.stream("POST", f"{service.url}/v1/completions", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()  # whose end would close the connection
        next(lines)
        assert stats().running == 1
        assert httpx.get(f"{service.url}/stats").json()["open"] == 1
    wait_until(lambda: stats().running == 0 and service.front.open == 0)
    host, port = service.url.removeprefix("http://").split(":")
    body = json.dumps(LONG).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: stats().running == 1)
    wait_until(lambda: stats().running == 0 and service.front.open == 0)


def test_one_that_does_not_read_holds_nobody_up(service: Running, client: OpenAI) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "stream": True, "n": 4}).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: service.front.engine.stats().running == 4)
        assert client.chat.completions.create(model="m1-icd10", messages=ASK).choices[0].message.content == ANSWER
    wait_until(lambda: service.front.open == 0)


def test_the_log_has_a_line_for_each_request(service: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ascend_m1_serve.access"):
        answer = httpx.post(f"{service.url}/v1/completions", json={"prompt": "secret words", "max_tokens": 2})
        wait_until(lambda: lines(caplog))
    generated = answer.json()["usage"]["completion_tokens"]
    (fields,) = lines(caplog)
    assert fields["id"] == answer.headers["x-request-id"]
    assert (fields["path"], fields["status"], fields["generated_tokens"]) == ("/v1/completions", 200, generated)
    assert "secret" not in json.dumps(fields)


@pytest.mark.parametrize("path", ["/v1/completions", "/infer"])
def test_a_client_that_goes_away_in_mid_body(service: Running, caplog: pytest.LogCaptureFixture, path: str) -> None:
    """Nothing of it is the server's failure."""
    host, port = service.url.removeprefix("http://").split(":")
    with caplog.at_level(logging.INFO):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx" % path.encode())
        wait_until(lambda: lines(caplog))
    assert [(fields["path"], fields["status"]) for fields in lines(caplog)] == [(path, 499)]
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_failure_is_answered_and_the_connection_stays(
    service: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with httpx.Client(base_url=service.url) as client, caplog.at_level(logging.INFO, "ascend_m1_serve.access"):
        with monkeypatch.context() as patch:
            patch.setattr(service.front, "models", fail)
            answer = client.get("/v1/models")
        again = client.get("/v1/models")
        wait_until(lambda: len(lines(caplog)) == 2)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert again.status_code == 200
    assert [fields["status"] for fields in lines(caplog)] == [500, 200]
    assert lines(caplog)[0]["id"] == answer.headers["x-request-id"]


def test_limits_and_key() -> None:
    options = ApiOptions(key="s3cret", max_body=2000)
    with running(embedded(max_sequences=1), options, max_queue=1) as service:
        url = f"{service.url}/v1/completions"
        assert httpx.get(f"{service.url}/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            assert httpx.post(url, json={"prompt": "x"}, headers=headers).status_code == 401
        own = {"Authorization": "Bearer s3cret"}
        assert httpx.post(url, json={"prompt": "x" * 2000}, headers=own).status_code == 413
        mindie = httpx.post(f"{service.url}/generate", json={"prompt": "x" * 2000}, headers=own)
        assert (mindie.status_code, list(mindie.json())) == (413, ["message"])
        chunks = (b"x" * 1000 for _ in range(3))  # not announced
        assert httpx.post(url, content=chunks, headers=own).status_code == 413
        for path in ("/v1/completions", "/infer"):  # by a client that sends all of it before it reads
            ask = urllib.request.Request(service.url + path, b"x" * 20_000_000, own)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(ask, timeout=60)
            assert caught.value.code == 413
        for more in ("Content-Length: 100000000", "Content-Length: 3000\r\nExpect: 100-continue"):  # nor is it sent
            host, port = service.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), 30) as connection:
                lines = f"POST /infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\n{more}\r\n\r\n"
                connection.sendall(lines.encode())
                assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
        with (
            httpx.stream("POST", url, json={**LONG, "stream": True}, headers=own),
            httpx.stream("POST", url, json={**LONG, "stream": True}, headers=own),
        ):
            refused = httpx.post(url, json={"prompt": "x"}, headers=own)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        wait_until(lambda: service.front.open == 0)
        for more in ({"n": 3}, {"prompt": ["x"] * 3}):  # will not fit later, either
            refused = httpx.post(url, json={"prompt": "x"} | more, headers=own)
            assert (refused.status_code, "retry-after" in refused.headers) == (400, False)
            assert "3 answers at once: this server has 2 places: lower n" in refused.text
        service.front.draining = True
        refused = httpx.post(url, json={"prompt": "x"}, headers=own)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert httpx.get(f"{service.url}/ready").status_code == 503


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
def test_a_body_that_does_not_come(path: str) -> None:
    with running(embedded(), ApiOptions(body_seconds=0.1)) as service:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 30) as connection:
            connection.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx" % path.encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until it is closed
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not come within 0.1 s: send it faster" in answer
        # One that has come may be answered for longer.
        long = httpx.post(f"{service.url}/v1/completions", json={**LONG, "max_tokens": 100}, timeout=60)
        assert long.json()["usage"]["completion_tokens"] == 100


def test_an_engine_whose_places_are_taken_responds() -> None:
    with running(embedded(max_sequences=1)) as service:
        body = {**LONG, "stream": True}
        with httpx.stream("POST", f"{service.url}/v1/completions", json=body) as answer:
            lines = answer.iter_lines()  # whose end would close the connection
            next(lines)
            assert service.call(lambda: responds(service.front, 0.1))
            assert service.front.engine.stats().running == 1
        wait_until(lambda: service.front.open == 0)


def test_an_engine_that_makes_nothing_does_not_respond() -> None:
    class Stuck:
        failure = None

        def stats(self) -> Stats:
            return Stats(running=1, steps=7)

        def submit(self, *_: object, **__: object) -> Stuck:
            return self

        async def __anext__(self) -> None:
            await asyncio.sleep(60)

        def abort(self) -> None:
            pass

    assert not asyncio.run(responds(SimpleNamespace(engine=Stuck()), 0.1))  # type: ignore[arg-type]


def test_only_the_page_and_probes_are_open() -> None:
    """Every route and method of the app but those, MindIE's too."""
    with running(embedded(), ApiOptions(key="s3cret")) as service:
        paths = httpx.get(f"{service.url}/openapi.json", headers={"Authorization": "Bearer s3cret"}).json()["paths"]
        routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
        opened = {
            (method, path) for method, path in routes if httpx.request(method, service.url + path).status_code != 401
        }
    assert ("POST", "/") in routes
    probes = ("/health", "/ready", "/v2/health/live", "/v2/health/ready", "/metrics")
    assert opened == {("GET", path) for path in ("/", *probes)}


def test_adapters_are_models(tmp_path: Path) -> None:
    """One with trained filters, which belong to the model and not to a request, is refused in the same words by all."""
    path = save(tmp_path / "filters") / "adapter_model.safetensors"
    filters = "base_model.model.model.layers.0.self_attn.conv_k"
    save_file({**load_file(path), filters: torch.ones(1)}, path)
    with running(embedded(max_adapters=2), adapters={"other": save(tmp_path / "other")}) as service:
        body = {"lora_name": "filters", "lora_path": str(path.parent)}
        answer = httpx.post(f"{service.url}/v1/load_lora_adapter", json=body, timeout=60)
        told = f"{path}: {filters}: trained filters are not served: merge them with `ascend-m1 export`"
        assert (answer.status_code, told in answer.text) == (422, True), answer.text
        for nowhere, why in (("x" * 5000, "cannot be read (File name too long)"), ("\0", "is not a directory")):
            answer = httpx.post(f"{service.url}/v1/load_lora_adapter", json={**body, "lora_path": nowhere}, timeout=60)
            assert (answer.status_code, why in answer.json()["error"]) == (422, True), answer.text
        client = OpenAI(base_url=f"{service.url}/v1", api_key="none")
        names = {model.id: model.model_dump()["parent"] for model in client.models.list().data}
        assert names == {"m1-icd10": None, "other": "m1-icd10"}
        content = [
            client.chat.completions.create(model=name, messages=ASK, max_tokens=8).choices[0].message.content
            for name in names
        ]
        assert content[0] == ANSWER != content[1]


def test_an_engine_that_failed(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(service.front.engine), "failure", property(lambda engine: "the engine failed: for a test"))
        assert httpx.get(f"{service.url}/health").status_code == 503
        answer = httpx.post(f"{service.url}/v1/completions", json={"prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the engine failed: for a test")
