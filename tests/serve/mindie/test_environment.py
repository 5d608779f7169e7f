"""What a config.json finds around it: environment variables, its mode, certificates."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ascend_m1.errors import InputError
from ascend_m1_serve.mindie.config import MindieConfigError, read_config
from ascend_m1_serve.mindie.environment import Environment, check_permissions, read_environment

from .configs import SHIPPED, change, content, written

SERVER = "ServerConfig."


def pair(certificate: Path, key: Path) -> None:
    """Write both."""
    for path in (certificate, key):
        path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip


def test_certificates_are_below_the_installation(tmp_path: Path) -> None:
    path = written(tmp_path, change(content(), f"{SERVER}httpsEnabled", True))
    certificates, keys = tmp_path / "security/certs", tmp_path / "security/keys"
    for plane in ("", "management", "metrics"):
        pair(certificates / plane / "server.pem", keys / plane / "server.key.pem")
    config = read_config(path, Environment())
    assert config.service.certificate == certificates / "server.pem"
    assert config.management.key == keys / "management/server.key.pem"
    assert config.service.url == "https://127.0.0.1:1025"


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """Each by its field, before anything is loaded; on one address the service's pair is for all."""
    config = change(change(content(), f"{SERVER}httpsEnabled", True), f"{SERVER}managementIpAddress", "127.0.0.1")
    path = written(tmp_path, config)
    with pytest.raises(MindieConfigError) as caught:
        read_config(path, Environment())
    assert [problem.split("=")[0] for problem in caught.value.problems] == [f"{SERVER}tlsCert", f"{SERVER}tlsPk"]
    assert f"{tmp_path}/security/keys/server.key.pem is not there: give a PEM file" in caught.value.problems[1]
    pair(tmp_path / "security/certs/server.pem", tmp_path / "other.pem")
    pair(tmp_path / "other.pem", tmp_path / "security/keys/server.key.pem")
    with pytest.raises(MindieConfigError, match=r"ServerConfig\.tlsCert='security/certs/server\.pem': .*(from tlsPk)"):
        read_config(path, Environment())


def test_environment(tmp_path: Path) -> None:
    found = read_environment(
        {
            "MIES_INSTALL_PATH": "/opt/mindie",
            "MIES_CONTAINER_IP": "10.0.0.1",
            "MIES_CONTAINER_MANAGEMENT_IP": "10.0.0.2",
            "MIES_SERVICE_MONITOR_MODE": "1",
            "MINDIE_LOG_LEVEL": "server:WARN; llm:DEBUG",
        }
    )
    assert found.config_file == Path("/opt/mindie/conf/config.json")
    assert (found.monitor, found.log_level) == (True, "debug")
    config = read_config(SHIPPED, found)
    assert (config.service.host, config.management.host) == ("10.0.0.1", "10.0.0.2")
    assert read_environment({"MIES_CONFIG_JSON_PATH": "x"}).config_file == Path("x")
    with pytest.raises(InputError, match=r"^environment variable MIES_SERVICE_MONITOR_MODE='on': give 0 or 1$"):
        read_environment({"MIES_SERVICE_MONITOR_MODE": "on"})
    assert (found.benchmark, found.memory_fraction, found.visible_devices, found.idle) == (False, None, None, ())
    other = read_environment(
        {
            "MINDIE_LLM_BENCHMARK_ENABLE": "1",
            "NPU_MEMORY_FRACTION": "0.8",
            "ASCEND_RT_VISIBLE_DEVICES": "4,5",
            "TOKENIZER_ENCODE_TIMEOUT": "60",
            "MINDIE_LOG_PATH": "x",
        }
    )
    assert (other.benchmark, other.memory_fraction, other.visible_devices) == (True, 0.8, ("4", "5"))
    assert other.idle == ("MINDIE_LOG_PATH", "TOKENIZER_ENCODE_TIMEOUT")
    for name, value in {"NPU_MEMORY_FRACTION": "1.5", "ASCEND_RT_VISIBLE_DEVICES": "0,0"}.items():
        with pytest.raises(InputError, match=f"^environment variable {name}='{value}': give "):
            read_environment({name: value})
    with pytest.raises(InputError, match=r"^environment variable MINDIE_LOG_LEVEL='loud': give one of "):
        read_environment({"MINDIE_LOG_LEVEL": "loud"})


def test_permissions(tmp_path: Path) -> None:
    path = written(tmp_path, {})
    check_permissions(path)
    path.chmod(0o644)
    with pytest.raises(InputError, match="mode 644 is wider than 640: chmod 640"):
        check_permissions(path)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    with pytest.raises(InputError, match="is a symbolic link"):
        check_permissions(link)


def test_an_address_of_the_environment_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(MindieConfigError, match="environment variable MIES_CONTAINER_IP='host': give an IPv4"):
        read_config(written(tmp_path, content()), Environment(service_ip="host"))
