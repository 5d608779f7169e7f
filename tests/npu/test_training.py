"""Training the unchanged model on the NPU: losses and gradients are the CPU's, through the vendor's fused operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu

import ascend_m1_hostnpu as hostnpu
from ascend_m1_ops import Positions, attention
from ascend_m1_ops.testing import gradients as weighed_gradients
from ascend_m1_ops.testing import rounding

from .tiny import (
    COLUMNS,
    ENDS,
    ROUNDINGS,
    WINDOW,
    assert_close_to,
    batches,
    error,
    gradients,
    model,
    to_npu,
    tokens,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BATCHES = batches()
FORWARD, BACKWARD = "aclnnFlashAttentionVarLenScore", "aclnnFlashAttentionUnpaddingScoreGrad"
INFERENCE = "aclnnFusedInferAttentionScoreV4"
# aclnnApplyAdamWV2's own formula against PyTorch's: a few operations, each rounded once.
ADAMW = {torch.float32: 8, torch.bfloat16: 4, torch.float16: 4}


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keyword arguments of every call of the vendor's attention."""
    calls: list[dict[str, Any]] = []
    plain = torch_npu.npu_fusion_attention

    def spy(*arguments: Any, **options: Any) -> Any:
        assert arguments[4] == "TND"
        calls.append(options)
        return plain(*arguments, **options)

    monkeypatch.setattr(torch_npu, "npu_fusion_attention", spy)
    return calls


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BATCHES)
def test_loss_and_gradients_equal_the_cpu(name: str, dtype: torch.dtype) -> None:
    """The CPU's float64 on the same rounded weights: what both devices' rounding is measured against."""
    batch = BATCHES[name]
    exact_loss, exact = gradients(model(dtype).double(), batch)
    loss, found = gradients(model(dtype).to("npu"), to_npu(batch))
    # A mean over tokens of numbers of the size of log(vocabulary), each off by a few roundings of its own.
    torch.testing.assert_close(loss.double(), exact_loss, rtol=4 * rounding(dtype), atol=0.0)
    assert_close_to(exact, found, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_attention_is_the_fused_operator(dtype: torch.dtype, fused: list[dict[str, Any]]) -> None:
    """Global layers causal (sparse mode 3), window layers as a band (4), documents by their lengths."""
    with hostnpu.recording() as log:
        gradients(model(dtype).to("npu"), to_npu(BATCHES["seqlens"]))
    counts = log.counts()
    assert counts[FORWARD] == counts[BACKWARD] == 3
    assert not [name for name in counts if "BatchMatMul" in name or "Softmax" in name.replace("LogSoftmax", "")]
    ends = [COLUMNS * row + end for row, row_ends in enumerate(ENDS) for end in row_ends]
    ends = sorted({*ends, 2 * COLUMNS})
    assert [call["actual_seq_qlen"] for call in fused] == [call["actual_seq_kvlen"] for call in fused] == [ends] * 3
    bands = [(call["sparse_mode"], call["pre_tockens"], call["next_tockens"]) for call in fused]
    assert bands == [(3, 2147483647, 0), (4, WINDOW - 1, 0), (3, 2147483647, 0)]


def test_a_band_is_asked_for_only_where_a_document_is_longer_than_the_window(fused: list[dict[str, Any]]) -> None:
    batch = {"input_ids": tokens(1, 2 * WINDOW), "labels": tokens(1, 2 * WINDOW)}
    for ends in ([WINDOW, 2 * WINDOW], [WINDOW - 1, 2 * WINDOW]):
        gradients(model().to("npu"), to_npu({**batch, "seqlens": torch.tensor([ends])}))
    assert [call["sparse_mode"] for call in fused] == [3, 3, 3, 3, 4, 3]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_documents_do_not_see_each_other(dtype: torch.dtype) -> None:
    """Other tokens in the neighbours change nothing, to the bit, and get no gradient."""
    lm = model(dtype).to("npu")
    ends = torch.tensor([[7, 16, 20]], device="npu")
    ids = tokens(1).to("npu")
    changed = ids.clone()
    changed[:, :7], changed[:, 16:] = 5, 6
    hidden = [lm.model(input_ids=rows, seqlens=ends).last_hidden_state for rows in (ids, changed)]
    assert torch.equal(hidden[0][:, 7:16], hidden[1][:, 7:16])
    assert not torch.equal(hidden[0][:, 16:], hidden[1][:, 16:])
    embeds = lm.model.embed(ids).detach().requires_grad_()
    lm.model(inputs_embeds=embeds, seqlens=ends).last_hidden_state[:, 7:16].float().square().sum().backward()
    assert embeds.grad is not None
    assert bool((embeds.grad[:, 7:16].float().norm(dim=-1) > 0).all())
    assert int(embeds.grad[:, :7].count_nonzero()) == int(embeds.grad[:, 16:].count_nonzero()) == 0


def test_what_stands_in_padding_does_not_matter() -> None:
    batch = to_npu(BATCHES["left-padded"])
    loss, found = gradients(lm := model().to("npu"), batch)
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 9)}
    again, same = gradients(lm, other)
    assert torch.equal(loss, again)
    # The padding embeds to other rows, which get no gradient; the sums over all rows have the same terms.
    assert all(torch.equal(found[name], same[name]) for name in found)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(reentrant: bool, dtype: torch.dtype) -> None:
    """Equal to the bit where the second forward repeats the first.

    A reentrant first pass runs without gradients, with the operators of inference: float32 composes attention there,
    16 bits take the fused inference operator.
    """
    batch, lm = to_npu(BATCHES["seqlens"]), model(dtype).to("npu")
    loss, plain = gradients(lm, batch)
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    lm.enable_input_require_grads()
    with hostnpu.recording() as log:
        again, found = gradients(lm, batch)
    assert log.counts()[BACKWARD] == 3
    assert log.counts()[FORWARD] == (3 if reentrant else 6)
    assert log.counts()[INFERENCE] == (3 if reentrant and dtype != torch.float32 else 0)
    if reentrant:
        torch.testing.assert_close(again, loss, rtol=4 * rounding(dtype), atol=0.0)
        assert_close_to({name: grad.double() for name, grad in plain.items()}, found, dtype)
    else:
        assert torch.equal(again, loss)
        assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_a_batch_of_nothing_but_padding_gives_zeros() -> None:
    q, kv = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 2, 8)
    columns = torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), -1)
    nobody = Positions(*(positions.to("npu") for positions in columns), in_order=True)
    out = attention(q.to("npu").requires_grad_(), kv.to("npu"), kv.to("npu"), nobody)
    assert int(out.count_nonzero()) == 0


