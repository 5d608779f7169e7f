"""Baichuan-M1 as transformers knows a model: the stack of layers, and the stack with its head, loss and generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.generation import GenerationMode
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ascend_m1_ops import rope_tables, shared_tables

from .cache import ASSISTED_ROLLBACK, DEFAULT_ROLLBACK, M1Cache
from .configuration_baichuan_m1 import BaichuanM1Config
from .errors import CacheError, InputError
from .layers import BaichuanM1Attention, BaichuanM1DecoderLayer, BaichuanM1RMSNorm
from .layout import Layout, make_layout, packed_ends
from .loss import mean_loss, next_tokens
from .norm_head import NormHead
from .weights import check_checkpoint

# transformers renamed the field and the argument from past_key_values to cache within the versions supported here.
CACHE_FIELD = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class BaichuanM1PreTrainedModel(PreTrainedModel):
    """What transformers must know about the family."""

    config: BaichuanM1Config
    config_class = BaichuanM1Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanM1DecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_compile_fullgraph = False
    _supports_attention_backend = False
    _can_record_outputs = {"hidden_states": BaichuanM1DecoderLayer, "attentions": BaichuanM1Attention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding, NormHead)):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, BaichuanM1RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, BaichuanM1Attention):
            for taps in (module.conv_k, module.conv_v):  # as published: a softmax of two normals
                init.copy_(taps, torch.randn_like(taps).softmax(dim=-1))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``from_pretrained``, after a check of a local directory's files.

        Raises:
            ConfigError, CheckpointError: one line with the file, what is wrong and what to do.
        """
        if kwargs.get("state_dict") is None:
            check_checkpoint(pretrained_model_name_or_path, cls, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def _get_resized_lm_head(self, old_lm_head: NormHead, *args: Any, **kwargs: Any) -> NormHead:
        """For ``resize_token_embeddings``, which resizes linear layers only and would put one in the head's place."""
        linear = nn.Linear(old_lm_head.in_features, old_lm_head.out_features, bias=False, device="meta")
        linear.weight = old_lm_head.weight
        weight = super()._get_resized_lm_head(linear, *args, **kwargs).weight
        with torch.device("meta"):
            head = NormHead(weight.shape[1], weight.shape[0])
        head.weight = weight
        return head


class BaichuanM1Model(BaichuanM1PreTrainedModel):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: BaichuanM1Config) -> None:
        super().__init__(config)
        padding = config.pad_token_id
        if padding is not None and padding >= config.vocab_size:
            padding = None  # as in the published data pipeline, see ``embed``
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding)
        self.layers = nn.ModuleList(BaichuanM1DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = BaichuanM1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: M1Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        seqlens: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        past_key_values: M1Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of every token.

        Args:
            input_ids: [batch, seq]; an id equal to vocab_size counts as 0, as in the published model.
            attention_mask: [batch, cached + new columns], 0 for padding on either side.
            position_ids: [batch, seq] for RoPE; without a cache, a jump inside a row begins a packed document.
            cache: what earlier calls returned; ``past_key_values`` is its older name.
            inputs_embeds: [batch, seq, hidden] in place of input_ids.
            use_cache: return a cache (made if none is given). Packed rows get none.
            seqlens: [batch, n] end offsets of packed documents, as published.
            cu_seqlens: [documents + 1] borders of the documents in a single packed row, from 0; transformers' collators
                call it cu_seq_lens_q.

        Raises:
            InputError, CacheError: shapes that do not fit, or a cache of another kind.
        """
        cache = cache if cache is not None else past_key_values
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids)
        seqlens = packed_ends(seqlens, cu_seqlens, kwargs.get("cu_seq_lens_q"))
        cache, layout = self._arrange(inputs_embeds, cache, use_cache, attention_mask, position_ids, seqlens)
        theta, wide = self.config.rope_theta, _table_dtype(inputs_embeds)
        rope = {
            dim: shared_tables(*rope_tables(layout.rope_positions, dim, theta, wide))
            for dim in {spec.head_dim for spec in self.config.layer_specs}
        }
        hidden_states = inputs_embeds
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(hidden_states, layout=layout, rope=rope, cache=cache)
        if cache is not None:
            cache.advance(layout)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **{CACHE_FIELD: cache})

    def embed(self, input_ids: Tensor | None) -> Tensor:
        """[batch, seq] -> [batch, seq, hidden]; the published data pipeline pads with vocab_size."""
        assert input_ids is not None
        embedded: Tensor = self.embed_tokens(torch.where(input_ids == self.config.vocab_size, 0, input_ids))
        return embedded

    def _arrange(
        self,
        embeds: Tensor,
        cache: Any,
        use_cache: bool | None,
        mask: Tensor | None,
        position_ids: Tensor | None,
        seqlens: Tensor | None,
    ) -> tuple[M1Cache | None, Layout]:
        """The cache to use and the layout of this call's tokens."""
        batch, columns, _ = embeds.shape
        if cache is not None and not isinstance(cache, M1Cache):
            raise CacheError(f"{type(cache).__name__} cannot hold the convolution's state: use ascend_m1.M1Cache")
        if cache is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise CacheError("gradient checkpointing cannot use a cache: call the model without one")
        layout = make_layout(
            batch,
            columns,
            embeds.device,
            lengths=None if cache is None else cache.lengths_of(batch),
            past_columns=0 if cache is None else cache.columns,
            attention_mask=mask,
            position_ids=position_ids,
            seqlens=seqlens,
        )
        if layout.document is not None:
            if cache is not None:
                raise CacheError("packed documents cannot fill a cache: call the model without one")
            return None, layout
        if use_cache and cache is None:
            cache = M1Cache(self.config)
        if cache is not None:
            cache.begin(columns)
        return cache, layout


def _table_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class BaichuanM1ForCausalLM(BaichuanM1PreTrainedModel, GenerationMixin):
    """The model with its NormHead; generates, and computes the language-model loss."""

    _tied_weights_keys = None

    def __init__(self, config: BaichuanM1Config) -> None:
        super().__init__(config)
        self.model = BaichuanM1Model(config)
        self.lm_head = NormHead(config.hidden_size, config.vocab_size)
        self.vocab_size = config.vocab_size
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: M1Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor | None = None,
        seqlens: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, or the loss.

        Args:
            labels: [batch, seq], -100 where no loss is wanted; shifted here, never across packed documents. With labels
                no logits are returned unless ``logits_to_keep`` asks for them: the loss is computed in chunks.
            logits_to_keep: the last n positions (0: all), or their indices.
            kwargs: ``num_items_in_batch`` divides the loss instead of the count of labels (gradient accumulation);
                ``shift_labels`` are the labels already shifted, [batch, seq], used in their place.

        The other arguments are those of ``BaichuanM1Model.forward``.
        """
        seqlens = packed_ends(seqlens, cu_seqlens, kwargs.get("cu_seq_lens_q"))
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            seqlens=seqlens,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss = logits = None
        if labels is not None:
            targets = kwargs.get("shift_labels")
            if targets is None:
                targets = next_tokens(labels, attention_mask, position_ids, seqlens)
            loss = mean_loss(hidden, self.lm_head, targets, kwargs.get("num_items_in_batch"))
        if labels is None or logits_to_keep is not None:
            keep = 0 if logits_to_keep is None else logits_to_keep
            kept = hidden[:, -keep:] if isinstance(keep, int) else hidden[:, keep]
            logits = self.lm_head(kept, self._is_decode_step(outputs.get(CACHE_FIELD), hidden))
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_FIELD: outputs.get(CACHE_FIELD)},
        )

    @staticmethod
    def _is_decode_step(cache: M1Cache | None, hidden: Tensor) -> bool:
        """One token after earlier ones: the head's row norms are those of the step before."""
        return cache is not None and hidden.shape[1] == 1 < cache.columns

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """``generate`` gets an ``M1Cache``: static or growing, with room to take back a round of candidates."""
        given = model_kwargs.get("cache", model_kwargs.get("past_key_values"))
        if given is not None or generation_config.use_cache is False:
            super()._prepare_cache_for_generation(
                generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
            )
            return
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic", "dynamic_full", "static"):  # dynamic_full: older transformers, assisted
            raise InputError(f"cache_implementation={kind!r}: Baichuan-M1 has 'dynamic' and 'static'")
        assisted = generation_config.is_assistant or generation_mode == GenerationMode.ASSISTED_GENERATION
        room = min(max_cache_length, ASSISTED_ROLLBACK) if assisted else DEFAULT_ROLLBACK
        candidates = (generation_config.num_assistant_tokens or 0, generation_config.prompt_lookup_num_tokens or 0)
        model_kwargs[CACHE_FIELD] = M1Cache(
            self.config,
            max_length=max_cache_length if kind == "static" else None,
            rollback=max(room, *candidates),
        )
