"""What every HTTP interface is made of: prompts to ids, requests to the engine, limits, and the service's state.

Knows engine and tokenizer; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ascend_m1.errors import InputError
from ascend_m1.prompts import chat_ids, chat_text
from ascend_m1.sampling import DEFAULT_MAX_NEW_TOKENS

from .answer import Answer
from .errors import BusyError, EngineError, UnknownModelError
from .metrics import Metrics
from .protocol import Engine, Sampling

MOST_CHOICES = 128  # answers to a prompt
_INLINE = 20_000  # characters that take a few milliseconds to tokenise; more would hold other requests up


@dataclass(frozen=True)
class Defaults:
    """Of a checkpoint's generation_config.json, for what a request does not say.

    Attributes:
        sample: whether a request that names no option of sampling is sampled; else it is greedy.
    """

    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None

    @classmethod
    def of(cls, config: Any) -> Defaults:
        """Of a transformers ``GenerationConfig``; a field that is None counts as not given."""
        names = {"max_tokens": "max_new_tokens", "sample": "do_sample"}
        known = {name: getattr(config, names.get(name, name), None) for name in cls.__dataclass_fields__}
        return cls(**{name: value for name, value in known.items() if value is not None})


@dataclass(frozen=True)
class Asked:
    """Options of sampling that a request may give; None: it did not. See ``Sampling``."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    sample: bool | None = None