@pytest.mark.parametrize("window", [None, 2])
def test_more_documents_than_one_call_takes(window: int | None) -> None:
    """2,048 a call; the lengths repeat with a period that does not divide it."""
    sizes = [1, 3, 2] * 700
    document = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).unsqueeze(0)
    position = torch.cat([torch.arange(size) for size in sizes]).unsqueeze(0)
    who = Positions(position, position, document, document, in_order=True, gapless=True)
    there = Positions(*(x.to("npu") for x in (position, position, document, document)), True, True)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, document.shape[1], heads, 4) for heads in (2, 1, 1))
    with hostnpu.recording() as log:
        found = weighed_gradients(
            lambda *x: attention(*(y.to("npu") for y in x), there, window=window).cpu(), (q, k, v)
        )
    exact = weighed_gradients(lambda *x: attention(*x, who, window=window), [x.double() for x in (q, k, v)])
    assert log.counts()[FORWARD] == log.counts()[BACKWARD] == 2
    for one, other in zip(found, exact, strict=True):
        assert error(one, other) <= ROUNDINGS[torch.float32][0] * rounding(torch.float32)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True, "weight_decay": 0.0}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_adamw_equals_the_cpu(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Three steps with the same gradients, which change sign and size."""
    torch.manual_seed(0)
    start = [torch.randn(shape).to(dtype) for shape in ((5, 7), (3,), (1,))]
    steps = [[torch.randn_like(x) * 10.0**-step for x in start] for step in range(3)]
    results = []
    for device in ("cpu", "npu"):
        leaves = [x.to(device).clone().requires_grad_() for x in start]
        settings = {"lr": 1e-2, "weight_decay": 0.1, **options}
        optimizer = torch.optim.AdamW(leaves, fused=True, **settings)
        with hostnpu.recording() as log:
            for grads in steps:
                for leaf, grad in zip(leaves, grads, strict=True):
                    leaf.grad = grad.to(device)
                optimizer.step()
        results.append([leaf.detach().cpu() for leaf in leaves])
    assert log.counts()["aclnnApplyAdamWV2"] == 9
    for before, one, other in zip(start, *results, strict=True):
        assert not torch.equal(before, other)
        torch.testing.assert_close(other, one, rtol=ADAMW[dtype] * rounding(dtype), atol=1e-7)


def test_steps_of_training_equal_the_cpu_and_launch_what_they_should() -> None:
    """Three steps on packed rows. AdamW divides by a gradient's own size: its epsilon keeps rounding from deciding."""
    losses = {}
    for device in ("cpu", "npu"):
        lm = model().to(device)
        optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2, eps=1e-3, fused=True)
        losses[device] = []
        for _ in range(3):
            batch = {name: tensor.to(device) for name, tensor in BATCHES["seqlens"].items()}
            with hostnpu.recording() as log:
                loss = lm(**batch).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses[device].append(loss.item())
    assert losses["cpu"][2] < losses["cpu"][0] - 0.1
    torch.testing.assert_close(losses["npu"], losses["cpu"], rtol=1e-5, atol=0.0)
    layers, parameters = 3, len(list(lm.parameters()))
    expected = {
        FORWARD: layers,
        BACKWARD: layers,
        "triton:short_conv_kernel": layers,
        "triton:short_conv_backward_kernel": layers,
        "aclnnRotaryPositionEmbeddingV2": 2 * layers,
        "aclnnRotaryPositionEmbeddingGrad": 2 * layers,
        "aclnnRmsNorm": 2 * layers + 1,
        "aclnnRmsNormGrad": 2 * layers + 1,
        "aclnnSilu": layers,  # gate and up are two projections, to which adapters can be added one by one
        "aclnnSiluBackward": layers,
        "aclnnApplyAdamWV2": parameters,
    }
    assert {name: log.counts()[name] for name in expected} == expected
