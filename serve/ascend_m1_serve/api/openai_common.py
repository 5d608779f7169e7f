"""What OpenAI's two kinds of answers share."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from ascend_m1.errors import InputError

from ..answer import Answer, Piece, Reason
from ..front import Front
from ..protocol import Sampling
from . import sse
from .errors import as_api_error, error_body
from .mindie_common import MindieSettings, reader
from .openai_schema import Common

REASONS: dict[Reason, str] = {"stop_token": "stop", "stop_string": "stop", "length": "length", "abort": "abort"}


async def sampling_of(front: Front, request: Common, max_tokens: int | None, logprobs: int | None) -> Sampling:
    """The engine's options, the grammar compiled for all answers. Raises InputError."""
    if request.use_beam_search:
        raise InputError("use_beam_search: there is no beam search here: leave it out; best_of above n chooses, too")
    if logprobs is None and request.candidates() > request.n:
        logprobs = 0
    vocab_size = front.engine.limits.vocab_size
    stop_tokens = frozenset(request.stop_token_ids)
    if stop_tokens and max(stop_tokens) >= vocab_size:
        raise InputError(f"stop_token_ids: {max(stop_tokens)}: give token ids below {vocab_size}")
    grammar = request.grammar_of_answer()
    sampling = front.sampling(
        request.asked(),
        **({} if max_tokens is None else {"max_tokens": max_tokens}),
        grammar=None if grammar is None else await front.engine.compile(grammar),
        logit_bias=request.biases(vocab_size),
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        seed=None if request.seed is None else request.seed % 2**63,
        stop_token_ids=stop_tokens,
        ignore_eos=request.ignore_eos,
        logprobs=logprobs,
    )
    return sampling


def submitted(
    front: Front, request: Common, ids: Sequence[int], sampling: Sampling, adapter: str | None
) -> list[Answer]:
    """``n`` answers to a prompt, or those that they are chosen from. Raises what ``Front.submit`` does."""
    return front.submit(
        ids,
        sampling,
        adapter=adapter,
        priority=request.priority,
        count=request.candidates(),
        stop=request.stops(),
        include_stop=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
    )


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """id, object, created, model: of the whole answer and of each event."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def written(logprob: float) -> float:
    """As JSON can carry it and clients know it of vLLM: not below -9999, which also stands for what is no number."""
    return max(-9999.0, logprob)  # in this order: max keeps its first argument where the other is NaN


def usage(answers: Sequence[Answer], choices: int) -> dict[str, Any]:
    """Counts of tokens; a prompt with several answers counts once.

    Args:
        choices: answers to each prompt, which follow each other.
    """
    prompts = sum(len(answer.prompt) for answer in answers[::choices])
    generated = sum(len(answer.tokens) for answer in answers)
    cached = sum(answer.cached_tokens for answer in answers[::choices])
    return {
        "prompt_tokens": prompts,
        "completion_tokens": generated,
        "total_tokens": prompts + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def reading(settings: MindieSettings | None) -> Callable[[Answer], AsyncIterator[Piece]]:
    """How a request's answers are read: with a config.json, within its limits."""
    return aiter if settings is None else reader(settings, None)


def failure(error: Exception) -> bytes:
    """The event that ends a stream whose status is out already."""
    found = as_api_error(error)
    return sse.event(error_body(found.status, str(found), found.param, found.code))
