"""Structured output on the embedded checkpoint, whose answers are something else entirely."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import InputError
from ascend_m1.tokenization_baichuan_m1 import BaichuanM1Tokenizer
from ascend_m1_serve.api.openai_structured import StructuredOutputs
from ascend_m1_serve.engine.grammar import GrammarCompiler
from ascend_m1_serve.protocol import Grammar, Sampling

from .run import core_of, run_all, tokens

SCHEMA = {
    "type": "object",
    "properties": {"code": {"type": "string", "maxLength": 8}, "sure": {"type": "boolean"}},
    "required": ["code", "sure"],
    "additionalProperties": False,
}


@cache
def compiler() -> tuple[GrammarCompiler, Any]:
    tokenizer = BaichuanM1Tokenizer.from_pretrained(EMBEDDED)
    config = BaichuanM1ForCausalLM.from_pretrained(EMBEDDED).config
    return GrammarCompiler(tokenizer, config.vocab_size), tokenizer


def answers(grammar: Grammar, temperature: float, count: int = 4) -> list[str]:
    grammars, tokenizer = compiler()
    core = core_of(BaichuanM1ForCausalLM.from_pretrained(EMBEDDED).eval(), max_length=256)
    ids = tokenizer("What is cholera's code?")["input_ids"]
    requests = [
        core.add(ids, Sampling(100, grammar, temperature=temperature, seed=i), matcher=grammars.compile(grammar))
        for i in range(count)
    ]
    free = core.add(ids, Sampling(8))  # beside them, not held by any grammar
    *held, other = run_all(core, [*requests, free])
    assert len(tokens(other)) in range(1, 9)
    assert all(events[-1].finish == "stop" for events in held)
    return [tokenizer.decode(tokens(events), skip_special_tokens=True) for events in held]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_json_schema(temperature: float) -> None:
    for text in answers(Grammar("json_schema", json.dumps(SCHEMA)), temperature):
        value = json.loads(text)
        assert set(value) == {"code", "sure"}
        assert isinstance(value["sure"], bool)
        assert len(value["code"]) <= 8


def test_regex() -> None:
    for text in answers(Grammar("regex", "[A-Z][0-9]{2}\\.[0-9]"), 2.0):
        assert re.fullmatch(r"[A-Z][0-9]{2}\.[0-9]", text)


def test_grammar() -> None:
    for text in answers(Grammar("grammar", 'start: ("yes" | "no") " " NUMBER\nNUMBER: /[1-9][0-9]{0,2}/'), 1.0):
        assert re.fullmatch(r"(yes|no) [1-9][0-9]{0,2}", text)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_schema", "{"),
        Grammar("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
        Grammar("json_schema", '{"type": "nonsense"}'),
        Grammar("regex", "[a-"),
        Grammar("grammar", "start: missing"),
    ],
)
def test_a_wrong_definition_is_refused(grammar: Grammar) -> None:
    with pytest.raises(InputError, match=f"^{grammar.kind}: .*: correct the definition$"):
        compiler()[0].compile(grammar)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=1, max_size=4))
def test_choices_are_taken_as_they_are(choices: list[str]) -> None:
    """Whatever characters they have."""
    grammars, tokenizer = compiler()
    vocab_size = len(tokenizer)
    grammar = StructuredOutputs(choice=choices).one("choice")
    for choice in choices:
        ids = tokenizer(choice, add_special_tokens=False)["input_ids"]
        matcher = grammars.compile(grammar)
        for token in ids:
            logits = torch.zeros(vocab_size)
            matcher.mask(logits)
            assert logits[token] == 0
            matcher.accept(token)
