"""Requests of OpenAI's API, with the fields that vLLM adds. Unknown fields are ignored, as everywhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from ascend_m1.errors import InputError

from ..front import Asked, check_unicode
from ..mindie.requests import stops
from .choices import candidates_of
from .openai_structured import Structured

MOST_DIGITS = 10  # of a token's id; int() refuses thousands of them
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def wanted(words: Any) -> WrapValidator:
    """What to say of a field with several forms, where pydantic would say of each why it is not that."""

    def check(value: Any, form: Any) -> Any:
        try:
            return form(value)
        except ValidationError:
            raise PydanticCustomError("form", words) from None

    return WrapValidator(check)


class StreamOptions(BaseModel):
    """include_usage: a last event with the counts of tokens."""

    include_usage: bool = False


class Common(Structured):
    """Fields of both kinds of request."""

    model: str | None = None
    n: int = Field(1, ge=1, lt=2**31)
    best_of: int | None = Field(None, ge=1, lt=2**31)
    use_beam_search: bool = False  # refused
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: Probability | None = None
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Annotated[str | list[str], wanted("give a text or a list of texts")] = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    priority: int = Field(5, ge=1, le=5)

    def asked(self) -> Asked:
        """What is said about sampling; a top_k of -1 is all, as 0 is."""
        return Asked(
            temperature=self.temperature,
            top_k=None if self.top_k is None else max(0, self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )

    def candidates(self) -> int:
        """How many answers are generated. Raises InputError."""
        return candidates_of(self.n, self.best_of, self.stream)

    def stops(self) -> list[str]:
        """Raises InputError for an empty one, or too many."""
        return stops(self.stop)

    def biases(self, vocab_size: int) -> dict[int, float]:
        """Raises InputError for a key that is no token."""
        for token in self.logit_bias:
            digits = len(token) <= MOST_DIGITS and token.isascii() and token.isdigit()
            if not digits or int(token) >= vocab_size:
                raise InputError(f"logit_bias: key {token[:40]!r}: give token ids below {vocab_size}")
        return {int(token): bias for token, bias in self.logit_bias.items()}


class TextPart(BaseModel):
    """A part of a message; this model reads text alone."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One of a conversation; what else it has goes to the template."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: Annotated[
        str | list[TextPart] | None,
        wanted('give a text, or a list of parts {"type": "text", "text": "…"}: this model reads only text'),
    ] = None

    def for_template(self) -> dict[str, Any]:
        """With content as text."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        check_unicode(self.role)
        check_unicode(text)
        return {**(self.model_extra or {}), "role": self.role, "content": text}


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Annotated[str | dict[str, Any] | None, wanted("give a text or an object")] = None
    chat_template: Any = None  # refused where it is given
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class CompletionRequest(Common):
    """POST /v1/completions."""

    prompt: Annotated[
        str | list[str] | list[TokenId] | list[list[TokenId]],
        wanted("give a text, a list of texts, token ids from 0 on, or a list of lists of them"),
    ]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=5)
    suffix: str | None = None
