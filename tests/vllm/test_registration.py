"""What the plugin does in every process of vLLM, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM

import ascend_m1_vllm
from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.errors import ConfigError, InputError
from ascend_m1_vllm import checks, versions
from ascend_m1_vllm.config import LazyConfig, refuse_unknown
from ascend_m1_vllm.refusal import StartError

from ..model.golden import ROOT

LISTED = "print(sorted(name for name in sys.modules if name.split('.')[0] in {names}))"


def printed(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()[-1]


def test_the_model_is_not_imported() -> None:
    listed = LISTED.format(names={"ascend_m1", "ascend_m1_ops"})
    assert printed(f"import sys, ascend_m1_vllm; ascend_m1_vllm.register(); {listed}") == "[]"


def test_a_vllm_that_was_never_tried_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that the plugin uses may be gone there, and other models must start; ours says why it does not."""
    monkeypatch.setattr(versions, "installed", lambda *names: Version("0.33.0") if "vllm" in names else None)
    monkeypatch.setattr(ascend_m1_vllm, "_register_model", None)
    ascend_m1_vllm.register()
    with pytest.raises(StartError, match=r"^vLLM 0\.33\.0 is installed, ascend-m1 was tried with 0\.23 to 0\.32: "):
        LazyConfig.from_dict({})


def test_a_vllm_ascend_that_was_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda *names: Version("0.24.1rc1") if "vllm-ascend" in names else None)
    assert versions.why_untried() == (
        "vllm-ascend 0.24.1rc1 is installed, ascend-m1 was tried with 0.23: install that one, or a newer ascend-m1"
    )


def test_transformers_loads_the_model_as_before() -> None:
    ascend_m1_vllm.register()
    config = AutoConfig.from_pretrained(ROOT / "hybrid")
    assert type(config) is BaichuanM1Config
    assert type(AutoModelForCausalLM.from_config(config)) is BaichuanM1ForCausalLM


def test_fields_without_a_meaning_are_taken() -> None:
    harmless = {"_attn_implementation": "sdpa", "rope_scaling": None, "torchscript": True, "quantize": "w8a8_dynamic"}
    refuse_unknown({**harmless, "anything": None})
    with pytest.raises(ConfigError, match=r"^config\.json: field slidng_window is not known: do you mean sliding_win"):
        refuse_unknown({"slidng_window": 8})


def test_a_window_of_one_key_on_an_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "current_platform", SimpleNamespace(device_type="npu"))
    config = BaichuanM1Config(sliding_window=1)
    model: Any = SimpleNamespace(hf_config=config)
    start: Any = SimpleNamespace(speculative_config=None, model_config=model, parallel_config=None)
    with pytest.raises(InputError, match=r"^sliding_window=1: vllm-ascend takes a window of the query's own key"):
        checks.check_start(start)


def test_weights_of_modelslim_beside_another_vllm(tmp_path: Any) -> None:
    (tmp_path / "quant_model_description.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"quant_model_description\.json: quantised by ModelSlim, for vllm-ascend: give"
    ):
        checks.check_files(tmp_path, BaichuanM1Config(), None)
