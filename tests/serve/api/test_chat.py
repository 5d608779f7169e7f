"""Chat through the real client."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import openai
import pytest
from openai import OpenAI
from transformers import AutoTokenizer

from ascend_m1.cli.options import EMBEDDED

from .running import ENGINE

MODEL = "m1-icd10"
ASK: list[Any] = [{"role": "user", "content": "What does ICD-10-CM code J45 mean?"}]
ANSWER = "Asthma"


def ask(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=options.pop("messages", ASK), **options)


def test_whole(client: OpenAI) -> None:
    answer = ask(client)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    usage = answer.usage
    assert answer.object == "chat.completion"
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 10
    assert usage.completion_tokens > 1


def test_stream(client: OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == ask(client).usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert len({chunk.id for chunk in chunks}) == 1


def test_logprobs(client: OpenAI) -> None:
    whole = ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert "".join(token.token for token in whole).replace("</s>", "").strip() == ANSWER
    for token in whole:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(other.logprob for other in token.top_logprobs)  # greedy
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) < 1 + 1e-5
    streamed = [
        token
        for chunk in ask(client, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == whole


def test_several_choices(client: OpenAI) -> None:
    sampled: dict[str, Any] = {"temperature": 2.0, "seed": 7, "max_tokens": 12, "n": 3}
    sampled["messages"] = [{"role": "user", "content": "Tell me something"}]
    choices = [choice.message.content for choice in ask(client, **sampled).choices]
    assert len(set(choices)) > 1
    assert [choice.message.content for choice in ask(client, **sampled).choices] == choices
    streamed = ["", "", ""]
    for chunk in ask(client, **sampled, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == choices


def test_stop_string(client: OpenAI) -> None:
    choice = ask(client, stop=["th"]).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("As", "stop")
    chunks = list(ask(client, stop="th", stream=True, extra_body={"include_stop_str_in_output": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Asth"


def test_ranges_are_mindies(client: OpenAI) -> None:
    """More than OpenAI's own."""
    assert ask(client, stop=[f"{number} and no more" for number in range(1024)]).choices[0].message.content == ANSWER
    limit = 2 if ENGINE == "vllm" else 1e6
    assert ask(client, temperature=limit, seed=1, max_tokens=2).usage.completion_tokens == 2
    assert ask(client, extra_body={"repetition_penalty": 1e6}, max_tokens=2).usage.completion_tokens == 2


def test_length(client: OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(client, **{name: 2})
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 2)


