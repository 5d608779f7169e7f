"""``ascend-m1 serve`` as a process: it says when it is ready, lets requests finish, and refuses in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch

from ascend_m1.cli import main
from ascend_m1_serve import engines, logs, run
from ascend_m1_serve.engine.runner import Runner
from ascend_m1_serve.server import Address

from .api.adapters import save
from .test_server import free_port

ROOT = Path(__file__).parents[2]
LONG = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True}


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "ascend_m1", "serve", "--device", "cpu", *options]


def environment() -> dict[str, str]:
    folders = [str(ROOT / name) for name in ("", "ops", "serve", "finetune")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}


@contextmanager
def started(*options: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, on a free port, its address, and the lines that it has written since."""
    process = subprocess.Popen(command("--port", "0", *options), env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("ascend-m1: "):
                break
        else:
            raise AssertionError("it ended before it was ready")
        found = re.fullmatch(r"ascend-m1: m1-icd10 at (http://127\.0\.0\.1:[1-9]\d*)\n", line)
        assert found
        lines: list[str] = []
        threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True).start()
        yield process, found[1], lines
    finally:
        process.kill()
        process.wait()


def test_a_signal_lets_requests_finish() -> None:
    with started() as (process, url, lines):
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=LONG, timeout=60))
        )
        asking.start()
        while httpx.get(f"{url}/stats").json()["running"] == 0:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        asking.join(10)
        assert answers[0].json()["usage"]["completion_tokens"] == 300
        requests = [found for found in map(json.loads, lines) if found["message"] == "request"]
        assert [found["status"] for found in requests if found["path"] == "/v1/completions"] == [200]


def test_a_second_signal_ends_at_once() -> None:
    with started() as (process, url, _):
        body = {**LONG, "max_tokens": 1000, "n": 16, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(20) in (0, 130)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "/nowhere"], "model /nowhere does not exist"),
        (["--max-length", "100000"], "max_length=100000: the checkpoint's context is"),
        (["--adapter", "x"], "--adapter x: give NAME=DIR"),
        (["--adapter", "x=/y", "--adapter", "x=/z"], "--adapter x=/z: the name is another adapter's: choose another"),
        (["--adapter", "m1-icd10=/x"], "--adapter m1-icd10=/x: the name is the model's own: choose another one"),
        (["--served-model-name", "m", "--adapter", "m=/x"], "--adapter m=/x: the name is the model's own: choose"),
        (["--adapter", "x=/nowhere"], "adapter /nowhere is not a directory: give the folder"),
        (["--ssl-certfile", "x.pem"], "--ssl-certfile and --ssl-keyfile: give both or none"),
        (["--ssl-certfile", "x.pem", "--ssl-keyfile", "y.pem"], "x.pem, y.pem: cannot be used as certificate and key"),
        (["--host", "203.0.113.1"], "203.0.113.1:1025: "),
        (["--port", "70000"], "--port=70000: give 0 to 65535"),
        (["--max-sequences", "0"], "max_sequences=0: give 1 or more"),
        (["--max-sequences", "100000000"], "max_sequences=100000000: the built-in engine runs at most 128"),
        (["--max-adapters", "-1"], "max_adapters=-1: 0 are to be loaded at the start: give at least that"),
        (["--max-adapter-rank", "0"], "adapter_rank=0: give 1 or more"),
    ],
)
def test_refusals(
    options: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All before the weights are loaded."""

    def load(*_: object) -> None:
        raise AssertionError("the weights are loaded")

    monkeypatch.setattr(engines, "load_model", load)
    monkeypatch.setattr(logs, "start_logging", lambda level: None)
    assert main(["serve", "--device", "cpu", *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"ascend-m1: error: {text}")


def test_out_of_memory_names_the_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise torch.OutOfMemoryError("NPU out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engines, "load_model", load)
    assert main(["serve", "--device", "cpu", "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("ascend-m1: error: out of memory: lower --kv-cache-gib, --max-sequences or --max-length (")


def test_an_engine_that_fails_ends_the_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a status that a service manager restarts at, after whoever listened was told."""

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Runner, "run", fail)
    monkeypatch.setattr(logs, "start_logging", lambda level: None)
    port, answers = free_port(), list[httpx.Response]()

    def ask() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=20)) as client:
            answers.append(client.post("/v1/completions", json=LONG, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    assert main(["serve", "--device", "cpu", "--port", str(port)]) == 1
    asking.join(10)
    assert answers[0].status_code == 503
    assert "ascend-m1: error: the engine failed: RuntimeError: no memory" in capsys.readouterr().err.splitlines()


def test_a_forced_stop() -> None:
    """Answers under way have five seconds; these take a minute."""
    with started() as (process, url, _):
        body = {**LONG, "max_tokens": 1000, "n": 128, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert httpx.get(f"{url}/stopService?mode=Force", timeout=30).status_code == 200
            assert process.wait(20) == 0


def test_room_for_adapters(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "a"))
    with started("--max-adapters", "1", "--max-adapter-rank", "4") as (_, url, _):
        for name, status, words in (("a", 200, "added successfully"), ("b", 422, "raise --max-adapters, or maxLoras")):
            body = {"lora_name": name, "lora_path": folder}
            answer = httpx.post(f"{url}/v1/load_lora_adapter", json=body, timeout=60)
            assert answer.status_code == status
            assert words in answer.text


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        test_refusals(["--port", port], f"127.0.0.1:{port}: Address already in use: choose", capsys, monkeypatch)


@pytest.mark.parametrize(
    ("host", "options", "warned"),
    [
        ("0.0.0.0", [], True),
        ("::", [], True),
        ("0.0.0.0", ["--api-key", "k"], False),
        ("127.0.0.2", [], False),
        ("localhost", [], False),
    ],
)
def test_who_serves_everybody_without_a_key_is_told(
    host: str,
    options: list[str],
    warned: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin(loaded: object, service: run.Service, on_start: Callable[[list[Address]], None]) -> None:
        on_start([*dict.fromkeys(service.addresses.values())])

    monkeypatch.delenv("ASCEND_M1_API_KEY", raising=False)
    monkeypatch.setattr(run, "serve_forever", begin)
    monkeypatch.setattr(logs, "start_logging", lambda level: None)
    assert main(["serve", "--device", "cpu", "--host", host, *options]) == 0
    assert ("no API key: whoever reaches it may stop it and load adapters" in capsys.readouterr().err) == warned


def test_tls_and_key(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    options = ["--ssl-certfile", str(tmp_path / "cert.pem"), "--ssl-keyfile", str(tmp_path / "key.pem")]
    process = subprocess.Popen(
        command("--port", str(port), "--api-key", "k", *options), env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if line.startswith("ascend-m1: "))
        assert line == f"ascend-m1: m1-icd10 at https://127.0.0.1:{port}\n"
        url = f"https://127.0.0.1:{port}/v1/models"
        assert httpx.get(url, verify=False).status_code == 401
        health = [sys.executable, ROOT / "serve/deploy/health.py", f"https://127.0.0.1:{port}/health"]
        assert subprocess.run(health, check=False).returncode == 0
        assert httpx.get(url, verify=False, headers={"Authorization": "Bearer k"}).status_code == 200
    finally:
        process.kill()
        process.wait()
