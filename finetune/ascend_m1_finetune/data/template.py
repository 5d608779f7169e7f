"""Conversations as tokens, in the checkpoint's own chat format; only answers are learnt.

A conversation's tokens are those of its chat template, and what comes before an answer is exactly what the model is
given when it has to make that answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import TemplateError

from ascend_m1.errors import InputError
from ascend_m1.prompts import chat_ids

from ..packing import Document, document
from .forms import Conversation


def chat_document(tokenizer: Any, messages: Conversation) -> Document:
    """A conversation; labels are set for each answer and the token that ends it.

    A template that does not end an answer with a special token gets the tokenizer's end token at the end.

    Raises:
        InputError: the template refuses the conversation, or writes an answer otherwise than it asks for it.
    """
    parts: list[tuple[list[int], bool]] = []
    done = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _ids(tokenizer, messages[:index], ask=True)
        whole = _ids(tokenizer, messages[: index + 1], ask=False)
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise InputError("the chat template writes an answer otherwise than it asks for it: it cannot be learnt")
        if parts and prompt[:done] != [token for tokens, _ in parts for token in tokens]:
            raise InputError("the chat template changes earlier turns: give one question and answer a row")
        parts += [(prompt[done:], False), (whole[len(prompt) :], True)]
        done = len(whole)
    if parts[-1][0][-1] not in tokenizer.all_special_ids:
        parts.append(([tokenizer.eos_token_id], True))
    return document(parts)


def text_documents(tokenizer: Any, text: str, length: int) -> Iterator[Document]:
    """Plain text with an end token, in even pieces of at most ``length`` tokens, all of them learnt."""
    ids = [*chat_ids(tokenizer, text), tokenizer.eos_token_id]
    count = -(-len(ids) // length)
    for number in range(count):
        piece = ids[len(ids) * number // count : len(ids) * (number + 1) // count]
        if len(piece) > 1:  # a single token predicts nothing
            yield document([(piece, True)])


def _ids(tokenizer: Any, messages: Conversation, ask: bool) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except (TemplateError, TypeError, ValueError) as error:  # it is a program, which may fail in many ways
        raise InputError(f"the chat template refuses the conversation ({error})") from None
    return chat_ids(tokenizer, text)
