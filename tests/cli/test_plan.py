"""``plan``: the numbers are those of the published 14B and those that a real model allocates."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM, M1Cache
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import InputError
from ascend_m1.plan import activation_bytes, cache_bytes, longest, make_plan, parameters, possible_devices
from ascend_m1.prediction import decode_bytes
from ascend_m1.quantization.scheme import Scheme
from ascend_m1.quantization.write import quantise_checkpoint

from .conftest import Cli, tiny_config


def test_published_model_in_numbers(cli: Cli) -> None:
    ran = cli("plan", "--json", "--memory", 64)
    assert (ran.status, ran.err) == (0, "")
    plan = json.loads(ran.out)
    assert round(plan["parameters"]["total"] / 1e9, 2) == 14.47
    needed = plan["bytes_per_device"]
    assert round(needed["weights"] / 2**30, 2) == 26.95
    assert plan["length"] == 32768
    # 20 global layers of 2·256 values and 20 rings of 8192 + 24 slots of 8·128, K and V, two bytes each
    assert needed["cache"]["global_layers"] == 20 * 2 * 32768 * 512 * 2
    assert needed["cache"]["window_layers"] == 20 * 2 * 8216 * 1024 * 2
    assert needed["cache"]["convolution"] == 25 * 2 * 20 * (512 + 1024) * 2
    assert needed["cache"]["total"] <= 2.02e9
    assert needed["cache"]["full"] == 20 * 2 * 32768 * (512 + 1024) * 2
    assert plan["memory"]["fits"]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 32, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_is_what_the_model_allocates(length: int, dtype: torch.dtype) -> None:
    config = tiny_config()
    model = BaichuanM1ForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for cache in (M1Cache(config), M1Cache(config, max_length=length)):
            model(torch.ones(3, length, dtype=torch.long), cache=cache, logits_to_keep=1)
            assert cache.nbytes == cache_bytes(config, 3, length, dtype.itemsize).total


def test_parameters_are_those_of_a_model() -> None:
    model = BaichuanM1ForCausalLM(tiny_config())
    assert sum(parameters(tiny_config()).values()) == sum(p.numel() for p in model.parameters())


class Peak(TorchDispatchMode):
    """The most bytes alive at once of what is made inside."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.sizes, self.now, self.most = known, {}, 0, 0

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._drop, storage._cdata)
        return out


@pytest.mark.parametrize(("batch", "length"), [(1, 4096), (2, 1024)])
def test_activations_are_what_a_forward_holds(monkeypatch: pytest.MonkeyPatch, batch: int, length: int) -> None:
    # Measured on the meta device, where PyTorch's attention would write out its scores; the kernels in use do not.
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, *args, **kw: torch.empty_like(q))
    config = BaichuanM1Config(num_hidden_layers=2)
    with torch.device("meta"):
        model = BaichuanM1ForCausalLM(config).to(torch.bfloat16).eval()
        ids = torch.zeros(batch, length, dtype=torch.long)
    cache = M1Cache(config)
    with torch.no_grad(), Peak({p.untyped_storage()._cdata for p in model.parameters()}) as peak:
        model(ids, cache=cache, logits_to_keep=1)
    # Ids, positions and the last logits are left out of the formula.
    assert peak.most - cache.nbytes == pytest.approx(activation_bytes(config, batch, length, 2), rel=0.02)


def test_shards_divide_heads_and_repeat_kv_heads() -> None:
    config = BaichuanM1Config()
    assert possible_devices(config) == [1, 2, 4]
    one, two, four = (make_plan(config, 1, 32768, torch.bfloat16, n) for n in (1, 2, 4))
    norms = parameters(config)["norms"] * 2
    assert two.weights == (one.weights - norms) // 2 + norms
    assert four.cache.global_layers == two.cache.global_layers  # 2 key/value heads: one is repeated
    assert four.cache.window_layers * 2 == two.cache.window_layers
    taps = 20 * 2 * 1 * 2 * 2  # and so are the taps and rows of that head
    rows = 20 * 2 * 256 * 5120 * 2
    assert four.weights == (two.weights - norms - taps - rows) // 2 + norms + taps + rows


def test_longest_is_the_last_that_fits() -> None:
    config = BaichuanM1Config()
    memory = 32 * 2**30
    most = longest(config, make_plan(config, 1, 32768, torch.bfloat16), memory)
    assert 1 < most < 32768
    assert make_plan(config, 1, most, torch.bfloat16).total <= memory
    assert make_plan(config, 1, most + 1, torch.bfloat16).total > memory
    assert longest(config, make_plan(config, 1, 1, torch.bfloat16), 2**30) == 0


