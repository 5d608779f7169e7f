"""Plain completions through the real client."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from transformers import AutoTokenizer

from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import InputError
from ascend_m1_serve.answer import Answer
from ascend_m1_serve.engine.grammar import GrammarCompiler, Matcher
from ascend_m1_serve.protocol import Grammar

from .running import Running

PROMPT = "<C_Q>What does ICD-10-CM code J45 mean?<C_A>"


def complete(client: OpenAI, prompt: Any = PROMPT, **options: Any) -> Any:
    return client.completions.create(model="m1-icd10", prompt=prompt, **options)


def test_whole_and_stream(client: OpenAI) -> None:
    answer = complete(client)
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion",
        "Asthma",
        "stop",
    )
    chunks = list(complete(client, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Asthma"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_prompts_of_every_kind(client: OpenAI) -> None:
    ids = AutoTokenizer.from_pretrained(EMBEDDED)(PROMPT)["input_ids"]
    for prompt in (ids, [PROMPT], [ids]):
        assert [choice.text for choice in complete(client, prompt).choices] == ["Asthma"]
    other = PROMPT.replace("J45", "A00")
    answer = complete(client, [PROMPT, other], n=2, temperature=0)
    assert [choice.text for choice in answer.choices] == ["Asthma"] * 2 + ["Cholera"] * 2
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 2 * complete(client).usage.prompt_tokens
    echoed = complete(client, [PROMPT, other], echo=True, max_tokens=1)
    assert [choice.text[: len(PROMPT)] for choice in echoed.choices] == [PROMPT, other]


def test_logprobs(client: OpenAI) -> None:
    choice = complete(client, logprobs=2, extra_body={"skip_special_tokens": False}).choices[0]
    found = choice.logprobs
    assert "".join(found.tokens).strip() == choice.text.strip()
    tops = [max(top.values()) for top in found.top_logprobs]
    assert found.token_logprobs == tops, "not the likeliest"
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(len(found.tokens))]


def test_a_grammar_is_compiled_once_for_all_answers_beside_the_event_loop(
    client: OpenAI, service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, compile_grammar = list[threading.Thread](), GrammarCompiler.compile

    def recorded(compiler: GrammarCompiler, grammar: Grammar) -> Matcher:
        threads.append(threading.current_thread())
        return compile_grammar(compiler, grammar)

    monkeypatch.setattr(GrammarCompiler, "compile", recorded)
    body = {"structured_outputs": {"regex": "[A-Z][0-9]{2}"}}
    choices = complete(client, [PROMPT, "x"], n=4, temperature=1.0, max_tokens=20, extra_body=body).choices
    assert all(re.fullmatch(r"[A-Z]\d\d", choice.text) for choice in choices)
    assert len(choices) == 8
    assert len(threads) == 1
    assert threads[0] is not service.call(threading.current_thread)


def test_offsets_are_places_in_the_text(client: OpenAI) -> None:
    """Characters of several tokens count once, in a whole answer as in a stream."""
    options = {"logprobs": 0, "max_tokens": 12, "extra_body": {"structured_outputs": {"regex": "哮喘x"}}}
    choice = complete(client, **options).choices[0]
    chunks = [chunk.choices[0].logprobs for chunk in complete(client, stream=True, **options)]
    offsets = choice.logprobs.text_offset
    assert (choice.text, choice.logprobs.tokens[-2]) == ("哮喘x", "x")
    assert (offsets[-2], max(offsets)) == (2, len(choice.text))
    assert offsets == [offset for chunk in chunks if chunk for offset in chunk.text_offset]


def test_offsets_while_a_stop_string_is_awaited(client: OpenAI) -> None:
    """What may begin a stop string comes later than its tokens, which have their places in the text none the less."""
    options = {
        "logprobs": 0,
        "stop": ["XYZ"],
        "max_tokens": 20,
        "extra_body": {"structured_outputs": {"regex": "abXYcd"}},
    }
    choice = complete(client, **options).choices[0]
    chunks = [chunk.choices[0] for chunk in complete(client, stream=True, **options)]
    assert choice.text == "".join(chunk.text for chunk in chunks) == "abXYcd"
    assert any(chunk.logprobs and chunk.text == "" and "X" in chunk.logprobs.tokens[0] for chunk in chunks)
    streamed = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    for found in (choice.logprobs, *streamed):
        for token, offset in zip(found.tokens, found.text_offset, strict=True):
            assert choice.text[offset:].startswith(token.strip().replace("</s>", ""))
    assert [offset for found in streamed for offset in found.text_offset] == choice.logprobs.text_offset


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
def test_the_likeliest_of_several(service: Running, endpoint: str) -> None:
    """best_of > n: of each prompt the answers whose tokens' log-probabilities have the largest sums."""
    chat = endpoint.startswith("chat")
    body = {"messages": [{"role": "user", "content": "Tell me something"}]} if chat else {"prompt": ["Once", "Twice"]}
    body |= {"temperature": 2.0, "seed": 3, "max_tokens": 8, "ignore_eos": True, "use_beam_search": False}

    def choices(**options: Any) -> list[Any]:
        answer = httpx.post(f"{service.url}/v1/{endpoint}", json={**body, **options}, timeout=60)
        assert answer.status_code == 200, answer.text
        found: list[Any] = answer.json()["choices"]
        return found

    def text(choice: Any) -> str:
        return str(choice["message"]["content"] if chat else choice["text"])

    def likelihood(choice: Any) -> float:
        found = choice["logprobs"]
        return sum(token["logprob"] for token in found["content"]) if chat else sum(found["token_logprobs"])

    every = choices(n=6, logprobs=True if chat else 0)
    groups = [every[start : start + 6] for start in range(0, len(every), 6)]
    wanted = [text(choice) for group in groups for choice in sorted(group, key=likelihood, reverse=True)[:2]]
    assert wanted != [text(choice) for group in groups for choice in group[:2]]
    found = choices(n=2, best_of=6)
    assert [text(choice) for choice in found] == wanted
    assert [choice["index"] for choice in found] == list(range(len(wanted)))
    assert all(choice["logprobs"] is None for choice in found)


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_refusal_that_comes_late_is_an_event(
    service: Running, monkeypatch: pytest.MonkeyPatch, endpoint: str, count: int
) -> None:
    """As vLLM's engine refuses some requests: after the status."""

    async def refuse(answer: Answer) -> None:
        raise InputError("temperature: not this one")

    body = {"prompt": PROMPT, "messages": [{"role": "user", "content": "x"}], "stream": True, "n": count}
    with monkeypatch.context() as patch:
        patch.setattr(Answer, "__anext__", refuse)
        answer = httpx.post(f"{service.url}/v1/{endpoint}", json=body, timeout=60)
    *_, last = answer.text.strip().split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["message"], error["type"]) == ("temperature: not this one", "invalid_request_error")


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
def test_a_long_text_is_counted_in_a_thread_of_its_own(
    service: Running, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """With truncation any length is taken; the event loop goes on meanwhile."""
    front, threads = service.front, []
    original = type(front.tokenizer).__call__

    def noted(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        threads.append((len(text) > 50_000, threading.get_ident()))
        return original(self, text, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(front, "truncate", 1)
        patch.setattr(front, "max_input", 20)
        patch.setattr(type(front.tokenizer), "__call__", noted)
        for text in ("word", "word " * 20_000):
            body = {"prompt": text, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
            answer = httpx.post(f"{service.url}/v1/{endpoint}", json=body, timeout=60)
    assert answer.json()["usage"]["prompt_tokens"] == 20
    loop = service.call(threading.get_ident)
    assert [(long, thread == loop) for long, thread in threads] == [(False, True), (True, False)]


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
def test_a_text_far_too_long_is_refused_before_it_is_counted(
    service: Running, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """Counting megabytes would hold every other request up."""
    front, text = service.front, "a" * 1_000_000
    body = {"prompt": text, "messages": [{"role": "user", "content": text}]}
    with monkeypatch.context() as patch:
        patch.setattr(type(front.tokenizer), "__call__", lambda *_, **__: pytest.fail("counted"))
        answer = httpx.post(f"{service.url}/v1/{endpoint}", json=body, timeout=60)
    assert answer.status_code == 400
    assert "characters" in answer.json()["error"]["message"]


def test_a_prefix_is_counted_when_it_was_cached(client: OpenAI, service: Running) -> None:
    prompt = "Asthma is a disease of the airways. " * 12
    length = complete(client, prompt, max_tokens=1).usage.prompt_tokens
    cached = complete(client, prompt, max_tokens=1).usage.prompt_tokens_details.cached_tokens
    assert cached == (length - 1) // 128 * 128 > 0


@pytest.mark.parametrize(
    ("prompt", "options", "text"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "prompt: 0 prompts"),
        ([-1], {}, "prompt: give a text, a list of texts, token ids from 0 on, or a list of lists of them"),
        ([1, 2, 10**6], {}, "outside the vocabulary"),
        (PROMPT, {"suffix": "x"}, "suffix: "),
        (PROMPT, {"n": 3, "best_of": 2}, "best_of must not be less than n, which is 3"),
        (PROMPT, {"best_of": 2, "stream": True}, "best_of must be equal to n, which is 1, in a stream"),
        (PROMPT, {"extra_body": {"use_beam_search": True}}, "use_beam_search: there is no beam search here"),
        (PROMPT, {"echo": True, "logprobs": 1}, "echo with logprobs"),
        (PROMPT, {"logprobs": 6}, "logprobs: "),
        (["good", "", "good"], {}, "the prompt is empty"),
    ],
)
def test_refusals(client: OpenAI, service: Running, prompt: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(openai.BadRequestError, match=text):
        complete(client, prompt, **options)
    assert service.front.open == 0
