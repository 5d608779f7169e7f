"""``ascend-m1 serve`` with vLLM's engine on two devices, as a config.json of MindIE asks for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from ascend_m1 import BaichuanM1Config
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import InputError
from ascend_m1_serve.engines import Wanted, parallel_sizes, vllm
from ascend_m1_serve.vllm_engine import visible

from ..serve.mindie.configs import change, written
from ..serve.mindie.test_planes import small
from ..serve.test_command import command, environment
from .golden import TWO_WORKERS


@pytest.mark.parametrize(("devices", "sizes"), [(1, (1, 1)), (2, (2, 1)), (4, (4, 1)), (8, (4, 2)), (16, (4, 4))])
def test_sizes_of_the_published_heads(devices: int, sizes: tuple[int, int], tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((EMBEDDED / name).read_bytes())
    BaichuanM1Config().save_pretrained(tmp_path)
    assert parallel_sizes(tmp_path, devices) == sizes


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(InputError, match="97 devices: "):
        parallel_sizes(EMBEDDED, 97)


@pytest.mark.parametrize(
    ("devices", "already", "found"), [((0, 2), None, "0,2"), ((1,), "4, 5", "5"), ((1, 0), "7,6", "6,7")]
)
def test_devices_are_counted_among_the_visible_ones(devices: tuple[int, ...], already: str | None, found: str) -> None:
    assert visible(devices, already) == found


def test_memory_fraction() -> None:
    assert vllm(Wanted(EMBEDDED, memory_fraction=0.5)).arguments["gpu_memory_utilization"] == 0.5
    assert "gpu_memory_utilization" not in vllm(Wanted(EMBEDDED)).arguments


def test_memory_of_the_cache() -> None:
    assert vllm(Wanted(EMBEDDED, kv_cache_gib=0.5)).arguments["kv_cache_memory_bytes"] == 2**29


def test_ranks_of_adapters() -> None:
    assert vllm(Wanted(EMBEDDED, max_adapters=1, max_adapter_rank=40)).arguments["max_lora_rank"] == 64
    with pytest.raises(InputError, match="adapters of rank 513: vLLM takes at most 512: lower --max-adapter-rank"):
        vllm(Wanted(EMBEDDED, max_adapters=1, max_adapter_rank=513))


def test_two_devices(tmp_path: Path) -> None:
    path, ports = small(tmp_path)
    config = json.loads(path.read_text())
    change(config, "BackendConfig.npuDeviceIds", [[0, 1]])
    change(config, "BackendConfig.ModelDeployConfig.ModelConfig[0].worldSize", 2)
    change(config, "ServerConfig.managementIpAddress", "127.0.0.1")
    path = written(tmp_path, config)
    own = {**environment(), **TWO_WORKERS, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    process = subprocess.Popen(
        [*command("--config", str(path), "--dtype", "float32"), "--engine", "vllm"],
        env=own,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("ascend-m1: m1 at "):
                break
        else:
            raise AssertionError("".join(lines)[-4000:])
        url, management = (f"http://127.0.0.1:{port}" for port in ports[:2])
        ask = {"messages": [{"role": "user", "content": "What does ICD-10-CM code J45 mean?"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=ask, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == "Asthma"
        assert httpx.get(f"{management}/v1/config").json()["worldSize"] == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
