"""Quantised weights through the vendor's product on the host NPU, alone and in the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ascend_m1_hostnpu as host
from ascend_m1.cli.checkpoint import open_checkpoint
from ascend_m1.cli.loading import load_model, load_quantised
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import DeviceError
from ascend_m1.quantization import read
from ascend_m1.quantization.scheme import Scheme
from ascend_m1.quantization.write import quantise_checkpoint
from ascend_m1_ops import prepare, quant_linear
from ascend_m1_ops.quant_linear import npu
from ascend_m1_ops.testing import LOW_PRECISION
from ascend_m1_serve.engines import Wanted, built_in
from ascend_m1_serve.protocol import Sampling

from ..ops.test_quant_linear import assert_near, make
from ..quantization.test_checkpoint import CODES, silent
from ..serve.engine.run import run_all


@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (4, 256), (8, 256)])
@pytest.mark.parametrize("rows", [1, 17])
def test_equals_the_definition(rows: int, bits: int, group: int, dtype: torch.dtype) -> None:
    """A group may be a whole row, which the vendor's product asks for otherwise."""
    numbers, scales = make(96, 256, bits, group, dtype)
    x = torch.randn(rows, 256).to(dtype)
    weight = prepare(numbers.npu(), scales.npu(), bits)
    assert weight.numbers.dtype == (torch.int32 if bits == 4 else torch.int8)
    with host.recording() as log:
        out = quant_linear(x.npu(), weight)
    assert [launch.name for launch in log.kernels] == ["aclnnWeightQuantBatchMatmulV2"]
    assert_near(out.cpu(), x, numbers, scales)


def test_a_310p_has_no_product_for_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu, "product", lambda: "310P")
    numbers, scales = make(96, 512, 4, 128, torch.float16)
    with pytest.raises(ValueError, match="a 310P takes weights of 8 bits only"):
        prepare(numbers.npu(), scales.npu(), 4)


def test_a_dtype_that_has_no_product(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For either kind of model, before a weight is read."""
    quantise_checkpoint(EMBEDDED, tmp_path / "model", Scheme(8), silent)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    for path in (tmp_path / "model").glob("*.safetensors"):
        path.unlink()
    npu0 = torch.device("npu", 0)
    for load in (load_model, load_quantised):
        with pytest.raises(
            DeviceError, match=r"^dtype float32: quantised weights take float16 or bfloat16 on A2: give"
        ):
            load(checkpoint, npu0, "float32")
    monkeypatch.setattr(read, "product", lambda: "310P")
    with pytest.raises(DeviceError, match=r"^dtype bfloat16: quantised weights take float16 on 310P: give --dtype"):
        load_model(checkpoint, npu0, "bfloat16")


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, 64)], ids=["W8A16", "W4A16"])
def test_the_engine_answers_as_on_the_cpu(scheme: Scheme, tmp_path: Path) -> None:
    """Decode steps are captured graphs, which hold the same four products a layer."""
    quantise_checkpoint(EMBEDDED, tmp_path / "model", scheme, silent)
    loaded = built_in(Wanted(tmp_path / "model", device="npu:0", dtype="float16", max_length=256, max_sequences=4))
    prompts = [loaded.tokenizer(f"<C_Q>What does ICD-10-CM code {code} mean?<C_A>")["input_ids"] for code in CODES]
    asked = [loaded.core.add(ids, Sampling(max_tokens=40)) for ids in prompts]
    for _ in range(6):
        loaded.core.step()
    with host.recording() as log:
        loaded.core.step()
    products = [launch for launch in log.kernels if launch.name == "aclnnWeightQuantBatchMatmulV2"]
    assert len(products) == 4 * 4
    run_all(loaded.core, asked)
    rest = [loaded.tokenizer.decode(request.ids[request.prompt :], skip_special_tokens=True) for request in asked]
    assert rest == list(CODES.values())
