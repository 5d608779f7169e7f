"""What goes wrong around a model in use: edited weights, failed calls, caches used again, unusual batches."""

from __future__ import annotations

import copy

import pytest
import torch

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM, M1Cache
from ascend_m1.errors import CacheError

from .golden import ROOT, load_model


@pytest.fixture
def model() -> BaichuanM1ForCausalLM:
    return BaichuanM1ForCausalLM.from_pretrained(ROOT / "hybrid", dtype=torch.float64)


def test_head_weights_edited_behind_autograds_back(model: BaichuanM1ForCausalLM) -> None:
    """Merging an adapter or swapping averaged weights goes through ``.data``, which no version counter sees."""
    ids = torch.randint(0, 199, (1, 9))
    with torch.no_grad():
        before = model(ids).logits
        model.lm_head.weight.data.mul_(2)  # rows count by direction: nothing may change
        torch.testing.assert_close(model(ids).logits, before)


def test_a_generation_computes_the_row_norms_once(model: BaichuanM1ForCausalLM) -> None:
    with torch.no_grad():
        cache = M1Cache(model.config)
        model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
        norms = model.lm_head._scale
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
        assert model.lm_head._scale is norms
        model.lm_head.weight.mul_(2)
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
        assert model.lm_head._scale is not norms


def test_frozen_head_trains_after_inference_mode(model: BaichuanM1ForCausalLM) -> None:
    ids = torch.randint(0, 199, (1, 9))
    model.lm_head.requires_grad_(False)
    with torch.inference_mode():
        model(ids)
    model(ids, labels=ids).loss.backward()
    assert model.model.norm.weight.grad is not None


def test_a_forward_that_fails_halfway_makes_the_cache_unusable_until_reset(model: BaichuanM1ForCausalLM) -> None:
    ids, cache = torch.randint(0, 199, (1, 30)), M1Cache(model.config)

    def fail(*_: object) -> None:
        raise MemoryError

    with torch.no_grad():
        model(ids[:, :20], cache=cache)
        hook = model.model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            model(ids[:, 20:], cache=cache)
        hook.remove()
        with pytest.raises(CacheError, match="failed halfway"):
            model(ids[:, 20:], cache=cache)
        cache.reset()
        torch.testing.assert_close(model(ids, cache=cache).logits, model(ids).logits)


@pytest.mark.parametrize("batches", [(1, 2), (2, 1)])
def test_a_reset_cache_takes_another_batch_size(model: BaichuanM1ForCausalLM, batches: tuple[int, int]) -> None:
    cache = M1Cache(model.config)
    with torch.no_grad():
        for batch in batches:
            ids = torch.randint(0, 199, (batch, 12))
            first = model(ids[:, :7], cache=cache).logits
            logits = torch.cat([first, model(ids[:, 7:], cache=cache).logits], dim=1)
            torch.testing.assert_close(logits, model(ids).logits)
            cache.reset()


def test_a_cache_continued_in_another_dtype_is_not_dropped_in_silence(model: BaichuanM1ForCausalLM) -> None:
    """For instance under autocast for the prompt only."""
    cache = M1Cache(model.config)
    with torch.no_grad():
        model(torch.zeros(1, 5, dtype=torch.int64), cache=cache)
        with pytest.raises(RuntimeError, match=r"dtype|type"):
            copy.deepcopy(model).float()(torch.zeros(1, 1, dtype=torch.int64), cache=cache)


def test_gradient_checkpointing_refuses_a_cache(model: BaichuanM1ForCausalLM) -> None:
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(CacheError, match="gradient checkpointing"):
        model(torch.zeros(1, 3, dtype=torch.int64), cache=M1Cache(model.config))