@dataclass
class Front:
    """The service.

    Attributes:
        name: of the model, as clients call it.
        max_queue: requests that may wait for a place in the engine; more are refused.
        max_input: tokens of a prompt; None: as many as fit. truncate: what to do with a longer one; -1 keeps its
            beginning, 1 its end, 0 refuses it.
        max_new: tokens of an answer, whatever a request says; None: as many as fit.
        max_choices: answers to a prompt.
        tell_times: chat answers tell how long their tokens took.
    """

    engine: Engine
    tokenizer: Any
    name: str
    defaults: Defaults = field(default_factory=Defaults)
    max_queue: int = 256
    max_input: int | None = None
    truncate: int = 0
    max_new: int | None = None
    max_choices: int = MOST_CHOICES
    tell_times: bool = False
    metrics: Metrics = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    open: int = 0  # answers that have not ended

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.name, self.engine)
        self._longest_token = max(map(len, self.tokenizer.get_vocab()))  # characters

    def models(self) -> list[str]:
        """The model, then its adapters."""
        return [self.name, *self.engine.adapters()]

    def adapter(self, model: str) -> str | None:
        """Which adapter a model's name means; None: the model itself. Raises UnknownModelError."""
        if model == self.name:
            return None
        if model in self.engine.adapters():
            return model
        raise UnknownModelError(f"model {model!r} is not served here: use one of {', '.join(self.models())}")

    async def chat_ids(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> list[int]:
        """A conversation in the checkpoint's chat format. Raises InputError, TokenizerError."""
        text = chat_text(self.tokenizer, messages, **template)
        check_unicode(text)
        self._check_length(text)
        if len(text) <= _INLINE:
            return chat_ids(self.tokenizer, text)
        return await asyncio.to_thread(chat_ids, self.tokenizer, text)

    async def text_ids(self, text: str) -> list[int]:
        """A prompt to be continued as it is. Raises InputError."""
        check_unicode(text)
        self._check_length(text)
        call = partial(self.tokenizer, verbose=False)  # it warns of long texts, which ``submit`` refuses or cuts
        found = call(text) if len(text) <= _INLINE else await asyncio.to_thread(call, text)
        ids: list[int] = found["input_ids"]
        if not ids:
            raise InputError("the prompt is empty: give some text")
        return ids

    def sampling(self, asked: Asked, **rest: Any) -> Sampling:
        """Options with the checkpoint's for what was not asked for; ``rest`` are other fields of ``Sampling``.

        A temperature of 0 is greedy. Without one, a request is sampled if it names another option of sampling.
        """
        given = {name: value for name, value in vars(asked).items() if value is not None}
        sample = given.pop("sample", None)
        if sample is None:
            sample = self.defaults.sample or bool(given.keys() - {"repetition_penalty"})
        chosen = {name: given.get(name, getattr(self.defaults, name)) for name in _SAMPLING}
        if not sample:
            chosen["temperature"] = 0.0
        rest.setdefault("max_tokens", self.defaults.max_tokens or self.max_new or DEFAULT_MAX_NEW_TOKENS)
        rest["max_tokens"] = min(rest["max_tokens"], self.max_new or rest["max_tokens"])
        return Sampling(**chosen, **rest)

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        adapter: str | None = None,
        priority: int = 5,
        count: int = 1,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> list[Answer]:
        """``count`` answers to one prompt; with a seed, that and the numbers after it. Whoever takes them ends them.

        Raises:
            InputError: see ``protocol.Engine.submit``; more than ``max_choices``, or see ``check_count``.
            BusyError: too many requests wait, or the service is being stopped.
            EngineError: the engine has failed.
        """
        if count > self.max_choices:
            raise InputError(f"{count} answers to a prompt: this server gives at most {self.max_choices}: lower n")
        self.check_count(count)
        self._admit(count)
        prompt = self._fitted(prompt)
        answers: list[Answer] = []
        try:
            for index in range(count):
                own = sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + index) % 2**63)
                stream = self.engine.submit(prompt, own, adapter=adapter, priority=priority)
                words = {"include_stop": include_stop, "skip_special_tokens": skip_special_tokens}
                answers.append(Answer(stream, self.tokenizer, prompt, stop=stop, **words))
        except BaseException:
            for answer in answers:
                answer.abort()
            raise
        self.open += count
        self.metrics.received(count)
        return answers

    def check_count(self, count: int) -> None:
        """Raises InputError for more answers at once than there are places, which will be so later, too."""
        if count > self._places:
            raise InputError(
                f"{count} answers at once: this server has {self._places} places: lower n, or give fewer prompts"
            )

    def close(self, answers: Sequence[Answer]) -> None:
        """Whoever took answers gives them back here, once, however they ended."""
        for answer in answers:
            answer.abort()
            self.open -= 1
            self.metrics.ended(answer)

    @property
    def _places(self) -> int:
        """Of answers that are made or wait."""
        return self.engine.limits.max_sequences + self.max_queue

    @property
    def _most(self) -> int:
        """Tokens of a prompt."""
        context = self.engine.limits.max_length
        return min(self.max_input or context, context - 1)

    def _check_length(self, text: str) -> None:
        """Refuse what cannot fit before its tokens are counted: megabytes take seconds, and everybody waits."""
        most = self._most * self._longest_token
        if len(text) > most and not self.truncate:
            raise InputError(
                f"the prompt has {len(text)} characters, the context is {self.engine.limits.max_length} tokens "
                f"and a prompt at most {self._most}, which have at most {most} characters: shorten it"
            )

    def _fitted(self, prompt: Sequence[int]) -> Sequence[int]:
        context, most = self.engine.limits.max_length, self._most
        if len(prompt) > most and self.truncate:
            return prompt[:most] if self.truncate < 0 else prompt[-most:]
        if len(prompt) > most:
            raise InputError(
                f"the prompt has {len(prompt)} tokens, the context is {context} and a prompt at most {most}: shorten it"
            )
        return prompt

    def _admit(self, count: int) -> None:
        if self.engine.failure is not None:
            raise EngineError(self.engine.failure)
        if self.draining:
            raise BusyError("the service is being stopped: try another one", stopping=True)
        if self.open + count > self._places:
            raise BusyError(f"{self.open} requests are being answered or wait: try again later")


_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def check_unicode(text: str) -> None:
    """Raises InputError for half a surrogate pair, which JSON can carry and no text has."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not valid Unicode at character {error.start}: correct the escape") from None
