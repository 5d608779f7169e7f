"""Baichuan-M1 as a vLLM model: tensor and pipeline parallel, quantised and with adapters, by vLLM's own layers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import get_temporal_copy_spec
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid, SupportsLoRA, SupportsPP, SupportsQuant
from vllm.model_executor.models.utils import (
    PPMissingLayer,
    extract_layer_index,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from ascend_m1 import BaichuanM1Config
from ascend_m1.pages import RankLayer
from ascend_m1_ops import rope_tables

from .attention import BaichuanM1Attention, Table
from .convolution import state_shape
from .platform import own_layers
from .weights import load_weights


class BaichuanM1MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: BaichuanM1Config, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        hidden, inner, quant_config = config.hidden_size, config.intermediate_size, vllm_config.quant_config
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden, [inner, inner], bias=False, quant_config=quant_config, prefix=f"{prefix}.gate_up_proj"
        )
        self.down_proj = RowParallelLinear(
            inner, hidden, bias=False, quant_config=quant_config, prefix=f"{prefix}.down_proj"
        )
        self.act_fn = SiluAndMul()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_up_proj(x)[0]))[0]
        return out


class BaichuanM1DecoderLayer(nn.Module):
    """Norm, attention, norm, MLP; the residual is carried beside, for vLLM's norms add it."""

    def __init__(self, config: BaichuanM1Config, layers: list[RankLayer], vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        index = extract_layer_index(prefix)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = BaichuanM1Attention(
            config.hidden_size, config.layer_specs[index], layers[index], vllm_config, f"{prefix}.self_attn"
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = BaichuanM1MLP(config, vllm_config, f"{prefix}.mlp")

    def forward(self, x: Tensor, residual: Tensor | None, rope: Table | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            x, residual = self.input_layernorm(x), x
        else:
            x, residual = self.input_layernorm(x, residual)
        x, residual = self.post_attention_layernorm(self.self_attn(x, rope), residual)
        return self.mlp(x), residual


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "intermediate_tensors": 0, "inputs_embeds": 0})
class BaichuanM1Model(nn.Module):
    """Embedding, this pipeline stage's layers, norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: BaichuanM1Config = vllm_config.model_config.hf_config
        self.specs = config.layer_specs
        layers = own_layers(vllm_config)
        self.embed_tokens = (
            VocabParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.embed_tokens",
            )
            if get_pp_group().is_first_rank
            else PPMissingLayer()
        )
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: BaichuanM1DecoderLayer(config, layers, vllm_config, prefix),
            prefix=f"{prefix}.layers",
        )
        last = get_pp_group().is_last_rank
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps) if last else PPMissingLayer()
        positions = torch.arange(vllm_config.model_config.max_model_len)
        for dim in {spec.head_dim for spec in self.specs}:  # float32: 16-bit tables cost accuracy, see docs/npu.md
            for name, table in zip(("cos", "sin"), rope_tables(positions, dim, config.rope_theta), strict=True):
                self.register_buffer(f"{name}_{dim}", table, persistent=False)
        own = range(self.start_layer, self.end_layer)
        convolutions = {index: self.layers[index].self_attn.conv for index in own}
        for index, convolution in convolutions.items():
            convolution.rope = self._tables(self.specs[index].head_dim)
        # Layers that look up their own rows of the tables need none made for them.
        self.rope_dims = {self.specs[i].head_dim for i, convolution in convolutions.items() if not convolution.fused}
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], config.hidden_size
        )

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        rows: Tensor = self.embed_tokens(input_ids)
        return rows

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        if get_pp_group().is_first_rank:
            if inputs_embeds is None:
                assert input_ids is not None
                inputs_embeds = self.embed_input_ids(input_ids)
            x, residual = inputs_embeds, None
        else:
            assert intermediate_tensors is not None
            x, residual = intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
        ropes = {dim: tuple(table[positions] for table in self._tables(dim)) for dim in self.rope_dims}
        own = range(self.start_layer, self.end_layer)
        for index, layer in zip(own, islice(self.layers, self.start_layer, self.end_layer), strict=True):
            x, residual = layer(x, residual, ropes.get(self.specs[index].head_dim))
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": x, "residual": residual})
        return self.norm(x, residual)[0]

    def _tables(self, dim: int) -> Table:
        return getattr(self, f"cos_{dim}"), getattr(self, f"sin_{dim}")


class BaichuanM1ForCausalLM(nn.Module, HasInnerState, IsHybrid, SupportsLoRA, SupportsPP, SupportsQuant):
    """The model that vLLM's registry names."""

    packed_modules_mapping = {"W_pack": ["W_pack"], "gate_up_proj": ["gate_proj", "up_proj"]}
    embedding_modules = {"embed_tokens": "input_embeddings", "lm_head": "output_embeddings"}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.filled = False  # with a checkpoint
        config: BaichuanM1Config = vllm_config.model_config.hf_config
        self.config = config
        self.model = BaichuanM1Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = (
            # Never quantised: its rows are normalised when they are loaded.
            ParallelLMHead(config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head"))
            if get_pp_group().is_last_rank
            else PPMissingLayer()
        )
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)  # None: gathered on another rank
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        filled = load_weights(self, weights, whole=not self.filled)
        self.filled = True
        return filled

    # The state cache, which vLLM sizes before it builds the model.
    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        return (vllm_config.model_config.dtype,)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        return (state_shape(own_layers(vllm_config)[0].row),)

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[object, ...]:
        return (get_temporal_copy_spec,)
