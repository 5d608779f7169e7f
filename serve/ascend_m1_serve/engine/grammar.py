"""Structured output through llguidance: which tokens may come next."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ascend_m1.errors import InputError

from ..protocol import Grammar

MOST_CHARACTERS = 2**17  # of a definition: a schema of so many properties takes some seconds, growing with the square


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Made in an event loop's thread.

    Args:
        tokenizer: a transformers tokenizer with a fast backend; its own end ends an answer.
        vocab_size: rows of the model's head, at least as many as the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._turn = asyncio.Lock()

    async def compiled(self, grammar: Grammar) -> Grammar:
        """See ``protocol.Engine.compile``. One at a time: the threads are there for long prompts, too."""
        if len(grammar.text) > MOST_CHARACTERS:
            raise InputError(
                f"{grammar.kind}: the definition has {len(grammar.text)} characters: give at most {MOST_CHARACTERS}"
            )
        async with self._turn:
            return replace(grammar, compiled=await asyncio.to_thread(self.compile, grammar))

    @cached_property
    def _tokens(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, n_vocab=self._vocab_size, eos_token=self._tokenizer.eos_token_id)

    def compile(self, grammar: Grammar) -> Matcher:
        """Where an answer begins. Raises InputError if the definition is wrong."""
        from llguidance import LLMatcher

        try:
            definition = _definition(grammar)
        except (ValueError, RecursionError) as error:
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

    def copy(self) -> Matcher:
        """For another answer."""
        return Matcher(self._inner.deep_copy())

    def mask(self, logits: Tensor) -> None:
        """Set logits [vocab], float32 on the CPU, of tokens that do not fit to minus infinity."""
        allowed = torch.frombuffer(bytearray(self._inner.compute_logit_bias()), dtype=torch.uint8)
        logits.masked_fill_(allowed == 0, -torch.inf)

    def accept(self, token: int) -> None:
        """The token was chosen."""
        self._inner.consume_token(token)
