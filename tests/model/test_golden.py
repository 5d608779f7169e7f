"""Every golden case through every way of feeding the model: whole, by steps, in chunks, padded, packed."""

from __future__ import annotations

import pytest
import torch

from ascend_m1 import M1Cache

from .golden import CASES, TOLERANCE, load_model, load_prompts, max_error

pytestmark = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.inference_mode():
        yield


def test_full_prefill(case: str) -> None:
    for ids, logits, _ in load_prompts(case):
        assert max_error(load_model(case)(ids[None]).logits[0], logits) < TOLERANCE


@pytest.mark.parametrize("max_length", [None, 512], ids=["growing", "static"])
def test_step_by_step_decode(case: str, max_length: int | None) -> None:
    model = load_model(case)
    for ids, logits, _ in load_prompts(case):
        cache = M1Cache(model.config, max_length=max_length)
        steps = [model(token[None, None], cache=cache).logits[0, 0] for token in ids]
        assert max_error(torch.stack(steps), logits) < TOLERANCE


def test_chunked_prefill_every_split(case: str) -> None:
    model = load_model(case)
    for ids, logits, _ in load_prompts(case):
        for split in range(1, len(ids)):
            # No slots to spare: chunks of any length must then keep old and new keys side by side.
            cache = M1Cache(model.config, rollback=0 if split % 2 else 8)
            parts = [model(part[None], cache=cache).logits[0] for part in (ids[:split], ids[split:])]
            assert max_error(torch.cat(parts), logits) < TOLERANCE, f"split at {split} of {len(ids)}"


@pytest.mark.parametrize("size", [1, 3, 7, 8, 9])
def test_chunks_of_equal_size(case: str, size: int) -> None:
    model = load_model(case)
    ids, logits, _ = load_prompts(case)[-1]
    cache = M1Cache(model.config, rollback=2)
    parts = [model(part[None], cache=cache).logits[0] for part in ids.split(size)]
    assert max_error(torch.cat(parts), logits) < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(case: str, side: str) -> None:
    model, prompts = load_model(case), load_prompts(case)
    width = max(len(ids) for ids, _, _ in prompts) + 3
    batch = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(batch)
    for row, (ids, _, _) in enumerate(prompts):
        columns = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        batch[row, columns], mask[row, columns] = ids, 1
    result = model(batch, attention_mask=mask).logits
    for row, (_, logits, _) in enumerate(prompts):
        assert max_error(result[row][mask[row].bool()], logits) < TOLERANCE


@pytest.mark.parametrize("how", ["seqlens", "cu_seqlens", "position_ids"])
def test_packed_row(case: str, how: str) -> None:
    model, prompts = load_model(case), load_prompts(case)
    row = torch.cat([ids for ids, _, _ in prompts])[None]
    ends = torch.tensor([len(ids) for ids, _, _ in prompts]).cumsum(0)
    borders = {
        "seqlens": ends[None],
        "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
        "position_ids": torch.cat([torch.arange(len(ids)) for ids, _, _ in prompts])[None],
    }
    result = model(row, **{how: borders[how]}).logits[0]
    assert max_error(result, torch.cat([logits for _, logits, _ in prompts])) < TOLERANCE


def test_greedy_continuations(case: str) -> None:
    model = load_model(case)
    for ids, _, greedy in load_prompts(case):
        out = model.generate(ids[None], max_new_tokens=len(greedy), do_sample=False, eos_token_id=None, pad_token_id=0)
        assert out[0, len(ids) :].tolist() == greedy.tolist()


def test_greedy_continuations_as_one_left_padded_batch(case: str) -> None:
    model, prompts = load_model(case), load_prompts(case)
    width = max(len(ids) for ids, _, _ in prompts)
    batch = torch.stack([torch.cat([ids.new_zeros(width - len(ids)), ids]) for ids, _, _ in prompts])
    mask = torch.stack([(torch.arange(width) >= width - len(ids)).long() for ids, _, _ in prompts])
    out = model.generate(
        batch, attention_mask=mask, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert out[:, width:].tolist() == [greedy.tolist() for _, _, greedy in prompts]
