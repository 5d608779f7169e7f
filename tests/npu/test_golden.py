"""Every golden case on the npu device, unchanged model code: whole, in chunks, padded, packed, generated.

float32 within the CPU's own tolerance of the float64 oracle; 16 bits as near to float32 as the CPU in the same dtype.
"""

from __future__ import annotations

import pytest
import torch

from ascend_m1 import M1Cache

from .golden import (
    CASES,
    LOW_PRECISION,
    TOLERANCE,
    along_the_golden,
    assert_as_near,
    exact_logits,
    load,
    load_prompts,
    max_error,
)

pytestmark = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.inference_mode():
        yield


def test_prefill_and_greedy(case: str) -> None:
    model = load(case)
    prompts = load_prompts(case)
    for ids, logits, greedy in prompts:
        row = ids[None].to("npu")
        assert max_error(model(row).logits[0].cpu(), logits) < TOLERANCE
        if ids is not prompts[0][0] and ids is not prompts[-1][0]:
            continue  # the batch tests and the graph tests generate from the others
        out = model.generate(row, max_new_tokens=len(greedy), do_sample=False, eos_token_id=None, pad_token_id=0)
        assert out[0, len(ids) :].tolist() == greedy.tolist()


@pytest.mark.parametrize("size", [1, 7, 9])
def test_chunked_prefill(case: str, size: int) -> None:
    model = load(case)
    ids, logits, _ = load_prompts(case)[-1]
    cache = M1Cache(model.config, rollback=2)
    parts = [model(part[None].to("npu"), cache=cache).logits[0].cpu() for part in ids.split(size)]
    assert max_error(torch.cat(parts), logits) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(case: str, side: str, dtype: torch.dtype) -> None:
    prompts = load_prompts(case)[:4]
    width = max(len(ids) for ids, _, _ in prompts) + 2
    batch = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(batch)
    for row, (ids, _, _) in enumerate(prompts):
        columns = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        batch[row, columns], mask[row, columns] = ids, 1
    result = load(case, dtype)(batch.to("npu"), attention_mask=mask.to("npu")).logits.float().cpu()
    exact = torch.cat([logits for _, logits, _ in prompts])
    if dtype == torch.float32:
        assert max_error(result[mask.bool()], exact) < TOLERANCE
    else:
        cpu = load(case, dtype, "cpu")(batch, attention_mask=mask).logits
        assert_as_near([result[mask.bool()]], [cpu[mask.bool()]], [exact])


@pytest.mark.parametrize("how", ["seqlens", "cu_seqlens", "position_ids"])
def test_packed_row(case: str, how: str) -> None:
    prompts = load_prompts(case)[:4]
    row = torch.cat([ids for ids, _, _ in prompts])[None]
    ends = torch.tensor([len(ids) for ids, _, _ in prompts]).cumsum(0)
    borders = {
        "seqlens": ends[None],
        "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
        "position_ids": torch.cat([torch.arange(len(ids)) for ids, _, _ in prompts])[None],
    }
    result = load(case)(row.to("npu"), **{how: borders[how].to("npu")}).logits[0].cpu()
    assert max_error(result, torch.cat([logits for _, logits, _ in prompts])) < TOLERANCE


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_low_precision_is_as_near_as_the_cpu(case: str, dtype: torch.dtype) -> None:
    """Whole texts, prompt and golden continuation; and decoding along the golden tokens in a left-padded batch."""
    model, reference = load(case, dtype), load(case, dtype, "cpu")
    prompts = load_prompts(case)[1:5]
    texts = [torch.cat([ids, greedy]) for ids, _, greedy in prompts]
    exact = [exact_logits(case, text) for text in texts]
    whole = [[lm(text[None].to(lm.device)).logits[0] for text in texts] for lm in (model, reference)]
    assert_as_near(*whole, exact)
    steps = [rows[-1 - len(greedy) : -1] for rows, (_, _, greedy) in zip(exact, prompts, strict=True)]
    inputs = [ids for ids, _, _ in prompts], [greedy for _, _, greedy in prompts]
    decoded = [along_the_golden(lm, *inputs) for lm in (model, reference)]
    assert_as_near(*decoded, steps)
