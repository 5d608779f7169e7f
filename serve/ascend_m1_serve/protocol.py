"""What an engine is to whoever asks it: token ids and sampling options in, events out. No text, no tensors.

Two engines keep it: the built-in one (``engine``) and vLLM's (``vllm_engine``). The HTTP front knows nothing else.

    stream = engine.submit(ids, Sampling(max_tokens=16))
    async for event in stream:
        ...event.tokens; the last event has event.finish
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

# A stop token, the most tokens allowed, ended from outside, no token could be chosen (a stream raises it).
Finish = Literal["stop", "length", "abort", "error"]
GrammarKind = Literal["json_schema", "json_object", "regex", "grammar"]


@dataclass(frozen=True)
class Grammar:
    """What the answer must look like.

    Attributes:
        kind: json_schema (``text`` is the schema as JSON), json_object (``text`` is empty), regex, grammar (Lark).
        text: the definition.
        compiled: by an engine (``Engine.compile``), for itself.
    """

    kind: GrammarKind
    text: str = ""
    compiled: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; already checked by the front. The order of application is that of the fields.

    Attributes:
        max_tokens: the most tokens to generate.
        grammar: tokens that do not fit are never chosen; it is compiled.
        logit_bias: added to these tokens' logits.
        repetition_penalty: of tokens in prompt or answer, positive logits are divided by it, negative multiplied.
        frequency_penalty: subtracted once for every time a token is in the answer.
        presence_penalty: subtracted once if a token is in the answer.
        temperature: 0: greedy.
        top_k: 0: all. top_p: 1: all. min_p: 0: all.
        seed: of this request alone; None: any.
        stop_token_ids: end the answer, as the model's own end does unless ``ignore_eos``.
        logprobs: how many likeliest tokens to report beside the chosen one, before everything above; None: nothing.
    """

    max_tokens: int
    grammar: Grammar | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None


@dataclass(frozen=True)
class Logprob:
    """One token's natural logarithm of probability, and its rank (1: the likeliest)."""

    token: int
    logprob: float
    rank: int


@dataclass(frozen=True)
class Event:
    """News of one request.

    Attributes:
        tokens: new ones; the end token is among them.
        logprobs: for each new token, itself first, then the likeliest ones; empty unless asked for.
        finish: why it is the last event; None: more will come.
        cached_tokens: of the prompt, those that were not computed again.
        queued: seconds that the request waited before its first forward.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[tuple[Logprob, ...], ...] = ()
    finish: Finish | None = None
    cached_tokens: int = 0
    queued: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What an engine was made for.

    Attributes:
        max_length: tokens of the longest sequence, answer included.
        max_sequences: at the same time; more wait.
        block_size: tokens in a cache block. blocks: in the whole cache.
        vocab_size: token ids are below it.
        end_tokens: the model's own.
        dtype: of the weights in memory. devices: how many. device: cpu, npu or cuda.
    """

    max_length: int
    max_sequences: int
    block_size: int
    blocks: int
    vocab_size: int
    end_tokens: frozenset[int]
    dtype: str
    devices: int
    device: str


@dataclass(frozen=True)
class Stats:
    """An engine's state now, and totals since its start.

    Attributes:
        running, waiting, swapped: requests.
        free_blocks: those that a new request could have.
        preemptions, prompt_tokens, generated_tokens: totals; prompt_tokens counts cached ones too.
        cached_tokens: of prompts, found in the prefix cache.
        steps: forwards. last_batch: sequences in the last one.
    """

    running: int = 0
    waiting: int = 0
    swapped: int = 0
    free_blocks: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0
    last_batch: int = 0


class Stream(Protocol):
    """The events of one request, in order; an asynchronous iterator."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def __anext__(self) -> Event:
        """Raises StopAsyncIteration after the last event or ``abort``; EngineError if the engine failed, or the model's
        numbers for this request are none."""

    def abort(self) -> None:
        """End the request at once and free what it holds; safe at any time, also twice. No event follows."""


class Engine(Protocol):
    """All methods are called from the event loop's thread."""

    @property
    def limits(self) -> Limits: ...

    def submit(
        self, ids: Sequence[int], sampling: Sampling, *, adapter: str | None = None, priority: int = 5
    ) -> Stream:
        """Queue a request; it runs whether or not its events are awaited.

        Args:
            ids: the prompt, 1 to max_length - 1 tokens.
            sampling: with at least one token to generate; the end of max_length stops earlier.
            adapter: name of a loaded one.
            priority: 1 (first) to 5.

        Raises:
            InputError: the prompt does not fit, an id is outside the vocabulary, or the adapter is unknown.
            EngineError: the engine has stopped.
        """

    async def compile(self, grammar: Grammar) -> Grammar:
        """The grammar for any number of requests, compiled beside the event loop.

        Raises:
            InputError: the definition is wrong or too long.
        """

    async def add_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter from a PEFT folder. Raises InputError if it does not fit or the name is taken."""

    async def remove_adapter(self, name: str) -> None:
        """Forget it once no request uses it. Raises InputError if it is unknown."""

    def adapters(self) -> list[str]:
        """Names of the loaded ones."""

    def stats(self) -> Stats: ...

    @property
    def failure(self) -> str | None:
        """Why the engine no longer works; None: it does."""

    async def stop(self) -> None:
        """End everything now."""
