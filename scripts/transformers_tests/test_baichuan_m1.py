"""transformers' own test mixins, aimed at Baichuan-M1. ``run.py`` starts this file inside a transformers checkout."""

from __future__ import annotations

import unittest
from typing import Any

import torch
from transformers.models.auto import modeling_auto

# As if the model lived in transformers: the mixins look here for the classes that take labels.
modeling_auto.MODEL_MAPPING_NAMES["baichuan_m1"] = "BaichuanM1Model"
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["baichuan_m1"] = "BaichuanM1ForCausalLM"

from tests.causal_lm_tester import CausalLMModelTest, CausalLMModelTester  # noqa: E402  (of the checkout)

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM, BaichuanM1Model, M1Cache  # noqa: E402


class BaichuanM1ModelTester(CausalLMModelTester):  # type: ignore[misc]
    """Two layers, one of each kind; the window is longer than the mixins' sequences, as in their other testers."""

    config_class = BaichuanM1Config
    base_model_class = BaichuanM1Model
    causal_lm_class = BaichuanM1ForCausalLM

    def get_config(self) -> BaichuanM1Config:
        return BaichuanM1Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            num_swa_attention_heads=self.num_attention_heads,
            num_swa_key_value_heads=self.num_key_value_heads,
            sliding_window=64,
            max_position_embeddings=self.max_position_embeddings,
            initializer_range=self.initializer_range,
            pad_token_id=self.pad_token_id,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
        )

    @property
    def pipeline_model_mapping(self) -> dict[str, type]:
        """Nothing: transformers' tokenizers for these tests are stored under its own models' names."""
        return {}


class BaichuanM1ModelTest(CausalLMModelTest, unittest.TestCase):  # type: ignore[misc]
    """What the mixins ask a model with a cache of its own to say about it, and nothing else."""

    model_tester_class = BaichuanM1ModelTester

    def _check_past_key_values_for_generate(
        self, batch_size: int, past_key_values: Any = None, seq_length: int = 0, config: Any = None, cache: Any = None
    ) -> None:
        """The argument has the name of the version's cache argument."""
        cache = past_key_values if cache is None else cache
        assert isinstance(cache, M1Cache)
        assert len(cache) == config.num_hidden_layers
        assert cache.lengths is not None
        assert tuple(cache.lengths.shape) == (batch_size,)
        assert cache.get_seq_length() == seq_length

    def _check_caches_are_equal(self, cache1: M1Cache, cache2: M1Cache) -> None:
        """Equal lengths, and equal values of every token that attention can still reach."""
        torch.testing.assert_close(cache1.lengths, cache2.lengths)
        for one, other in zip(cache1.layers, cache2.layers, strict=True):
            for ring1, ring2 in zip(one.rings, other.rings, strict=True):
                for row, length in enumerate(cache1.lengths.tolist()):
                    kept = min(length, ring1.capacity, ring2.capacity)
                    positions = torch.arange(length - kept, length)
                    held1, held2 = (ring.data[row, positions % ring.capacity] for ring in (ring1, ring2))
                    torch.testing.assert_close(held1, held2)
