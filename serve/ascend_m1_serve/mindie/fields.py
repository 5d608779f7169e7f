"""The keys of MindIE's config.json, 1.0 to 3.x, as data.

Source: MindIE-LLM's manual, "Configuration Parameters (Service-Specific)", and the file that 1.0.RC3 ships. Where
versions differ the wider range is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST = 2**31 - 1


@dataclass(frozen=True)
class Field:
    """One key.

    Attributes:
        kind: what JSON must hold.
        default: if the key is missing; ``required`` ones must be there.
        low, high: of a number, both included; of a text, its length.
        choices: the only values. pattern: of a text, whole, and what that is in words. used: this server acts on it.
    """

    kind: type | tuple[type, ...]
    default: Any = None
    required: bool = False
    low: int | None = None
    high: int | None = None
    choices: tuple[Any, ...] | None = None
    pattern: tuple[str, str] | None = None
    used: bool = True


def _number(default: int, low: int, high: int, *, required: bool = True, used: bool = True) -> Field:
    return Field(int, default, required, low, high, used=used)


def _idle(kind: type | tuple[type, ...], *names: str) -> dict[str, Field]:
    """Keys that are known and have no effect here."""
    return {name: Field(kind, used=False) for name in names}


_PORT: dict[str, Any] = {"low": 1024, "high": 65535}
_PATH: dict[str, Any] = {"low": 1, "high": 4096}

SERVER = {
    "ipAddress": Field(str, "127.0.0.1", required=True),
    "managementIpAddress": Field(str, "127.0.0.2"),
    "port": Field(int, 1025, required=True, **_PORT),
    "managementPort": Field(int, 1026, **_PORT),
    "metricsPort": Field(int, 1027, required=True, **_PORT),
    "allowAllZeroIpListening": Field(bool, False, required=True),
    "maxLinkNum": _number(1000, 1, 4096),
    "httpsEnabled": Field(bool, True, required=True),
    "fullTextEnabled": Field(bool, False),
    "tlsCert": Field(str, "security/certs/server.pem", **_PATH),
    "tlsPk": Field(str, "security/keys/server.key.pem", **_PATH),
    "managementTlsCert": Field(str, "security/certs/management/server.pem", **_PATH),
    "managementTlsPk": Field(str, "security/keys/management/server.key.pem", **_PATH),
    "metricsTlsCert": Field(str, "security/certs/metrics/server.pem", **_PATH),
    "metricsTlsPk": Field(str, "security/keys/metrics/server.key.pem", **_PATH),
    "inferMode": Field(str, "standard", choices=("standard", "dmi")),
    "openAiSupport": Field(str, "vllm", used=False),
    "tokenTimeout": _number(600, 1, 3600, required=False),
    "e2eTimeout": _number(600, 1, 65535, required=False),
    "maxRequestLength": _number(40, 1, 100, required=False),
    "distDPServerEnabled": Field(bool, False),
    "HealthCheckConfig": Field(dict, {}),
    "interCommTLSEnabled": Field(bool, True, used=False),
    "interCommPort": Field(int, 1121, used=False, **_PORT),
} | _idle(
    (str, list),
    *("tlsCaPath", "tlsCaFile", "tlsPkPwd", "tlsCrl", "tlsCrlPath", "tlsCrlFiles", "kmcKsfMaster", "kmcKsfStandby"),
    *(
        f"{plane}Tls{part}"
        for plane in ("management", "metrics")
        for part in ("CaFile", "CaPath", "PkPwd", "Crl", "CrlPath", "CrlFiles")
    ),
    *(f"interCommTls{part}" for part in ("CaFile", "CaPath", "CaFiles", "Cert", "Crl", "CrlPath", "CrlFiles")),
    *("interCommPk", "interCommPkPwd"),
)

BACKEND = {
    "backendName": Field(str, "mindieservice_llm_engine", required=True, low=1, high=50, used=False),
    "modelInstanceNumber": _number(1, 1, 10),
    "npuDeviceIds": Field(list, [[0, 1, 2, 3]], required=True),
    "tokenizerProcessNumber": _number(8, 1, 32, used=False),
    "multiNodesInferEnabled": Field(bool, False),
    "multiNodesInferPort": Field(int, 1120, used=False, **_PORT),
    "interNodeTLSEnabled": Field(bool, True, used=False),
    "kvPoolConfig": Field(dict, used=False),
    "ModelDeployConfig": Field(dict, required=True),
    "ScheduleConfig": Field(dict, required=True),
} | _idle(
    (str, list),
    *(
        f"interNode{part}"
        for part in ("TlsCaFile", "TlsCaPath", "TlsCaFiles", "TlsCert", "TlsPk", "TlsPkPwd", "TlsCrl", "TlsCrlPath")
    ),
    *("interNodeTlsCrlFiles", "interNodeKmcKsfMaster", "interNodeKmcKsfStandby"),
)

DEPLOY = {
    "maxSeqLen": _number(2560, 1, MOST),
    "maxInputTokenLen": _number(2048, 1, 4194304),
    "truncation": Field((bool, int), False, choices=(-1, 0, 1)),  # True is 1, False is 0
    "LoraModules": Field(list, []),
    "maxLoras": Field(int, None, low=0, high=1024),
    "maxLoraRank": Field(int, None, low=1, high=4096),
    "ModelConfig": Field(list, required=True),
}

MODEL = {
    "modelInstanceType": Field(str, "Standard", choices=("Standard", "StandardMock")),
    "modelName": Field(str, "llama_65b", required=True, low=1, high=256),
    "modelWeightPath": Field(str, required=True, **_PATH),
    "worldSize": _number(4, 1, 1024),
    "cpuMemSize": _number(5, 0, MOST),
    "npuMemSize": _number(-1, -1, MOST),
    "backendType": Field(str, "atb", required=True, choices=("atb", "torch", "ms"), used=False),
    "trustRemoteCode": Field(bool, False, used=False),
    "plugin_params": Field((str, dict), used=False),
    "models": Field(dict, used=False),
    "async_scheduler_wait_time": _number(120, 1, 3600, required=False, used=False),
    "kv_trans_timeout": Field(int, 10, used=False),
    "kv_link_timeout": Field(int, 1080, used=False),
}

SCHEDULE = {
    "templateType": Field(str, "Standard", required=True, choices=("Standard", "Mix"), used=False),
    "templateName": Field(str, "Standard_LLM", required=True, choices=("Standard_LLM",), used=False),
    "cacheBlockSize": _number(128, 16, 128, used=False),
    "maxPrefillBatchSize": _number(50, 0, MOST, used=False),  # 0: as maxBatchSize
    "maxPrefillTokens": _number(8192, 1, 4194304),
    "prefillTimeMsPerReq": _number(150, 0, 1000, used=False),
    "prefillPolicyType": Field(int, 0, required=True, choices=(0, 1, 2, 3), used=False),
    "decodeTimeMsPerReq": _number(50, 0, 1000, used=False),
    "decodePolicyType": Field(int, 0, required=True, choices=(0, 1, 2, 3), used=False),
    "maxBatchSize": _number(200, 1, 819200),
    "maxIterTimes": _number(512, 1, MOST),
    "maxPreemptCount": _number(0, 0, MOST, used=False),
    "supportSelectBatch": Field(bool, False, required=True, used=False),
    "maxQueueDelayMicroseconds": _number(5000, 500, 1000000, used=False),
    "maxFirstTokenWaitTime": _number(2500, 0, 3600000, required=False, used=False),
    "maxN": Field(int, None, low=1, high=8192),  # 128, or fewer with a smaller maxBatchSize
}

HEALTH = {"npuUsageThreshold": _number(0, 0, 100, required=False, used=False)}

_LEVEL = ("(?i)(verbose|debug|info|warn|warning|error|critical|null|none)?", "a level such as 'info', or ''")
_TIME = (r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)?", "a time as '2025-12-31 23:59:59', or ''")
LOG = {
    "logLevel": Field(str, pattern=_LEVEL, used=False),
    "logFileSize": Field(int, low=0, high=500, used=False),
    "logFileNum": Field(int, low=0, high=64, used=False),
    "logPath": Field(str, used=False, **_PATH),
    "dynamicLogLevel": Field(str, pattern=_LEVEL, used=False),
    "dynamicLogLevelValidHours": Field(int, low=1, high=168, used=False),
    "dynamicLogLevelValidTime": Field(str, pattern=_TIME, used=False),
}

TOP = {
    "Version": Field(str, "1.0.0", required=True, choices=("1.0.0",), used=False),
    "ServerConfig": Field(dict, required=True),
    "BackendConfig": Field(dict, required=True),
    "LogConfig": Field(dict, {}),
    "EnableDynamicAdjustTimeoutConfig": Field(bool, False, used=False),
}
