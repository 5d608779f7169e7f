"""Log-probabilities that JSON cannot carry."""

from __future__ import annotations

import json
import math

import pytest

from ascend_m1_serve.answer import Piece
from ascend_m1_serve.api import openai_chat, openai_completions
from ascend_m1_serve.api.openai_schema import ChatRequest, CompletionRequest
from ascend_m1_serve.protocol import Logprob

from .running import Running


@pytest.mark.parametrize(("value", "told"), [(-math.inf, -9999.0), (math.nan, -9999.0), (-1e5, -9999.0), (-0.5, -0.5)])
def test_what_is_written(service: Running, value: float, told: float) -> None:
    """In text completions as in chats, of the chosen token and of the others."""
    row = (Logprob(5, value, 1), Logprob(6, value, 2))
    chat = ChatRequest(messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=1)
    (entry,) = openai_chat.logprobs(service.front, [row], chat)["content"]  # type: ignore[index]
    assert (entry["logprob"], entry["top_logprobs"][0]["logprob"]) == (told, told)
    asked = CompletionRequest(prompt="x", logprobs=1)
    columns = openai_completions.logprobs(service.front, asked, [Piece("x", (5,), (row,), (0,))])
    assert columns is not None
    assert (columns["token_logprobs"], {*columns["top_logprobs"][0].values()}) == ([told], {told})
    json.dumps([entry, columns], allow_nan=False)
