"""Text in, text out: sampling options with their checks, prompts as ids, and streaming over transformers' ``generate``.

Knows tokenizer and model; knows nothing of a terminal: new text goes to a function that the caller gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError, TemplateSyntaxError
from transformers import GenerationConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from .cache import M1Cache
from .configuration_baichuan_m1 import BaichuanM1Config
from .errors import CheckpointError, InputError, TokenizerError
from .modeling_baichuan_m1 import CACHE_FIELD

DEFAULT_MAX_NEW_TOKENS = 512
# The rest of a generation_config.json asks for methods and outputs that make no stream of text.
_HONOURED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_new_tokens", "repetition_penalty"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p"),
)
Message = dict[str, str]
Emit = Callable[[str], object]


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens. None: as the checkpoint's generation_config.json says, else greedy and unlimited.

    Attributes:
        max_new_tokens: the most tokens to generate; the context's end stops earlier.
        do_sample: sample even if no other option asks for it.
        temperature: 0 is greedy; above 0 samples.
        top_k: sample among the k likeliest tokens; 0: all.
        top_p: sample among the likeliest tokens that together have this probability.
        min_p: leave out tokens below this share of the likeliest one's probability.
        repetition_penalty: above 1 makes tokens that already occurred less likely.
        num_beams: sequences of a beam search; 1: none.
        seed: makes sampling repeatable.
    """

    max_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("max_new_tokens", self.max_new_tokens, lambda x: 1 <= x < 2**31, "1 or more", int)
        _require("temperature", self.temperature, lambda x: x == 0 or 1e-3 <= x < 1e6, "0 (greedy) or 0.001 and more")
        _require("top_k", self.top_k, lambda x: 0 <= x < 2**31, "0 (off) or more", int)
        _require("top_p", self.top_p, lambda x: 0 < x <= 1, "a number above 0, at most 1")
        _require("min_p", self.min_p, lambda x: 0 <= x <= 1, "a number from 0 to 1")
        _require(
            "repetition_penalty", self.repetition_penalty, lambda x: x >= 1e-3, "a finite number from 0.001 (1 is off)"
        )
        _require("num_beams", self.num_beams, lambda x: 1 <= x <= 64, "1 to 64", int)
        _require("seed", self.seed, lambda x: 0 <= x < 2**63, "a whole number from 0 to 2^63 - 1", int)
        if self.do_sample and self.temperature == 0:
            raise InputError("temperature=0 is greedy and do_sample samples: give one of them")

    def resolve(self, base: GenerationConfig, room: int) -> GenerationConfig:
        """transformers' options: these, then the checkpoint's, with at most ``room`` new tokens."""
        config = honoured(base)
        wanted = self.max_new_tokens or base.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        config.max_new_tokens, config.max_length = min(wanted, room), None
        asked = self.do_sample or any(x is not None for x in (self.temperature, self.top_k, self.top_p, self.min_p))
        config.do_sample = self.temperature != 0 and bool(asked or base.do_sample)
        for name in ("temperature", "top_k", "top_p", "min_p"):
            value = getattr(self, name)
            chosen = getattr(base, name) if value is None else value
            setattr(config, name, chosen if config.do_sample else None)
        if config.do_sample and config.top_k is None:
            config.top_k = 0  # transformers would take 50
        if self.repetition_penalty is not None:
            config.repetition_penalty = self.repetition_penalty
        config.num_beams = self.num_beams
        return config


def honoured(base: GenerationConfig) -> GenerationConfig:
    """What counts of a checkpoint's generation_config.json; transformers fills gaps of a call from the model's own."""
    return GenerationConfig(**{name: getattr(base, name, None) for name in _HONOURED})


