"""What ``generate`` promises, past the sliding window too: how tokens are cached or batched never changes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MaxTimeCriteria, StoppingCriteria, StoppingCriteriaList

from ascend_m1 import BaichuanM1ForCausalLM, M1Cache

from ..model.golden import load_model, load_prompts
from .small import VOCAB, WINDOW, ids, left_padded, model

NEW = 40
RAGGED = (1, WINDOW - 1, WINDOW, WINDOW + 1, 19)
# float64 throughout: what differs is the order of summation alone.
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
PLAIN: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def lm() -> BaichuanM1ForCausalLM:
    return model()


def generate(lm: BaichuanM1ForCausalLM, inputs: Tensor | dict[str, Tensor], **kwargs: Any) -> Any:
    inputs = inputs if isinstance(inputs, dict) else {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}
    return lm.generate(**inputs, **{**PLAIN, **kwargs})


@pytest.mark.parametrize("case", ["hybrid", "window-only", "global-only"])
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_greedy_equals_golden(case: str, options: dict[str, Any]) -> None:
    lm = load_model(case)
    for prompt, _, continuation in load_prompts(case):
        output = generate(lm, prompt[None], max_new_tokens=continuation.shape[0], **options)
        assert torch.equal(output[0, prompt.shape[0] :], continuation)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_ragged_batch_equals_unbatched(lm: BaichuanM1ForCausalLM, options: dict[str, Any]) -> None:
    prompts = ids(*RAGGED)
    batch = generate(lm, left_padded(prompts), **options)
    for row, prompt in zip(batch, prompts, strict=True):
        assert torch.equal(row[-NEW:], generate(lm, prompt)[0, -NEW:])


@pytest.mark.parametrize("returned", [1, 3])
def test_sampled_rows_follow_their_own_distribution(lm: BaichuanM1ForCausalLM, returned: int) -> None:
    prompts = ids(*RAGGED)
    options = {"do_sample": True, "num_return_sequences": returned, "return_dict_in_generate": True}
    output = generate(lm, left_padded(prompts), **options, output_logits=True, output_scores=True, top_k=0)
    logits, scores = torch.stack(output.logits, dim=1), torch.stack(output.scores, dim=1)
    assert output.sequences.shape[0] == returned * len(prompts)
    assert torch.equal(logits, scores)  # no processor is at work
    for row, sequence in enumerate(output.sequences):
        alone = torch.cat([prompts[row // returned][0], sequence[-NEW:]])
        with torch.no_grad():
            truth = lm(alone[None]).logits[0, -NEW - 1 : -1]
        # generate hands out logits in float32.
        torch.testing.assert_close(logits[row], truth.float(), rtol=0.0, atol=1e-5)


def test_seed_decides_the_sample(lm: BaichuanM1ForCausalLM) -> None:
    prompt = ids(9)[0]
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append(generate(lm, prompt, do_sample=True, top_p=0.9, temperature=0.7))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("implementation", [None, "static"])
def test_beam_search_equals_beam_search_without_cache(lm: BaichuanM1ForCausalLM, implementation: str | None) -> None:
    inputs = left_padded(ids(3, 11))
    options = {"num_beams": 4, "num_return_sequences": 4, "return_dict_in_generate": True, "output_scores": True}
    cached = generate(lm, inputs, cache_implementation=implementation, **options)
    plain = generate(lm, inputs, use_cache=False, **options)
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(cached.sequences_scores, plain.sequences_scores, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("length", [1, WINDOW, 17])
@pytest.mark.parametrize("assistant", ["itself", "smaller", "other"])
def test_assisted_decoding_equals_greedy(lm: BaichuanM1ForCausalLM, assistant: str, length: int) -> None:
    helper = {
        "itself": lm,
        "smaller": model(1, num_hidden_layers=1, sliding_window_layers=[]),
        "other": model(2, num_hidden_layers=2, sliding_window=3),
    }[assistant]
    prompt = ids(length)[0]
    assert torch.equal(generate(lm, prompt, assistant_model=helper), generate(lm, prompt))


def test_assistant_may_offer_more_than_the_default_rollback(lm: BaichuanM1ForCausalLM) -> None:
    """The assistant agrees, offers more each round, and is then wrong in every candidate of its longest round."""
    helper, seen = model(), 0
    helper.generation_config.num_assistant_tokens = 40
    helper.generation_config.num_assistant_tokens_schedule = "heuristic"
    helper.generation_config.assistant_confidence_threshold = 0.0

    def mislead(module: object, inputs: object, logits: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return logits if seen <= 40 else -logits

    helper.lm_head.register_forward_hook(mislead)
    prompt, options = ids(9)[0], {"max_new_tokens": 100}
    assert torch.equal(generate(lm, prompt, assistant_model=helper, **options), generate(lm, prompt, **options))
    assert seen > 80  # at least one whole round was wrong


@pytest.mark.parametrize("candidates", [3, 30])
def test_prompt_lookup_equals_greedy(lm: BaichuanM1ForCausalLM, candidates: int) -> None:
    prompt = ids(5)[0].repeat(1, 4)
    output = generate(lm, prompt, prompt_lookup_num_tokens=candidates, max_matching_ngram_size=2)
    assert torch.equal(output, generate(lm, prompt))


def test_generation_continues_from_a_returned_cache(lm: BaichuanM1ForCausalLM) -> None:
    prompt = ids(8)[0]
    first = generate(lm, prompt, max_new_tokens=15, return_dict_in_generate=True)
    cache = first.get("cache", first.get("past_key_values"))
    assert isinstance(cache, M1Cache)
    assert cache.get_seq_length() == 8 + 15 - 1  # the last token has not been fed yet
    extra = torch.cat([first.sequences, *ids(4)], dim=1)  # a user's next turn
    continued = generate(lm, extra, past_key_values=cache)
    assert torch.equal(continued, generate(lm, extra))


def test_ragged_batch_continues_from_a_returned_cache(lm: BaichuanM1ForCausalLM) -> None:
    inputs = left_padded(ids(2, 9))
    first = generate(lm, inputs, max_new_tokens=15, return_dict_in_generate=True)
    sequences = first.sequences
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 15, dtype=torch.int64)], dim=1)
    again = {"input_ids": sequences, "attention_mask": mask}
    cache = first.get("cache", first.get("past_key_values"))
    assert torch.equal(generate(lm, again, past_key_values=cache), generate(lm, again))


def test_interleaved_generations_never_touch_each_other(lm: BaichuanM1ForCausalLM) -> None:
    prompts, caches = ids(7, 12), [M1Cache(lm.config), M1Cache(lm.config)]
    sequences = [prompt.clone() for prompt in prompts]
    for _ in range(20):
        for turn, cache in enumerate(caches):
            sequences[turn] = generate(lm, sequences[turn], past_key_values=cache, max_new_tokens=1)
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert torch.equal(sequence, generate(lm, prompt, max_new_tokens=20))


@pytest.mark.parametrize("keep", [0, 1, 3, torch.tensor([0, 4])])
def test_logits_to_keep_are_those_of_all_logits(lm: BaichuanM1ForCausalLM, keep: int | Tensor) -> None:
    prompt = ids(9)[0]
    with torch.no_grad():
        every, kept = lm(prompt).logits, lm(prompt, logits_to_keep=keep).logits
    expected = every[:, -keep:] if isinstance(keep, int) else every[:, keep]
    torch.testing.assert_close(kept, expected, **EXACT)


class Collect:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_streamer_sees_every_token(lm: BaichuanM1ForCausalLM) -> None:
    streamer, prompt = Collect(), ids(4)[0]
    output = generate(lm, prompt, streamer=streamer)
    assert streamer.ended
    assert streamer.tokens == output[0].tolist()


class StopAt(StoppingCriteria):
    """Stop a row at a length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


