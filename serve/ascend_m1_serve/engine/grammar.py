"""Structured output through llguidance: which tokens may come next."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from ascend_m1.errors import InputError

from ..protocol import Grammar


class GrammarCompiler:
    """Compiles grammars for one tokenizer; made when the first request needs it.

    Args:
        tokenizer: a transformers tokenizer with a fast backend.
        vocab_size: rows of the model's head, at least as many as the tokenizer has tokens.
        end_token: what ends an answer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_token: int) -> None:
        from llguidance.hf import from_tokenizer

        self._tokens = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=end_token)

    def compile(self, grammar: Grammar) -> Matcher:
        """Raises InputError if the definition is wrong."""
        from llguidance import LLMatcher

        try:
            definition = _definition(grammar)
        except ValueError as error:
            raise InputError(f"{grammar.kind}: {' '.join(str(error).split())}: correct the definition") from None
        inner = LLMatcher(self._tokens, definition)
        if inner.is_error():
            raise InputError(f"{grammar.kind}: {_first_line(inner.get_error())}: correct the definition")
        return Matcher(inner)


# A model that may write any white space between JSON's parts may write it for ever.
_JSON: Any = {"whitespace_flexible": False}


def _definition(grammar: Grammar) -> str:
    from llguidance import LLMatcher

    text: str
    if grammar.kind == "json_object":
        text = LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=_JSON)
    elif grammar.kind == "json_schema":
        text = LLMatcher.grammar_from_json_schema(json.loads(grammar.text), overrides=_JSON)
    elif grammar.kind == "regex":
        text = LLMatcher.grammar_from_regex(grammar.text)
    else:
        text = LLMatcher.grammar_from_lark(grammar.text)
    return text


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it cannot be compiled")


class Matcher:
    """Where one answer is in its grammar."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def mask(self, logits: Tensor) -> None:
        """Set logits [vocab], float32 on the CPU, of tokens that do not fit to minus infinity."""
        allowed = torch.frombuffer(bytearray(self._inner.compute_logit_bias()), dtype=torch.uint8)
        logits.masked_fill_(allowed == 0, -torch.inf)

    def accept(self, token: int) -> None:
        """The token was chosen."""
        self._inner.consume_token(token)
