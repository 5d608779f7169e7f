"""The scripts that start, measure and stop the service."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from ascend_m1_serve.cli import DEFAULT_PORT

from .api.running import embedded, running
from .mindie.configs import content
from .test_command import ROOT, environment

DEPLOY = ROOT / "serve/deploy"


def run(script: str, *arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a folder of its own; the command is this environment's."""
    own = environment() | {"RUN_DIR": str(folder), **variables}
    own["PATH"] = f"{folder}:{os.environ['PATH']}"
    command = [str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=180, check=False)


def test_start_measure_stop(tmp_path: Path) -> None:
    program = tmp_path / "ascend-m1"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ascend_m1 "$@"\n')
    program.chmod(0o755)
    assert shutil.which("bash")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    assert run("stop_server.sh", folder=tmp_path).returncode == 2
    wrong = run("start_server.sh", "--port", "x", folder=tmp_path)
    assert (wrong.returncode, "invalid int value" in wrong.stderr) == (2, True)
    started = run("start_server.sh", "--device", "cpu", "--port", port, folder=tmp_path)
    try:
        assert started.stdout == f"m1-icd10 at http://127.0.0.1:{port}\nDaemon start success!\n", started.stderr
        again = run("start_server.sh", folder=tmp_path)
        assert (again.returncode, "it runs already" in again.stderr) == (2, True)
        options = ["--url", f"http://127.0.0.1:{port}", "--output-len", "4"]
        measured = run("bench_server.sh", *options, folder=tmp_path, CONCURRENCY="1 2")
        assert measured.returncode == 0, measured.stderr
        assert measured.stdout.count("at a time") == 2
    finally:
        stopped = run("stop_server.sh", folder=tmp_path)
    assert stopped.stdout == "stopped\n", stopped.stderr


def test_a_number_that_another_process_has(tmp_path: Path) -> None:
    """That one is left alone, and nothing counts as started."""
    program = tmp_path / "ascend-m1"
    program.write_text("#!/bin/sh\necho not now >&2\nexit 2\n")
    program.chmod(0o755)
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            for script, status, told in (("start_server.sh", 2, "not now\n"), ("stop_server.sh", 0, "")):
                (tmp_path / "ascend-m1.pid").write_text(f"{other.pid}\n")
                done = run(script, folder=tmp_path)
                assert (done.returncode, done.stderr) == (status, told)
            time.sleep(0.1)
            assert other.poll() is None
        finally:
            other.kill()


def checked(*urls: str) -> int:
    """The container's health check."""
    return subprocess.run([sys.executable, DEPLOY / "health.py", *urls], check=False).returncode


def test_health_of_a_container() -> None:
    with running(embedded()) as service:
        assert checked("http://127.0.0.1:1/health", f"{service.url}/health") == 0
        assert checked("http://127.0.0.1:1/health", f"{service.url}/nothing", f"{service.url}") == 0
        assert checked(f"{service.url}/nothing") == 1
    assert checked(f"{service.url}/health") == 1


def test_the_containers_check_asks_where_health_is() -> None:
    """Without --config, and with the file that ships, by TLS or not."""
    urls = next(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("ENV HEALTH_URLS"))
    server = content()["ServerConfig"]
    for address in (f"127.0.0.1:{DEFAULT_PORT}", f"{server['managementIpAddress']}:{server['managementPort']}"):
        for scheme in ("http", "https"):
            assert f"{scheme}://{address}/health" in urls


def test_the_unit_has_a_folder_to_write_to() -> None:
    """ProtectSystem and ProtectHome leave no other; systemd, where it is installed, understands every line."""
    unit = DEPLOY / "ascend-m1.service"
    lines = unit.read_text().splitlines()
    assert {"ProtectSystem=strict", "ProtectHome=yes", "StateDirectory=ascend-m1"} <= set(lines)
    assert {"Environment=HOME=%S/ascend-m1", "WorkingDirectory=%S/ascend-m1"} <= set(lines)
    if shutil.which("systemd-analyze"):
        checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")