def test_table_says_what_needs_vllm(cli: Cli, checkpoint: Path) -> None:
    ran = cli("plan", "--devices", 4, "--memory", 16)
    assert "Several devices: with vLLM" in ran.out
    assert "fits into 16 GiB" in ran.out
    assert cli("plan", "--model", checkpoint).out.startswith(f"{checkpoint}: ")
    short = cli("plan", "--memory", 1)
    assert "does not fit into 1 GiB" in short.out
    assert [run.status for run in (ran, short, cli("plan", "--memory", 1, "--json"))] == [0, 1, 1]


def test_predicted_speed_follows_its_formula(cli: Cli) -> None:
    found = json.loads(cli("plan", "--json", "--length", 4096, "--batch", 8).out)["prediction"]
    assert not found["measured"]
    assert found["launches"] == 40 * 9 + 6
    # all parameters but the embedding, 8 of its rows, the head's norms; 20 global and 20 window layers, K and V
    weights = 14_467_389_440 - 133_120 * 5120 + 8 * 5120
    cache = 8 * 4096 * 20 * 2 * (512 + 1024)
    assert found["bytes"] == pytest.approx(2 * (weights + cache) + 4 * 133_120, rel=1e-3)
    for product in found["products"].values():
        step = found["bytes"] / (0.8 * product["bandwidth"]) + found["launches"] * 3e-6
        assert product["tokens_per_second"] == pytest.approx(8 / step, abs=0.1)
        assert product["tokens_per_second"] < product["at_most"]
        assert product["source"]


@pytest.mark.parametrize("length", [1, 8192, 8193, 32768])
def test_a_window_layer_reads_its_window(length: int) -> None:
    config = BaichuanM1Config()
    seen = 20 * 2 * (512 * length + 1024 * min(length, 8192)) * 2
    assert decode_bytes(config, 1, length, 2) - decode_bytes(config, 1, 0, 2) == seen


def test_prediction_is_called_one(cli: Cli) -> None:
    out = cli("plan").out
    assert "predicted decode speed, not measured on an NPU" in out
    assert "are assumed" in out
    assert "does not fit" not in out
    assert cli("plan", "--batch", 64).out.count("does not fit") == 3


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, 32), Scheme(4, 256)], ids=str)
def test_quantised_weights_are_those_of_a_folder(cli: Cli, scheme: Scheme, tmp_path: Path) -> None:
    quantise_checkpoint(EMBEDDED, tmp_path / "model", scheme, lambda done, all: None)
    stored = load_file(tmp_path / "model/model.safetensors")
    size = sum(tensor.nbytes for name, tensor in stored.items() if not name.endswith("_shape"))
    options = ["--bits", scheme.bits, *(["--group-size", scheme.group] if scheme.group else [])]
    dtype = str(stored["lm_head.weight"].dtype).removeprefix("torch.")
    for model, more in ((tmp_path / "model", []), (EMBEDDED, options)):
        plan = json.loads(cli("plan", "--json", "--model", model, "--dtype", dtype, *more).out)
        assert plan["quantization"] == {"bits": scheme.bits, "group": scheme.group}
        assert plan["bytes_per_device"]["weights"] == size
    assert str(scheme) in cli("plan", "--model", tmp_path / "model").out


def test_scales_of_matrices_split_by_inputs() -> None:
    """A row's only scale is on every device, a group's on the one that has the group."""
    config = BaichuanM1Config()
    norms = parameters(config)["norms"] * 2
    repeated = {Scheme(8): 40 * 2 * 5120 * 2, Scheme(4, 128): 0}  # of o_proj and down_proj
    for scheme, again in repeated.items():
        one, two = (make_plan(config, 1, 1, torch.bfloat16, n, scheme).weights for n in (1, 2))
        assert 2 * two - one == norms + again


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--group-size", 64), "--group-size 64 is of quantised weights: give --bits 4, too"),
        (("--bits", 8, "--group-size", 64), "group size 64 with 8 bits: 8 bits have one scale for a row: leave it out"),
        (("--bits", 3), "3 bits: give 4 or 8"),
    ],
)
def test_quantisation_that_is_none(cli: Cli, options: tuple[object, ...], text: str) -> None:
    ran = cli("plan", *options)
    assert (ran.status, ran.err) == (2, f"ascend-m1: error: {text}\n")


def test_groups_that_do_not_fit() -> None:
    config = BaichuanM1Config(intermediate_size=17408 + 128)
    with pytest.raises(
        InputError, match=r"down_proj.weight: .* inputs on a device are no multiple of the group size 256"
    ):
        make_plan(config, 1, 1, torch.bfloat16, 1, Scheme(4, 256))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--dtype", "float32"), "float32"),
        (("--devices", 2), "several devices"),
        (("--bits", 4), "quantised weights"),
    ],
)
def test_nothing_is_predicted_where_nothing_was_counted(cli: Cli, options: tuple[object, ...], reason: str) -> None:
    assert f"no prediction of decode speed for {reason}" in cli("plan", *options).out
    assert reason in json.loads(cli("plan", "--json", *options).out)["prediction"]["reason"]
