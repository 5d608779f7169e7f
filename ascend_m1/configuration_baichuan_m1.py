"""The fields of a Baichuan-M1 config.json, their checks, and the per-layer geometry derived from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PretrainedConfig

from .errors import ConfigError

# Without these fields the geometry would have to be guessed, so a file must name them.
REQUIRED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rope_theta",
)
WINDOW_FIELDS = ("num_swa_attention_heads", "num_swa_key_value_heads", "sliding_window")

DTYPES = ("float32", "bfloat16", "float16", "float64")

LayerKind = Literal["global", "window"]


@dataclass(frozen=True)
class LayerSpec:
    """Geometry of one layer's attention. ``window`` counts visible keys, the query's own included."""

    kind: LayerKind
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None

    @property
    def q_size(self) -> int:
        """Width of the query part of the packed projection."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the key part (and of the value part) of the packed projection."""
        return self.kv_heads * self.head_dim


class BaichuanM1Config(PretrainedConfig):
    """Configuration of a Baichuan-M1 checkpoint; the defaults are the published 14B geometry.

    Raises:
        ConfigError: a field is missing from a file, has an impossible value, or contradicts another.
    """

    model_type = "baichuan_m1"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    vocab_size: int = 133120
    hidden_size: int = 5120
    intermediate_size: int = 17408
    num_hidden_layers: int = 40
    num_attention_heads: int = 20
    num_key_value_heads: int = 2
    num_swa_attention_heads: int | None = 40
    num_swa_key_value_heads: int | None = 8
    sliding_window: int | None = 8192
    sliding_window_layers: list[int] | None = None
    conv_window: int = 2
    hidden_act: str = "silu"
    rope_theta: float = 1000000.0
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.sliding_window_layers is None:
            # As published: every odd layer slides.
            self.sliding_window_layers = list(range(1, self.num_hidden_layers, 2))
        self._refuse_foreign(kwargs)
        for name, dtype in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
                raise ConfigError(f"{name}={dtype!r}: give one of {', '.join(DTYPES)}")
        self._validate()
        if not self.sliding_window_layers:
            self.sliding_window = None  # readers that know one window for all layers would apply it
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from a config.json's content; a file must name the geometry itself."""
        where = config_dict.get("_name_or_path") or "config.json"
        # How to compute is decided where the model is loaded, not by who saved it.
        config_dict = {name: value for name, value in config_dict.items() if "attn_implementation" not in name}
        missing = [name for name in REQUIRED_FIELDS if config_dict.get(name) is None]
        if config_dict.get("sliding_window_layers") != []:
            missing += [name for name in WINDOW_FIELDS if config_dict.get(name) is None]
        if missing:
            raise ConfigError(
                f"{where}: field {', '.join(missing)} missing: take config.json from the published checkpoint"
            )
        return super().from_dict(config_dict, **kwargs)

    def _refuse_foreign(self, fields: dict[str, Any]) -> None:
        """Fields of other models that would change what is computed, if they were honoured."""
        plain: list[object] = [{"rope_type": "default"}, {"type": "default"}]
        plain.append({"rope_type": "default", "rope_theta": self.rope_theta})
        for name in ("rope_scaling", "rope_parameters"):
            if fields.get(name) and fields[name] not in plain:
                raise ConfigError(f"{name}={fields[name]!r} is not part of Baichuan-M1: remove it from config.json")
        if fields.get("head_dim") is not None:
            raise ConfigError(
                f"head_dim={fields['head_dim']!r}: it follows from hidden_size and the head counts; remove it"
            )

    def _validate(self) -> None:
        for name in (*REQUIRED_FIELDS, "max_position_embeddings"):
            if name != "rope_theta":
                _require_positive_int(name, getattr(self, name))
        layers = self.sliding_window_layers or []
        known = range(self.num_hidden_layers)
        if (
            not isinstance(layers, list)
            or len(set(layers)) != len(layers)
            or any(type(i) is not int or i not in known for i in layers)
        ):
            raise ConfigError(
                f"sliding_window_layers={layers!r}: give distinct layer indices below "
                f"num_hidden_layers={self.num_hidden_layers}"
            )
        _require_heads(self.hidden_size, "num_attention_heads", self.num_attention_heads, self.num_key_value_heads)
        if layers:
            for name in WINDOW_FIELDS:
                _require_positive_int(name, getattr(self, name))
            _require_heads(
                self.hidden_size,
                "num_swa_attention_heads",
                self.num_swa_attention_heads or 0,
                self.num_swa_key_value_heads or 0,
            )
        self._validate_numerics()

    def _validate_numerics(self) -> None:
        if self.conv_window != 2:
            raise ConfigError(f"conv_window={self.conv_window}: Baichuan-M1's convolution has width 2; set it to 2")
        if self.hidden_act != "silu":
            raise ConfigError(f"hidden_act={self.hidden_act!r}: Baichuan-M1's MLP is SwiGLU; set it to 'silu'")
        if self.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings=true: NormHead has weights of its own; set it to false")
        for name in ("rope_theta", "rms_norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}={value!r}: give a positive number")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, list) else [value]
            # The published data pipeline pads with vocab_size, which the model counts as id 0.
            known = range(self.vocab_size + (name == "pad_token_id"))
            if value is not None and not (ids and all(type(i) is int and i in known for i in ids)):
                raise ConfigError(f"{name}={value!r}: give an id below vocab_size={self.vocab_size}, or null")
        dropout = self.attention_dropout
        if not isinstance(dropout, (int, float)) or not 0.0 <= dropout < 1.0:
            raise ConfigError(f"attention_dropout={dropout!r}: give a number from 0 up to 1")

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """One ``LayerSpec`` per layer, in order."""
        return tuple(self._layer_spec(i) for i in range(self.num_hidden_layers))

    @property
    def layer_types(self) -> list[str] | None:
        """transformers' names of the layer kinds, in order; None: all are global.

        vLLM takes a model of "full_attention" alone for one without state, which the convolution has.
        """
        if not self.sliding_window_layers:
            return None
        names = {"global": "full_attention", "window": "sliding_attention"}
        return [names[spec.kind] for spec in self.layer_specs]

    def _layer_spec(self, index: int) -> LayerSpec:
        if index in (self.sliding_window_layers or []):
            heads, kv_heads = self.num_swa_attention_heads or 0, self.num_swa_key_value_heads or 0
            return LayerSpec("window", heads, kv_heads, self.hidden_size // heads, self.sliding_window)
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        return LayerSpec("global", heads, kv_heads, self.hidden_size // heads, None)


def _require_positive_int(name: str, value: object) -> None:
    most = 1024 if name == "num_hidden_layers" else 2**24
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise ConfigError(f"{name}={value!r}: give a positive whole number, at most {most}")


def _require_heads(hidden_size: int, name: str, heads: int, kv_heads: int) -> None:
    if hidden_size % heads or (hidden_size // heads) % 2:
        raise ConfigError(f"{name}={heads}: hidden_size={hidden_size} must split into that many heads of even head_dim")
    if heads % kv_heads:
        raise ConfigError(f"{name}={heads} is not a multiple of its {kv_heads} key/value heads")