def _require(
    name: str,
    value: float | None,
    holds: Callable[[float], bool],
    wanted: str,
    kind: type | tuple[type, ...] = (int, float),
) -> None:
    # The range first: a whole number too large for a float is out of it, NaN is in none.
    if value is not None and not (isinstance(value, kind) and holds(value) and math.isfinite(value)):
        raise InputError(f"{name}={value}: give {wanted}")


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **template: Any) -> str:
    """The conversation in the checkpoint's chat format, up to where the assistant answers.

    Args:
        messages: role and content, and what else the template reads.
        template: more for it, ``tools`` say.

    Raises:
        TokenizerError: the checkpoint has no chat template.
        InputError: the last message is empty, or the template refuses the conversation.
    """
    _check_text(messages[-1]["content"])
    if not tokenizer.chat_template:
        raise TokenizerError("the tokenizer has no chat_template: give plain text with --raw")
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, **template
        )
    except (TemplateSyntaxError, TypeError, ValueError) as error:
        raise TokenizerError(f"the chat_template is broken ({error}): copy tokenizer_config.json again") from None
    except TemplateError as error:
        raise InputError(f"the chat template refuses the conversation ({error}): change its messages") from None
    return text


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    """What ``chat_text`` made, as tokens. Raises TokenizerError if it made nothing."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise TokenizerError("the chat_template makes nothing of the conversation: give plain text with --raw")
    return ids


def plain_ids(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt to be continued as it is. Raises InputError if it is empty."""
    _check_text(prompt)
    ids: list[int] = tokenizer(prompt)["input_ids"]
    return ids


def _check_text(text: str) -> None:
    if not text.strip():
        raise InputError("the prompt is empty: give some text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not valid UTF-8 at character {error.start}: convert it to UTF-8") from None


def room_for(config: BaichuanM1Config, prompt_tokens: int) -> int:
    """How many tokens fit into the context after the prompt. Raises InputError if none do."""
    room = config.max_position_embeddings - prompt_tokens
    if room < 1:
        raise InputError(
            f"the prompt has {prompt_tokens} tokens, the context (max_position_embeddings) "
            f"{config.max_position_embeddings}: shorten it by at least {1 - room}"
        )
    return room


class FiniteScores(LogitsProcessor):  # type: ignore[misc, unused-ignore]
    """Refuses to choose a token from scores that damaged weights or an overflow have made NaN."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [batch, vocab] -> the same. Raises CheckpointError."""
        if bool(scores.isnan().any()):
            raise CheckpointError(
                f"the model computes NaN in {scores.dtype}: try --dtype float32; if it stays, copy the weights again"
            )
        return scores


class TextStream(BaseStreamer):  # type: ignore[misc, unused-ignore]
    """Turns tokens into text as they come; a character whose bytes are not all there yet waits."""

    def __init__(self, tokenizer: Any, emit: Emit) -> None:
        self.tokenizer, self.emit = tokenizer, emit
        self.ids: list[int] = []
        self._start = self._read = 0  # ids before _read are out; _start gives the tokenizer some context
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the next token [1]; the first call brings the prompt, which is not repeated."""
        if self._prompt:
            self._prompt = False
            return
        self.ids += value.flatten().tolist()
        self._send(final=False)

    def end(self) -> None:
        """Send what was held back."""
        self._send(final=True)

    def _send(self, final: bool) -> None:
        before = self._decode(self.ids[self._start : self._read])
        now = self._decode(self.ids[self._start :])
        if now.endswith("\ufffd") and not final:
            return
        new = now[len(before) :]
        self._start, self._read = self._read, len(self.ids)
        if new:
            self.emit(new)

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def generate_text(
    model: Any, tokenizer: Any, ids: Sequence[int], options: SamplingOptions, emit: Emit, cache: M1Cache | None = None
) -> list[int]:
    """Continue ``ids``, sending text to ``emit`` as it comes (a beam search sends all at the end).

    Args:
        cache: holds a proper prefix of ``ids`` and is extended; None: compute all of them.

    Returns:
        The new ids, the end token included.

    Raises:
        InputError: the prompt leaves no room in the context.
        CheckpointError: the model computes NaN.
    """
    config = options.resolve(model.generation_config, room_for(model.config, len(ids)))
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if config.pad_token_id is None:  # one sequence is never padded; transformers warns without it
        config.pad_token_id = 0
    if options.seed is None:
        torch.seed()
    else:
        torch.manual_seed(options.seed)
    stream = TextStream(tokenizer, emit)
    prompt = torch.tensor([list(ids)], device=model.device)
    arguments: dict[str, Any] = {} if cache is None else {CACHE_FIELD: cache}
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=config,
        logits_processor=LogitsProcessorList([FiniteScores()]),
        streamer=stream if config.num_beams == 1 else None,
        **arguments,
    )
    new: list[int] = output[0, len(ids) :].tolist()
    if config.num_beams > 1:
        emit(tokenizer.decode(new, skip_special_tokens=True))
    return new