def test_json_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"code": {"type": "string", "maxLength": 8}, "sure": {"type": "boolean"}},
        "required": ["code", "sure"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    found = json.loads(ask(client, response_format=wanted, max_tokens=60).choices[0].message.content)
    assert sorted(found) == ["code", "sure"]
    assert isinstance(found["sure"], bool)


@pytest.mark.parametrize(
    ("body", "pattern"),
    [
        ({"structured_outputs": {"regex": "[A-Z][0-9]{2}"}}, r"[A-Z]\d\d"),
        ({"structured_outputs": {"grammar": 'start: "yes" | "no"'}}, "yes|no"),
        ({"structured_outputs": {"choice": ["a+ (b|c)", "?"]}}, r"a\+ \(b\|c\)|\?"),
        ({"structured_outputs": {"json": {"enum": [7]}, "regex": None, "disable_any_whitespace": True}}, "7"),
        ({"structured_outputs": {"json_object": True}}, r"\{.*"),
        ({"guided_regex": "[A-Z][0-9]{2}", "guided_json_object": False}, r"[A-Z]\d\d"),
        ({"guided_grammar": 'start: "yes" | "no"', "guided_choice": None}, "yes|no"),
        ({"guided_choice": ["a+ (b|c)", "?"], "guided_decoding_backend": "guidance"}, r"a\+ \(b\|c\)|\?"),
        ({"guided_json": {"enum": [7]}}, "7"),
        ({"guided_json": '{"enum": [7]}'}, "7"),
        ({"guided_json_object": True}, r"\{.*"),
    ],
    ids=str,
)
def test_structured_outputs(client: OpenAI, body: dict[str, Any], pattern: str) -> None:
    """vLLM's fields, and their older names; the answer of the model is none of these."""
    assert re.fullmatch(pattern, ask(client, extra_body=body, max_tokens=20).choices[0].message.content)


def test_logit_bias_forbids_a_token(client: OpenAI) -> None:
    token = AutoTokenizer.from_pretrained(EMBEDDED)(ANSWER, add_special_tokens=False)["input_ids"][0]
    assert ask(client, logit_bias={str(token): -100}).choices[0].message.content != ANSWER


def test_parts_of_text(client: OpenAI) -> None:
    content = ASK[0]["content"]
    parts = [{"type": "text", "text": content[:9]}, {"type": "text", "text": content[9:]}]
    assert ask(client, messages=[{"role": "user", "content": parts}]).choices[0].message.content == ANSWER


def test_tools_reach_the_template(client: OpenAI) -> None:
    """This checkpoint's template does not read them: the answer stays text."""
    tool: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    assert ask(client, tools=[tool]).choices[0].message.content == ANSWER
    with pytest.raises(openai.BadRequestError, match="tool_choice: only auto and none"):
        ask(client, tools=[tool], tool_choice="required")


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        ({"messages": []}, 400, "messages: "),
        ({"messages": [{"role": "bishop", "content": "x"}]}, 400, "unknown role bishop"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "the prompt is empty"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            400,
            'messages.0.content: give a text, or a list of parts {"type": "text", "text": "…"}: this model',
        ),
        ({"stop": [3]}, 400, "stop: give a text or a list of texts"),
        ({"temperature": -1}, 400, "temperature: "),
        ({"temperature": "warm"}, 400, "temperature: "),
        ({"n": 0}, 400, "n: "),
        ({"top_logprobs": 2}, 400, "top_logprobs: set logprobs"),
        ({"stop": [""]}, 400, "stop must have 1 to 32768 characters each, 32768 together"),
        ({"stop": ["x"] * 1025}, 400, "stop must have at most 1024 strings, got 1025"),
        ({"stop": ["x" * 32768, "y"]}, 400, "stop must have 1 to 32768 characters each, 32768 together"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias: key 'x'"),
        ({"logit_bias": {"1" * 5000: 1}}, 400, "logit_bias: key '1111"),
        ({"max_tokens": 0}, 400, "max_tokens: "),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, 400, "give the schema"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, 400, "regex: "),
        ({"extra_body": {"structured_outputs": {"structural_tag": "x"}}}, 400, "structural_tag is not supported"),
        ({"extra_body": {"guided_regex": "a" * 131073}}, 400, "regex: the definition has 131073 characters: give at"),
        ({"extra_body": {"structured_outputs": {}}}, 400, "structured_outputs: give one of json, regex, choice"),
        ({"extra_body": {"guided_whitespace_pattern": " "}}, 400, "whitespace_pattern is not supported"),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["b"]}}, 400, "guided_…: give one of json, regex"),
        (
            {"extra_body": {"guided_regex": "a", "structured_outputs": {"regex": "a"}}},
            400,
            "guided_…: give one of them",
        ),
        ({"extra_body": {"guided_choice": []}}, 400, "guided_choice: "),
        ({"extra_body": {"use_beam_search": True}}, 400, "use_beam_search: there is no beam search here"),
        ({"n": 3, "extra_body": {"best_of": 2}}, 400, "best_of must not be less than n, which is 3"),
        ({"n": 129}, 400, "129 answers to a prompt: this server gives at most 128"),
        *(
            ({"extra_body": {"chat_template_kwargs": {name: value}}}, 400, f"{name} is set by the server")
            for name, value in {
                "tokenize": True,
                "chat_template": "{{ 1/0 }}",
                "continue_final_message": True,
                "messages": [],
                "raise_exception": 1,
                "bos_token": "x",
            }.items()
        ),
        ({"extra_body": {"chat_template": "{{ 1/0 }}"}}, 400, "chat_template: a template is a program"),
    ],
    ids=lambda value: str(value)[:80],
)
def test_refusals(client: OpenAI, options: dict[str, Any], status: int, text: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, **options)
    error = caught.value
    assert error.status_code == status
    assert text in error.message
    assert set(error.body or {}) == {"message", "type", "param", "code"}  # type: ignore[call-overload]
    assert "\n" not in error.body["message"]  # type: ignore[index]


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'other' is not served here: use one of m1-icd10"):
        client.chat.completions.create(model="other", messages=ASK)


def test_a_prompt_that_does_not_fit(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the context"):
        ask(client, messages=[{"role": "user", "content": "word " * 5000}])
