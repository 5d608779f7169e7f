"""Baichuan-M1 in one file, for transformers 4 and older torch: to train in openMind, or as a checkpoint's remote code.

It computes what the package ascend-m1 computes, in plain operations of torch: padding on either side, no packed rows.
It generates without a cache, so slowly: serve with ascend-m1. Source of the formulas: the published model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast


class BaichuanTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc, unused-ignore]
    """The class that published tokenizer_config.json files name; reads tokenizer.json."""

    model_input_names = ["input_ids", "attention_mask"]


class BaichuanM1Config(PretrainedConfig):  # type: ignore[misc, unused-ignore]
    """The fields of config.json that the model needs; the others are kept as they are."""

    model_type = "baichuan_m1"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 133120,
        hidden_size: int = 5120,
        intermediate_size: int = 17408,
        num_hidden_layers: int = 40,
        num_attention_heads: int = 20,
        num_key_value_heads: int = 2,
        num_swa_attention_heads: int | None = None,
        num_swa_key_value_heads: int | None = None,
        sliding_window: int | None = None,
        sliding_window_layers: list | None = None,  # type: ignore[type-arg]
        rope_theta: float = 10000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads, self.num_key_value_heads = num_attention_heads, num_key_value_heads
        self.num_swa_attention_heads = num_swa_attention_heads or num_attention_heads
        self.num_swa_key_value_heads = num_swa_key_value_heads or num_key_value_heads
        self.sliding_window, self.sliding_window_layers = sliding_window, sliding_window_layers or []
        self.rope_theta, self.rms_norm_eps, self.initializer_range = rope_theta, rms_norm_eps, initializer_range
        kwargs.setdefault("tie_word_embeddings", False)
        kwargs.setdefault("use_cache", False)
        super().__init__(**kwargs)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class NormHead(nn.Module):
    """Logits of the hidden states and the rows, each divided by its norm."""

    def __init__(self, hidden: int, vocab: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight))


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """RoPE by halves: x [batch, heads, seq, head_dim], positions [batch, seq]; angles in float32."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = positions[:, None, :, None].float() * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    one, other = x[..., :half], x[..., half:]
    return torch.cat((one * cos - other * sin, other * cos + one * sin), dim=-1)


class Attention(nn.Module):
    """Keys and values are mixed with those before them, two taps a head, before RoPE."""

    def __init__(self, config: BaichuanM1Config, layer: int) -> None:
        super().__init__()
        windowed = layer in config.sliding_window_layers
        self.window = config.sliding_window if windowed else None
        self.heads = config.num_swa_attention_heads if windowed else config.num_attention_heads
        self.kv_heads = config.num_swa_key_value_heads if windowed else config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        self.theta = config.rope_theta
        width = config.hidden_size + 2 * self.kv_heads * self.head_dim
        self.W_pack = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.conv_k = nn.Parameter(torch.ones(1, 1, self.kv_heads, 1, 2) / 2)
        self.conv_v = nn.Parameter(torch.ones(1, 1, self.kv_heads, 1, 2) / 2)

    def forward(self, x: Tensor, real: Tensor, positions: Tensor) -> Tensor:
        """x [batch, seq, hidden], real bool [batch, seq], positions [batch, seq] -> [batch, seq, hidden]."""
        batch, length, hidden = x.shape
        kv = self.kv_heads * self.head_dim
        q, k, v = self.W_pack(x).split((hidden, kv, kv), dim=-1)
        k, v = self.mix(k, self.conv_k, real), self.mix(v, self.conv_v, real)
        q = q.view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, positions, self.theta), rotate(k, positions, self.theta)
        repeat = self.heads // self.kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.visible(real))
        out: Tensor = self.o_proj(attended.transpose(1, 2).reshape(batch, length, hidden))
        return out

    def mix(self, u: Tensor, taps: Tensor, real: Tensor) -> Tensor:
        """u [batch, seq, kv_heads * head_dim] -> [batch, kv_heads, seq, head_dim]; padding counts as zero."""
        u = (u * real.unsqueeze(-1)).view(*u.shape[:2], self.kv_heads, self.head_dim).transpose(1, 2)
        before = F.pad(u[:, :, :-1], (0, 0, 1, 0))
        taps = taps.view(1, self.kv_heads, 1, 1, 2).to(u.dtype)
        return taps[..., 0] * before + taps[..., 1] * u

    def visible(self, real: Tensor) -> Tensor:
        """bool [batch, 1, seq, seq]: earlier real tokens inside the window, and each token itself."""
        at = torch.arange(real.shape[1], device=real.device)
        distance = at[:, None] - at[None, :]
        seen = (distance >= 0) if self.window is None else (distance >= 0) & (distance < self.window)
        return (seen & real[:, None, None, :]) | (distance == 0)


class MLP(nn.Module):
    def __init__(self, config: BaichuanM1Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, config: BaichuanM1Config, layer: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(config, layer), MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, real: Tensor, positions: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), real, positions)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class BaichuanM1PreTrainedModel(PreTrainedModel):  # type: ignore[misc, unused-ignore]
    config_class = BaichuanM1Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]
    _supports_sdpa = True
    _tied_weights_keys = None

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding, NormHead)):
            module.weight.data.normal_(0.0, self.config.initializer_range)


class BaichuanM1Model(BaichuanM1PreTrainedModel):
    def __init__(self, config: BaichuanM1Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids, attention_mask [batch, seq] -> hidden states [batch, seq, hidden]."""
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = real.bool()
        positions = (real.long().cumsum(1) - 1).clamp(min=0)
        # The published data pipeline pads with vocab_size.
        x = self.embed_tokens(input_ids.masked_fill(input_ids == self.config.vocab_size, 0))
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, real, positions, use_reentrant=False)
            else:
                x = layer(x, real, positions)
        out: Tensor = self.norm(x)
        return out


class BaichuanM1ForCausalLM(BaichuanM1PreTrainedModel, GenerationMixin):
    """The model with its head and loss."""

    def __init__(self, config: BaichuanM1Config) -> None:
        super().__init__(config)
        self.model = BaichuanM1Model(config)
        self.lm_head = NormHead(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> NormHead:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids, attention_mask, labels [batch, seq] -> logits [batch, seq, vocab], and the mean loss."""
        logits = self.lm_head(self.model(input_ids, attention_mask))
        loss = None
        if labels is not None:
            targets = labels[:, 1:]
            if attention_mask is not None:  # padding predicts nothing
                targets = targets.masked_fill(attention_mask[:, :-1] == 0, -100)
            targets = targets.reshape(-1)
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets, reduction="sum")
            loss = loss / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> dict:  # type: ignore[type-arg]
        """All tokens again for each new one."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}
