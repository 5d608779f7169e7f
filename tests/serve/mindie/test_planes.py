"""``ascend-m1 serve --config``: three planes on their addresses, MindIE's limits, and stopping over HTTP."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Match

from ascend_m1.cli import main
from ascend_m1.cli.options import EMBEDDED
from ascend_m1_serve import logs
from ascend_m1_serve.api import create_app
from ascend_m1_serve.api.app import Plane
from ascend_m1_serve.api.mindie_common import MindieSettings

from ..api.adapters import save
from ..api.conftest import service  # noqa: F401  (a fixture)
from ..api.running import ENGINE, Running
from ..test_command import ROOT, command, environment
from .configs import SMALL, change, content, written

PORTS = ("port", "managementPort", "metricsPort")


def small(folder: Path, **server: object) -> tuple[Path, list[int]]:
    """For the model that ships, on free ports."""
    config = content()
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    for name, value in {**dict(zip(PORTS, ports, strict=True)), **server}.items():
        change(config, f"ServerConfig.{name}", value)
    deploy = "BackendConfig.ModelDeployConfig."
    change(config, f"{deploy}ModelConfig[0].modelWeightPath", str(EMBEDDED))
    change(config, f"{deploy}ModelConfig[0].modelName", "m1")
    change(config, f"{deploy}maxSeqLen", 512)
    change(config, f"{deploy}maxInputTokenLen", 100)
    change(config, f"{deploy}truncation", 1)
    change(config, "BackendConfig.ScheduleConfig.maxIterTimes", 7)
    change(config, "BackendConfig.ScheduleConfig.maxN", 2)
    return written(folder, config), ports


def test_the_small_file_serves_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a clone; but for the ports as it ships."""
    config, ports = content(SMALL), small(tmp_path)[1]
    for name, port in zip(PORTS, ports, strict=True):
        change(config, f"ServerConfig.{name}", port)
    path = written(tmp_path / "small", config)
    process = subprocess.Popen(command("--config", str(path)), env=environment(), stderr=subprocess.PIPE, text=True,
                               cwd=ROOT)  # fmt: skip
    assert process.stderr is not None
    try:
        assert any(line.startswith("ascend-m1: m1-icd10 at ") for line in process.stderr)
        ask = {"inputs": "<C_Q>What does ICD-10-CM code J45 mean?<C_A>"}
        answer = httpx.post(f"http://127.0.0.1:{ports[0]}/generate", json=ask, timeout=60)
        assert answer.json() == {"generated_text": "Asthma"}
    finally:
        process.kill()
        process.wait()


