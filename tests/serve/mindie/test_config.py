"""MindIE's config.json: what is taken, and what is said of the rest."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ascend_m1.errors import ConfigError
from ascend_m1_serve.mindie import fields
from ascend_m1_serve.mindie.config import MindieConfigError, read_config
from ascend_m1_serve.mindie.environment import Environment
from ascend_m1_serve.mindie.start import wanted_engine
from ascend_m1_serve.server import Address

from .configs import SHIPPED, change, content, written

SERVER, BACKEND = "ServerConfig.", "BackendConfig."
DEPLOY, SCHEDULE = f"{BACKEND}ModelDeployConfig.", f"{BACKEND}ScheduleConfig."
MODEL = f"{DEPLOY}ModelConfig[0]."


def test_the_file_that_ships() -> None:
    config = read_config(SHIPPED, Environment())
    assert config.service == Address("127.0.0.1", 1025)
    assert config.management == Address("127.0.0.2", 1026)
    assert config.metrics == Address("127.0.0.2", 1027)
    assert (config.name, config.model) == ("baichuan-m1-14b", Path("/models/Baichuan-M1-14B-Instruct"))
    assert (config.max_length, config.max_input, config.max_new, config.max_sequences) == (8192, 4096, 2048, 16)
    assert config.devices == (0,)
    assert f"{SCHEDULE}prefillTimeMsPerReq" in config.idle
    assert f"{SCHEDULE}maxBatchSize" not in config.idle


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("ServerConfig.prot", 1025, "ServerConfig.prot is not known: do you mean port?"),
        ("Servers", {}, "Servers is not known: do you mean ServerConfig?"),
        (f"{SERVER}port", ..., "ServerConfig.port is missing: give a whole number, 1024 to 65535"),
        (f"{SERVER}port", 80, "ServerConfig.port=80: give a whole number, 1024 to 65535"),
        (f"{SERVER}port", "1025", "ServerConfig.port='1025': give a whole number, 1024 to 65535"),
        (f"{SERVER}port", True, "ServerConfig.port=True: give a whole number, 1024 to 65535"),
        (f"{SERVER}httpsEnabled", 0, "ServerConfig.httpsEnabled=0: give true or false"),
        (f"{SERVER}ipAddress", "localhost", "ServerConfig.ipAddress='localhost': give an IPv4 or IPv6 address"),
        (f"{SERVER}ipAddress", "0.0.0.0", "ServerConfig.ipAddress='0.0.0.0': set allowAllZeroIpListening to true"),
        (f"{SERVER}inferMode", "dmi", "ServerConfig.inferMode: prefill and decode on separate servers are not served"),
        (f"{SERVER}tokenTimeout", 3601, "ServerConfig.tokenTimeout=3601: give a whole number, 1 to 3600"),
        (f"{BACKEND}npuDeviceIds", [0], "BackendConfig.npuDeviceIds=[0]: give a list with a list of device numbers"),
        (f"{BACKEND}npuDeviceIds", [[0, 0]], "BackendConfig.npuDeviceIds=[[0, 0]]: name a device once"),
        (f"{BACKEND}npuDeviceIds", [[0], [1]], "BackendConfig.modelInstanceNumber=1: npuDeviceIds has 2 lists"),
        (f"{BACKEND}multiNodesInferEnabled", True, "BackendConfig.multiNodesInferEnabled=True: one node: use vLLM"),
        (f"{MODEL}worldSize", 4, f"{MODEL}worldSize=4: npuDeviceIds names 1 devices: give as many"),
        (f"{MODEL}modelName", "-x", f"{MODEL}modelName='-x': letters, digits"),
        (f"{MODEL}npuMemSize", 0, f"{MODEL}npuMemSize=0: give -1"),
        (f"{MODEL}backendType", "tf", f"{MODEL}backendType='tf': give 'atb' or 'torch' or 'ms'"),
        (f"{MODEL}modelInstanceType", "StandardMock", f"{MODEL}modelInstanceType='StandardMock': this server has no"),
        (f"{DEPLOY}ModelConfig", [], f"{DEPLOY}ModelConfig: give a list of one object"),
        (f"{DEPLOY}truncation", 2, f"{DEPLOY}truncation=2: give -1 or 0 or 1"),
        (f"{DEPLOY}LoraModules", [{"name": "x"}], f"{DEPLOY}LoraModules[0]: give an object with name, path"),
        (
            f"{DEPLOY}LoraModules",
            [{"name": "x", "path": "a", "baseModelName": "other"}],
            f"{DEPLOY}LoraModules[0].baseModelName='other': give modelName, ",
        ),
        (f"{DEPLOY}LoraModules", [{"name": "x", "path": "a"}] * 2, f"{DEPLOY}LoraModules[1].name='x': is taken"),
        (f"{DEPLOY}maxInputTokenLen", 8193, f"{SCHEDULE}maxPrefillTokens=8192: is less than maxInputTokenLen=8193"),
        (
            f"{DEPLOY}LoraModules",
            [{"name": "x", "path": "a", "baseModelName": None}, {}],
            f"{DEPLOY}LoraModules[1]: give",
        ),
        (f"{BACKEND}npuDeviceIds", [[3]], "BackendConfig.npuDeviceIds=[[3]]: ASCEND_RT_VISIBLE_DEVICES=4,5 leaves 2"),
        (
            f"{SERVER}HealthCheckConfig",
            {"npuUsageThreshold": 101},
            f"{SERVER}HealthCheckConfig.npuUsageThreshold=101: ",
        ),
        (
            f"{SERVER}HealthCheckConfig",
            {"npuUsage": 1},
            f"{SERVER}HealthCheckConfig.npuUsage is not known: do you mean ",
        ),
        (f"{SERVER}httpsEnabled", True, f"{SERVER}tlsCert='security/certs/server.pem': "),
        ("LogConfig", {"dynamicLogLevel": "loud"}, "LogConfig.dynamicLogLevel='loud': give a level such as 'info'"),
        (
            "LogConfig",
            {"dynamicLogLevelValidHours": 169},
            "LogConfig.dynamicLogLevelValidHours=169: give a whole number",
        ),
        (
            "LogConfig",
            {"dynamicLogLevelValidTime": "soon"},
            "LogConfig.dynamicLogLevelValidTime='soon': give a time as ",
        ),
        ("LogConfig", {"logFileSize": 501}, "LogConfig.logFileSize=501: give a whole number, 0 to 500"),
        ("LogConfig", {"logFileNum": "many"}, "LogConfig.logFileNum='many': give a whole number, 0 to 64"),
        (f"{SCHEDULE}cacheBlockSize", 1, f"{SCHEDULE}cacheBlockSize=1: give a whole number, 16 to 128"),
        (f"{SCHEDULE}maxN", 17, f"{SCHEDULE}maxN=17: is more than maxBatchSize=16: lower it"),
        (f"{SCHEDULE}cacheBlockSize", 100, f"{SCHEDULE}cacheBlockSize=100: give a multiple of 16"),
        (f"{SCHEDULE}maxPrefillTokens", 100, f"{SCHEDULE}maxPrefillTokens=100: is less than maxInputTokenLen=4096"),
        (f"{SCHEDULE}maxPrefillBatchSize", 17, f"{SCHEDULE}maxPrefillBatchSize=17: is more than maxBatchSize=16"),
        (f"{SCHEDULE}maxIterTimes", 9000, f"{SCHEDULE}maxIterTimes=9000: is more than maxSeqLen=8192"),
    ],
)
def test_one_line_for_each_mistake(path: str, value: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(MindieConfigError) as caught:
        read_config(written(tmp_path, change(content(), path, value)), Environment(visible_devices=("4", "5")))
    problem = caught.value.problems[0]
    assert problem.startswith(text)
    assert "\n" not in problem


def test_all_mistakes_are_named(tmp_path: Path) -> None:
    config = change(change(content(), f"{SERVER}port", 1), f"{MODEL}worldSize", "x")
    with pytest.raises(MindieConfigError) as caught:
        read_config(written(tmp_path, config), Environment())
    assert [problem.split("=")[0] for problem in caught.value.problems] == [f"{SERVER}port", f"{MODEL}worldSize"]


def test_contradictions_are_named_beside_mistakes(tmp_path: Path) -> None:
    """Those of values that are right by themselves."""
    config = change(change(content(), f"{SERVER}port", "x"), f"{SCHEDULE}maxBatchSize", 0)
    change(change(config, "ServerConfig.prot", 1), f"{SERVER}httpsEnabled", True)
    change(change(config, f"{MODEL}worldSize", 4), f"{SCHEDULE}maxIterTimes", 9000)
    change(change(config, f"{SERVER}ipAddress", "localhost"), f"{SERVER}managementTlsCert", 3)
    with pytest.raises(MindieConfigError) as caught:
        read_config(written(tmp_path, config), Environment())
    assert [re.split(r"=| is ", problem)[0] for problem in caught.value.problems] == [
        *(f"{SERVER}{name}" for name in ("prot", "port", "managementTlsCert")),
        f"{SCHEDULE}maxBatchSize",
        *(f"{SERVER}{name}" for name in ("ipAddress", "tlsCert", "tlsPk", "managementTlsPk", "metricsTlsCert")),
        f"{SERVER}metricsTlsPk",
        f"{MODEL}worldSize",
        f"{SCHEDULE}maxIterTimes",
    ]


@pytest.mark.parametrize("path", ["ServerConfig", "BackendConfig", f"{BACKEND}ScheduleConfig", f"{DEPLOY}ModelConfig"])
def test_a_block_that_is_not_there_is_one_mistake(path: str, tmp_path: Path) -> None:
    with pytest.raises(MindieConfigError) as caught:
        read_config(written(tmp_path, change(content(), path, ...)), Environment())
    assert [problem.split(" is missing")[0] for problem in caught.value.problems] == [path]


@pytest.mark.parametrize(("given", "wanted"), [(-1, None), (8, 8)])
def test_memory_of_the_cache(given: int, wanted: int | None, tmp_path: Path) -> None:
    path = written(tmp_path, change(content(), f"{MODEL}npuMemSize", given))
    found = read_config(path, Environment())
    assert f"{MODEL}npuMemSize" not in found.idle
    assert wanted_engine(found, path, Environment(), several=False).kv_cache_gib == wanted


def test_memory_without_swapping(tmp_path: Path) -> None:
    config = change(change(content(), f"{MODEL}cpuMemSize", 0), f"{SCHEDULE}maxPreemptCount", 1)
    with pytest.raises(MindieConfigError, match=r"cpuMemSize=0: needs maxPreemptCount=0"):
        read_config(written(tmp_path, config), Environment())
    assert read_config(written(tmp_path, change(content(), f"{MODEL}cpuMemSize", 0)), Environment()).cpu_memory == 0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "has 0 bytes"),
        (b"{", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"\xff", "not valid JSON"),
        (b"[" * 10**6, "not valid JSON"),
    ],
)
def test_no_json(data: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=text):
        read_config(path, Environment())
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "nothing.json", Environment())


BLOCKS = {
    SERVER: fields.SERVER,
    f"{SERVER}HealthCheckConfig.": fields.HEALTH,
    "LogConfig.": fields.LOG,
    BACKEND: fields.BACKEND,
    DEPLOY: fields.DEPLOY,
    MODEL: fields.MODEL,
    SCHEDULE: fields.SCHEDULE,
}
WHOLE = change(change(content(), f"{SERVER}HealthCheckConfig", {}), "LogConfig", {})
NUMBERS = [
    (path, name, field)
    for path, block in BLOCKS.items()
    for name, field in block.items()
    if field.kind is int and field.low is not None and field.high is not None
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(choice=st.sampled_from(NUMBERS), offset=st.integers(1, 10**12), above=st.booleans())
def test_numbers_out_of_range_are_refused_by_name(tmp_path: Path, choice: Any, offset: int, above: bool) -> None:
    path, name, field = choice
    value = field.high + offset if above else field.low - offset
    with pytest.raises(MindieConfigError) as caught:
        read_config(written(tmp_path, change(deepcopy(WHOLE), path + name, value)), Environment())
    assert caught.value.problems == [f"{path}{name}={value}: give a whole number, {field.low} to {field.high}"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    path=st.sampled_from([(path, name) for path, block in BLOCKS.items() for name in block]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    ),
)
def test_any_value_is_taken_or_refused(tmp_path: Path, path: tuple[str, str], value: Any) -> None:
    try:
        read_config(written(tmp_path, change(deepcopy(WHOLE), "".join(path), value)), Environment())
    except MindieConfigError as error:
        assert error.problems  # noqa: PT017


def test_defaults_and_what_is_not_needed(tmp_path: Path) -> None:
    config = change(change(content(), f"{SERVER}managementIpAddress", ...), f"{SCHEDULE}maxPreemptCount", 1)
    change(config, f"{DEPLOY}LoraModules", [{"name": "x", "path": "a", "baseModelName": None}])
    change(config, f"{SERVER}HealthCheckConfig", {"npuUsageThreshold": 10})
    found = read_config(written(tmp_path, config), Environment())
    assert (found.management.host, found.max_choices) == ("127.0.0.2", 128)
    assert {f"{SCHEDULE}maxPreemptCount", f"{SERVER}HealthCheckConfig.npuUsageThreshold"} <= set(found.idle)
    assert read_config(written(tmp_path, change(config, f"{SCHEDULE}maxN", 3)), Environment()).max_choices == 3


def test_old_names_and_all_of_the_manual(tmp_path: Path) -> None:
    """Keys of 1.0.RC3's file that later versions renamed or dropped are known."""
    config = content()
    config["LogConfig"] = {"logLevel": "Info", "logFileSize": 20, "logFileNum": 20, "logPath": "logs/mindservice.log"}
    for path, names in {
        SERVER: "tlsCaPath tlsCaFile tlsPkPwd tlsCrl managementTlsCaFile managementTlsPkPwd managementTlsCrl "
        "kmcKsfMaster kmcKsfStandby interCommTlsCaFile interCommTlsCert interCommPk interCommPkPwd interCommTlsCrl "
        "tlsCrlPath tlsCrlFiles metricsTlsCaFile metricsTlsCrlPath metricsTlsCrlFiles interCommTlsCaFiles",
        BACKEND: "interNodeTlsCaFile interNodeTlsCert interNodeTlsPk interNodeTlsPkPwd interNodeTlsCrl "
        "interNodeKmcKsfMaster interNodeKmcKsfStandby interNodeTlsCaPath interNodeTlsCaFiles",
    }.items():
        for name in names.split():
            change(config, path + name, "x")
    found = read_config(written(tmp_path, config), Environment())
    assert f"{SERVER}tlsPkPwd" in found.idle


@pytest.mark.parametrize(("value", "cut"), [(True, -1), (-1, -1), (1, 1), (False, 0), (0, 0)])
def test_truncation(value: bool | int, cut: int, tmp_path: Path) -> None:
    assert (
        read_config(written(tmp_path, change(content(), f"{DEPLOY}truncation", value)), Environment()).truncate == cut
    )


def test_a_prompt_cannot_be_longer_than_its_sequence(tmp_path: Path) -> None:
    changed = change(change(content(), f"{DEPLOY}maxSeqLen", 4000), f"{SCHEDULE}maxIterTimes", 10)
    with pytest.raises(MindieConfigError, match="maxInputTokenLen=4096: is more than maxSeqLen=4000: lower it"):
        read_config(written(tmp_path, changed), Environment())


def test_more_adapters_than_places(tmp_path: Path) -> None:
    changed = change(content(), f"{DEPLOY}LoraModules", [{"name": name, "path": "a"} for name in "xy"])
    with pytest.raises(MindieConfigError, match="maxLoras=1: LoraModules has 2: raise it"):
        read_config(written(tmp_path, change(changed, f"{DEPLOY}maxLoras", 1)), Environment())