def test_packed_documents_refuse_a_cache(model: BaichuanM1ForCausalLM) -> None:
    with pytest.raises(CacheError, match="packed documents"):
        model(torch.zeros(1, 4, dtype=torch.int64), seqlens=torch.tensor([[2, 4]]), cache=M1Cache(model.config))


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_of_a_padded_batch_is_that_of_its_rows(model: BaichuanM1ForCausalLM, side: str) -> None:
    rows = [torch.randint(1, 199, (length,)) for length in (12, 7, 1)]
    batch, mask = torch.zeros(3, 12, dtype=torch.int64), torch.zeros(3, 12, dtype=torch.int64)
    for index, row in enumerate(rows):
        columns = slice(12 - len(row), 12) if side == "left" else slice(0, len(row))
        batch[index, columns], mask[index, columns] = row, 1
    labels = batch.masked_fill(mask == 0, -100)
    with torch.no_grad():
        alone = [model(row[None], labels=row[None], num_items_in_batch=1).loss for row in rows]
        together = model(batch, attention_mask=mask, labels=labels, num_items_in_batch=1).loss
    torch.testing.assert_close(together, torch.stack(alone).sum())


def test_the_collators_name_of_cu_seqlens(model: BaichuanM1ForCausalLM) -> None:
    ids, borders = torch.randint(0, 199, (1, 9)), torch.tensor([0, 4, 9])
    with torch.no_grad():
        expected = model(ids, cu_seqlens=borders).logits
        torch.testing.assert_close(model(ids, cu_seq_lens_q=borders, cu_seq_lens_k=borders).logits, expected)
        assert not torch.allclose(model(ids).logits, expected)


def test_gradients_of_a_continued_cache(model: BaichuanM1ForCausalLM) -> None:
    """The new tokens' gradients are those of the whole sequence when the cached ones are held constant."""
    ids, cache = torch.randint(0, 199, (1, 20)), M1Cache(model.config)
    embedded = model.get_input_embeddings()(ids).detach()
    new = embedded[:, 12:].clone().requires_grad_()
    with torch.no_grad():
        model(inputs_embeds=embedded[:, :12], cache=cache)
    model(inputs_embeds=new, cache=cache).logits.sin().sum().backward()
    whole = embedded[:, 12:].clone().requires_grad_()
    model(inputs_embeds=torch.cat([embedded[:, :12], whole], dim=1)).logits[:, 12:].sin().sum().backward()
    torch.testing.assert_close(new.grad, whole.grad)


def test_padding_id_equal_to_the_vocabulary_size() -> None:
    """As the published data pipeline pads; the model counts it as id 0."""
    config = copy.deepcopy(load_model("hybrid").config)
    config.pad_token_id = config.vocab_size
    small = BaichuanM1ForCausalLM(BaichuanM1Config(**config.to_dict())).eval()
    with torch.no_grad():
        torch.testing.assert_close(small(torch.tensor([[5, 199]])).logits, small(torch.tensor([[5, 0]])).logits)


def test_a_packed_window_layer_meets_only_its_own_keys() -> None:
    """Time and memory of packed rows grow with tokens times window, too."""
    from ascend_m1.layout import make_layout
    from ascend_m1_ops import attention, sdpa

    seen: list[int] = []

    def kernel(q, k, v, mask, causal, scale):  # type: ignore[no-untyped-def]
        seen.append(k.shape[1])
        return sdpa(q, k, v, mask, causal, scale)

    tokens, ends = 4096, torch.tensor([[1500, 4096]])
    positions = make_layout(1, tokens, torch.device("cpu"), seqlens=ends).among_themselves()
    q = torch.randn(1, tokens, 1, 8)
    out = attention(q, q, q, positions, window=8, kernel=kernel)
    assert max(seen) <= 1024 + 7
    parts = [attention(part, part, part, window=8) for part in q.split([1500, 2596], dim=1)]
    torch.testing.assert_close(out, torch.cat(parts, dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_follows_float32(dtype: torch.dtype) -> None:
    """The rounding of six layers stays below a tenth of the logits' spread."""
    full = load_model("published-ratio")
    low = copy.deepcopy(full).to(dtype)
    ids = torch.randint(0, 331, (2, 40))
    with torch.no_grad():
        expected, cache = full(ids).logits, M1Cache(full.config)
        actual = torch.cat([low(part, cache=cache).logits for part in ids.split(17, dim=1)], dim=1).float()
    assert (actual - expected).abs().max() < 0.1 * expected.std()
