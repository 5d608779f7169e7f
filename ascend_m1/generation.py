"""Text in, text out, over transformers' ``generate``.

Knows tokenizer and model; knows nothing of a terminal: new text goes to a function that the caller gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from .cache import M1Cache
from .errors import CheckpointError
from .modeling_baichuan_m1 import CACHE_FIELD
from .prompts import room_for
from .sampling import SamplingOptions
from .text_stream import Emit, TextStream


class FiniteScores(LogitsProcessor):  # type: ignore[misc, unused-ignore]
    """Refuses to choose a token from scores that damaged weights or an overflow have made NaN."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [batch, vocab] -> the same. Raises CheckpointError."""
        if bool(scores.isnan().any()):
            raise CheckpointError(
                f"the model computes NaN in {scores.dtype}: try --dtype float32; if it stays, copy the weights again"
            )
        return scores


class _NewTokens(BaseStreamer):  # type: ignore[misc, unused-ignore]
    """transformers' streamer; its first call brings the prompt, which is not repeated."""

    def __init__(self, text: TextStream) -> None:
        self.text, self.prompt = text, True

    def put(self, value: torch.Tensor) -> None:
        """The next token [1]."""
        if not self.prompt:
            self.text.take(value.flatten().tolist())
        self.prompt = False

    def end(self) -> None:
        self.text.end()


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
    config = options.resolve(model.generation_config, room_for(model.config, len(ids)), tokenizer.eos_token_id)
    if config.pad_token_id is None:  # one sequence is never padded; transformers warns without it
        config.pad_token_id = 0
    if options.seed is None:
        torch.seed()
    else:
        torch.manual_seed(options.seed)
    stream = _NewTokens(TextStream(tokenizer, emit))
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
