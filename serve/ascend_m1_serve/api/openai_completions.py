"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ascend_m1.errors import InputError

from ..answer import Answer, Piece
from ..front import Front
from ..text import token_text
from . import sse
from .bodies import read
from .choices import likeliest
from .mindie_common import MindieSettings
from .openai_common import REASONS, failure, head, reading, sampling_of, submitted, usage, written
from .openai_schema import CompletionRequest
from .openapi import OPENAI_ERRORS, members, model_body, operation

KIND = "text_completion"
ANSWER = members(id="string", object="string", created="integer", model="string", choices="array", usage="object")
DEFAULT_TOKENS = 16  # as OpenAI has it
MOST_PROMPTS = 128


def routes(front: Front, settings: MindieSettings | None) -> APIRouter:
    """The route; ``settings`` of a config.json."""
    router, path = APIRouter(responses=OPENAI_ERRORS), "/v1/completions"

    @router.post(path, **operation(model_body(CompletionRequest, path), ANSWER, [sse.MEDIA]))
    async def completions(request: Request) -> Response:
        asked = await read(request, CompletionRequest)
        model = front.name if asked.model is None else asked.model
        adapter = front.adapter(model)
        check(asked)
        prompts = [await front.text_ids(p) if isinstance(p, str) else p for p in prompts_of(asked)]
        sampling = await sampling_of(front, asked, asked.max_tokens or DEFAULT_TOKENS, asked.logprobs)
        front.check_count(len(prompts) * asked.candidates())
        answers: list[Answer] = []
        try:
            for ids in prompts:
                answers += submitted(front, asked, ids, sampling, adapter)
        except BaseException:
            front.close(answers)
            raise
        echoes = echoed(front, asked)
        if asked.stream:
            events = stream(front, asked, answers, echoes, head(KIND, "cmpl", model), settings)
            return sse.Events(front, answers, events)
        pieces = await sse.whole(request, front, answers, reading(settings))
        if pieces is None:
            return Response(status_code=499)
        chosen = likeliest(answers, pieces, asked.candidates(), asked.n)
        content = head(KIND, "cmpl", model)
        content["choices"] = [choice(front, asked, index, *pair, echoes) for index, pair in enumerate(chosen)]
        content["usage"] = usage([answer for answer, _ in chosen], asked.n)
        return Response(sse.dump(content), media_type="application/json")

    return router


def check(asked: CompletionRequest) -> None:
    """Raises InputError for what cannot be done."""
    if asked.suffix is not None:
        raise InputError("suffix: this model continues a text, it fills no gap: leave it out")
    if asked.echo and asked.logprobs is not None:
        raise InputError("echo with logprobs: the prompt's own logprobs are not computed: give one of them")


def prompts_of(asked: CompletionRequest) -> list[str | list[int]]:
    """One or several, as text or as ids. Raises InputError if there is none, or too many."""
    prompt: Any = asked.prompt
    several = isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int))
    prompts: list[str | list[int]] = prompt if several else [prompt]
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise InputError(f"prompt: {len(prompts)} prompts: give 1 to {MOST_PROMPTS}")
    return prompts


def echoed(front: Front, asked: CompletionRequest) -> list[str]:
    """What stands before each answer."""
    if not asked.echo:
        return []
    return [p if isinstance(p, str) else front.tokenizer.decode(p) for p in prompts_of(asked)]


def choice(
    front: Front,
    asked: CompletionRequest,
    index: int,
    answer: Answer,
    pieces: Sequence[Piece],
    echoes: Sequence[str],
) -> dict[str, Any]:
    """A whole answer."""
    before = echoes[index // asked.n] if echoes else ""
    return {
        "index": index,
        "text": before + answer.text,
        "logprobs": logprobs(front, asked, pieces),
        "finish_reason": REASONS[answer.reason or "abort"],
        "stop_reason": answer.stop,
    }


async def stream(
    front: Front,
    asked: CompletionRequest,
    answers: list[Answer],
    echoes: Sequence[str],
    first: dict[str, Any],
    settings: MindieSettings | None,
) -> AsyncGenerator[bytes, None]:
    """Events, the end mark last. With a config.json an answer's last one has its usage."""

    def chunk(index: int, text: str, reason: str | None = None, probabilities: Any = None) -> bytes:
        part = {"index": index, "text": text, "logprobs": probabilities, "finish_reason": reason}
        about = {} if settings is None or reason is None else {"usage": usage([answers[index]], 1)}
        return sse.event(first | {"choices": [part]} | about)

    try:
        for index in range(len(answers) if echoes else 0):
            yield chunk(index, echoes[index // asked.n])
        async for index, piece in sse.merged(answers, reading(settings)):
            reason = None if piece.reason is None else REASONS[piece.reason]
            if piece.text or piece.logprobs or reason:
                yield chunk(index, piece.text, reason, logprobs(front, asked, [piece]))
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield sse.event(first | {"choices": [], "usage": usage(answers, asked.n)})
        yield sse.DONE
    except Exception as error:
        yield failure(error)


def logprobs(front: Front, asked: CompletionRequest, pieces: Sequence[Piece]) -> dict[str, Any] | None:
    """Columns over the tokens."""
    if asked.logprobs is None:
        return None
    columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for piece in pieces:
        for offset, (chosen, *others) in zip(piece.offsets, piece.logprobs, strict=True):
            text = token_text(front.tokenizer, chosen.token)[0]
            shown = (chosen, *others[: asked.logprobs])
            likeliest = {token_text(front.tokenizer, other.token)[0]: written(other.logprob) for other in shown}
            for name, value in zip(columns, (text, written(chosen.logprob), likeliest, offset), strict=True):
                columns[name].append(value)
    return columns