def test_what_contradicts_the_checkpoint_is_named_by_the_files_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All at once."""
    where = "BackendConfig.ModelDeployConfig."
    config = change(content(), f"{where}LoraModules", [{"name": "x", "path": "/nowhere"}])
    assert main(["serve", "--config", str(written(tmp_path, config))]) == 2
    told = capsys.readouterr().err.splitlines()[-1].split("; ")
    assert [part.split("=")[0].split()[-1] for part in told] == [
        f"{where}ModelConfig[0].modelWeightPath",
        f"{where}LoraModules[0].path",
    ]
    change(config, f"{where}ModelConfig[0].modelWeightPath", str(EMBEDDED))
    change(config, f"{where}LoraModules", [{"name": "x", "path": str(save(tmp_path / "x"))}])
    change(config, f"{where}maxLoraRank", 1)
    path = written(tmp_path, config)
    assert main(["serve", "--config", str(path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"ascend-m1: error: {path}: {where}maxSeqLen=8192: the checkpoint's context is 1024: give at most that, as "
        f"maxInputTokenLen and ScheduleConfig.maxIterTimes must be, too; {where}maxLoraRank=1: LoraModules[0] has rank "
        f"4: raise it"
    )


def test_three_planes(tmp_path: Path) -> None:
    path, ports = small(tmp_path)
    own = {**environment(), "MIES_CONFIG_JSON_PATH": str(path), "MIES_SERVICE_MONITOR_MODE": "1"}
    own |= {"MIES_CONTAINER_MANAGEMENT_IP": "127.0.0.1", "NPU_MEMORY_FRACTION": "0.8", "MINDIE_LOG_TO_FILE": "1"}
    own["MINDIE_LLM_BENCHMARK_ENABLE"] = "1"
    process = subprocess.Popen(command("--engine", ENGINE, "--config"), env=own, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = [next(line for line in process.stderr if line.startswith("ascend-m1: ")) for _ in range(3)]
        service, management, metrics = (f"http://127.0.0.1:{port}" for port in ports)
        assert "without effect here: BackendConfig.ModelDeployConfig.ModelConfig[0].backendType, " in lines[0]
        idle = "MINDIE_LOG_TO_FILE" + (", NPU_MEMORY_FRACTION" if ENGINE == "built-in" else "")
        assert lines[1] == f"ascend-m1: environment: without effect here: {idle}\n"
        assert lines[2] == f"ascend-m1: m1 at {service}, {management}, {metrics}\n"
        long = httpx.post(f"{service}/generate", json={"prompt": "word " * 300, "ignore_eos": True})
        answer = httpx.post(f"{service}/v1/completions", json={"prompt": "word " * 300, "ignore_eos": True}).json()
        assert long.status_code == 200
        assert answer["usage"]["prompt_tokens"] == 100  # its end
        assert answer["usage"]["completion_tokens"] == 7
        chat = {"messages": [{"role": "user", "content": "What does ICD-10-CM code J45 mean?"}]}
        told = httpx.post(f"{service}/v1/chat/completions", json=chat).json()
        assert told["prefill_time"] > 0
        assert len(told["decode_time_arr"]) == told["usage"]["completion_tokens"] - 1
        refused = httpx.post(f"{service}/v1/chat/completions", json={**chat, "n": 3, "temperature": 1})
        assert "3 answers to a prompt: this server gives at most 2" in refused.json()["error"]["message"]
        assert httpx.get(f"{management}/v1/config").json()["maxSeqLen"] == 512
        assert "request_success_total" in httpx.get(f"{metrics}/metrics").text
        assert httpx.get(f"{service}/metrics").status_code == 404
        assert httpx.get(f"{metrics}/health").status_code == 404
        assert httpx.get(f"{management}/stopService").status_code == 200
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


ENDPOINTS = {
    "service": """
        POST /v1/chat/completions
        POST /v1/completions
        GET /v1/models
        GET /v1/models/m1-icd10
        POST /
        POST /generate
        POST /generate_stream
        GET /v2
        GET /v2/models/m1-icd10
        GET /v2/models/m1-icd10/config
        POST /v2/models/m1-icd10/infer
        POST /v2/models/m1-icd10/generate
        POST /v2/models/m1-icd10/generate_stream
        POST /v2/models/m1-icd10/stopInfer
        POST /infer
        POST /infer_token
        POST /v1/tokenizer
        GET /dresult
    """,
    "management": """
        GET /health
        GET /health/timed
        GET /health/timed-5
        GET /info
        GET /v2/health/live
        GET /v2/health/ready
        GET /v2/models/m1-icd10/ready
        GET /v2/models/m1-icd10/getSlotCount
        GET /metrics-json
        GET /stopService
        GET /v1/config
        GET /v1/status
        GET /v2/status
        POST /v1/role/prefill
        POST /v2/role/prefill
        POST /v1/load_lora_adapter
        POST /v1/unload_lora_adapter
    """,
    "metrics": "GET /metrics",
}


def answering(app: FastAPI, method: str, path: str) -> bool:
    """Whether a route takes the request; none is made."""
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in app.routes)


@pytest.mark.parametrize("plane", ENDPOINTS)
def test_each_endpoint_of_the_manual_is_on_its_plane(service: Running, plane: Plane) -> None:  # noqa: F811
    app = create_app(service.front, planes=[plane])
    for own, table in ENDPOINTS.items():
        for line in table.split("\n"):
            if line.strip():
                method, path = line.split()
                assert answering(app, method, path) == (own == plane), line
                assert not answering(app, "PUT", path)


def test_metrics_that_are_off(service: Running) -> None:  # noqa: F811
    app = create_app(service.front, settings=MindieSettings(monitor=False), planes=["metrics"])

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.get("/metrics")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error_type"]) == (500, "Incomplete Generation")
    assert answer.json()["error"] == "metrics are off: start with MIES_SERVICE_MONITOR_MODE=1"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--port", "80"], "--port and --config: the file says it: leave the option out"),
        (["--adapter", "x=y"], "--adapter and --config: the file says it: leave the option out"),
    ],
)
def test_either_file_or_options(
    options: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "start_logging", lambda level: None)
    assert main(["serve", "--config", str(small(tmp_path)[0]), *options]) == 2
    assert capsys.readouterr().err == f"ascend-m1: error: {text}\n"


def test_what_a_file_must_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIES_CONFIG_JSON_PATH", raising=False)
    assert main(["serve", "--config"]) == 2
    assert "--config without a file: name one, or set MIES_CONFIG_JSON_PATH" in capsys.readouterr().err
    path, _ = small(tmp_path, port=80)
    assert main(["serve", "--config", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"ascend-m1: error: {path}: ServerConfig.port=80: give a whole number, 1024 to 65535\n"
    )
    path.chmod(0o666)
    assert main(["serve", "--config", str(path)]) == 2
    assert "mode 666 is wider than 640" in capsys.readouterr().err
    config = change(change(content(SMALL), "BackendConfig.npuDeviceIds", [[0, 1]]),
                    "BackendConfig.ModelDeployConfig.ModelConfig[0].worldSize", 2)  # fmt: skip
    assert main(["serve", "--config", str(written(tmp_path / "two", config))]) == 2
    assert "worldSize=2: the built-in engine runs on one device" in capsys.readouterr().err