def test_stopping_criteria_and_end_of_sequence(lm: BaichuanM1ForCausalLM) -> None:
    prompts = ids(2, 5)
    inputs = left_padded(prompts)
    criteria = StoppingCriteriaList([StopAt(12), MaxTimeCriteria(60.0)])
    assert generate(lm, inputs, stopping_criteria=criteria).shape == (2, 12)
    endless = generate(lm, inputs)
    stop = int(endless[0, 5 + 7])  # some token that row 0 produces
    for row, ended in enumerate(generate(lm, inputs, eos_token_id=stop)):
        produced = endless[row, 5:].tolist()
        count = produced.index(stop) + 1 if stop in produced else NEW
        assert ended[5 : 5 + count].tolist() == produced[:count]
        assert not ended[5 + count :].any()  # padded with pad_token_id


def test_input_embeddings_generate_as_their_tokens_do(lm: BaichuanM1ForCausalLM) -> None:
    prompt = ids(9)[0]
    embedded = lm.generate(inputs_embeds=lm.get_input_embeddings()(prompt), **PLAIN)
    assert torch.equal(embedded, generate(lm, prompt)[:, 9:])


def test_resized_vocabulary_keeps_the_head_normalised(lm: BaichuanM1ForCausalLM) -> None:
    prompt, resized = ids(9)[0], model()
    resized.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    assert type(resized.lm_head) is type(lm.lm_head)
    with torch.no_grad():
        torch.testing.assert_close(resized(prompt).logits[..., :VOCAB], lm(prompt).logits, **EXACT)


def test_unknown_cache_implementation_is_named(lm: BaichuanM1ForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"quantized.*'dynamic' and 'static'"):
        generate(lm, ids(3)[0], cache_implementation="quantized")
