"""What several suites share: the golden checkpoints and small random models."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network is wrong
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a job in the background; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if find_spec("torch_npu"):  # which transformers imports, too: the host NPU's stand-ins must be loaded before it
    os.environ.setdefault("HOSTNPU_POISON", "1")  # fresh device memory holds NaN, not zeros
    import ascend_m1_hostnpu  # noqa: F401

# Suites with an environment of their own, see scripts/test.sh.
NEEDS = {
    "browser": "playwright",
    "deepspeed": "deepspeed",
    "npu": "torch_npu",
    "lowering": "ascendnpuir",
    "mindspore": "mindspore",
    "vllm": "vllm",
    "vllm_ascend": "vllm_ascend",
}
collect_ignore = [folder for folder, package in NEEDS.items() if find_spec(package) is None]
if "ASCEND_M1_OPENMIND" not in os.environ:  # that environment is beside this one
    collect_ignore.append("openmind")

import torch
from hypothesis import settings
from transformers.utils import logging

settings.register_profile("default", deadline=None)
settings.load_profile("default")
logging.disable_progress_bar()

GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)  # the models are tiny: a second thread would only wait


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Every test begins with the same seed and leaves torch's settings as it found them."""
    torch.manual_seed(0)
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)
