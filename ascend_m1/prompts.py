"""Prompts as tokens: the chat format, plain text, and the room that is left in the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from .configuration_baichuan_m1 import BaichuanM1Config
from .errors import InputError, TokenizerError

Message = dict[str, str]


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **template: Any) -> str:
    """The conversation in the checkpoint's chat format, up to where the assistant answers.

    Args:
        messages: role and content, and what else the template reads.
        template: more for it, ``tools`` say.

    Raises:
        TokenizerError: the checkpoint has no chat template.
        InputError: the last message is empty, or the template refuses the conversation.
    """
    _check_text(messages[-1]["content"])
    if not tokenizer.chat_template:
        raise TokenizerError("the tokenizer has no chat_template: give plain text with --raw")
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, **template
        )
    except (TemplateSyntaxError, TypeError, ValueError) as error:
        raise TokenizerError(f"the chat_template is broken ({error}): copy tokenizer_config.json again") from None
    except TemplateError as error:
        raise InputError(f"the chat template refuses the conversation ({error}): change its messages") from None
    return text


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    """What ``chat_text`` made, as tokens. Raises TokenizerError if it made nothing."""
    # Not verbose: whether it fits is told by who asks, in words that are true.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise TokenizerError("the chat_template makes nothing of the conversation: give plain text with --raw")
    return ids


def plain_ids(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt to be continued as it is. Raises InputError if it is empty."""
    _check_text(prompt)
    ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
    return ids


def _check_text(text: str) -> None:
    if not text.strip():
        raise InputError("the prompt is empty: give some text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not valid UTF-8 at character {error.start}: convert it to UTF-8") from None


def room_for(config: BaichuanM1Config, prompt_tokens: int) -> int:
    """How many tokens fit into the context after the prompt. Raises InputError if none do."""
    room = config.max_position_embeddings - prompt_tokens
    if room < 1:
        raise InputError(
            f"the prompt has {prompt_tokens} tokens, the context (max_position_embeddings) "
            f"{config.max_position_embeddings}: shorten it by at least {1 - room}"
        )
    return room
