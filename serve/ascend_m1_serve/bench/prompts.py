"""What is asked: random words of chosen lengths, or the prompts in a file.

Lengths of random prompts are words, so that no tokenizer is needed; with a tokenizer they are tokens, exactly. What the
server adds to a prompt (chat format, first token) is not among them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.random import Generator, default_rng

from ascend_m1.errors import InputError, TokenizerError

from .lengths import draw_lengths

SOME_WORDS = """
acute age airway anemia artery asthma bed biopsy bleed blood body bone brain breath cancer care cause cell chest
chronic clinic cold cough cyst day diet doctor dose drug ear edema eye fever flow food foot gland hand head heart
heat home hour infection joint kidney lesion leg light liver loss lung meal month mouth muscle nausea neck nerve
night nurse onset oral oxygen pain patient pulse rash rate renal rest risk room salt scan sign skin sleep spine
stable stomach stroke surgery swelling test throat time tissue tumor ulcer vein virus vision walk ward water week
weight wound year
"""
WORDS = SOME_WORDS.split()
KEYS = ("prompt", "messages", "max_tokens")  # of a line
TRIES = 20  # of a prompt with an exact number of tokens


@dataclass(frozen=True)
class Prompt:
    """One request: text, or messages of a chat; and the most tokens to answer."""

    content: str | list[dict[str, Any]]
    max_tokens: int


def open_tokenizer(directory: str) -> Any:
    """The tokenizer in a local directory.

    Raises:
        TokenizerError: there is none, or it cannot be used.
    """
    if not Path(directory).is_dir():
        raise TokenizerError(f"--tokenizer {directory}: is not a directory: give one with tokenizer files")
    from transformers import AutoTokenizer

    import ascend_m1  # noqa: F401  (registers its tokenizer)

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers fails in any way
        raise TokenizerError(
            f"--tokenizer {directory}: cannot be used ({type(error).__name__}: {error}): give complete tokenizer files"
        ) from error


def random_prompts(count: int, input_len: str, output_len: str, seed: int, tokenizer: Any = None) -> list[Prompt]:
    """Prompts of random words.

    Args:
        input_len, output_len: see ``draw_lengths``; words, or tokens of ``tokenizer``; output_len: always tokens.

    Raises:
        InputError: a length that cannot be had.
    """
    lengths = draw_lengths("--input-len", input_len, count, default_rng([seed, 0]))
    limits = draw_lengths("--output-len", output_len, count, default_rng([seed, 1]))
    random = default_rng([seed, 2])
    texts = (_words(n, random) if tokenizer is None else _exact(n, random, tokenizer) for n in lengths)
    return [Prompt(text, limit) for text, limit in zip(texts, limits, strict=True)]


def read_prompts(path: str, output_len: str, seed: int, chat: bool, tokenizer: Any = None) -> list[Prompt]:
    """All prompts in a file, in an order that depends on the seed.

    The file is JSONL, each line an object with ``prompt`` or ``messages``, and perhaps ``max_tokens``; or ShareGPT's
    JSON, a list of objects with ``conversations``, of which the first turn is asked and, given a tokenizer, the second
    turn's tokens are the most to answer. ``output_len`` is for prompts that state nothing.

    Raises:
        InputError: the file cannot be read, or holds something else; messages where ``chat`` is false.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--dataset {path}: {error.strerror}: give a readable file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--dataset {path}: byte {error.start} is not valid UTF-8: convert it to UTF-8") from None
    found = list(_share_gpt(path, text, tokenizer) if text.lstrip().startswith("[") else _lines(path, text))
    if not found:
        raise InputError(f"--dataset {path}: no prompt in it: give at least one")
    if not chat and any(not isinstance(content, str) for content, _ in found):
        raise InputError(f"--dataset {path}: holds messages: give --endpoint chat")
    limits = draw_lengths("--output-len", output_len, len(found), default_rng([seed, 1]))
    prompts = [Prompt(content, stated or limit) for (content, stated), limit in zip(found, limits, strict=True)]
    return [prompts[i] for i in default_rng([seed, 2]).permutation(len(prompts))]


def _words(count: int, random: Generator) -> str:
    return " ".join(WORDS[i] for i in random.integers(len(WORDS), size=count))


def _exact(count: int, random: Generator, tokenizer: Any) -> str:
    """Words, the last one perhaps cut, that are ``count`` tokens: a cut may change the tokens before it, rarely."""
    for _ in range(TRIES):
        ids = tokenizer.encode(_words(count, random), add_special_tokens=False)[:count]
        text: str = tokenizer.decode(ids)
        if len(tokenizer.encode(text, add_special_tokens=False)) == count:
            return text
    raise InputError(f"--tokenizer: no words found that are {count} tokens: give another --input-len")


def _lines(path: str, text: str) -> Iterator[tuple[str | list[dict[str, Any]], int | None]]:
    for number, line in enumerate(text.split("\n"), start=1):  # U+2028 is no line end in JSON
        if not line.strip():
            continue
        where = f"--dataset {path}, line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: no JSON ({error}): give one object a line") from None
        prompt, messages, limit = (entry.get(key) for key in KEYS) if isinstance(entry, dict) else (None, None, None)
        if isinstance(prompt, str) and prompt and messages is None:
            content: str | list[dict[str, Any]] = prompt
        elif prompt is None and isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
            content = messages
        else:
            raise InputError(f"{where}: give an object with either prompt, a text, or messages, a list of objects")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise InputError(f"{where}: max_tokens={limit!r}: give a whole number, 1 or more, or nothing")
        yield content, limit


def _share_gpt(path: str, text: str, tokenizer: Any) -> Iterator[tuple[str, int | None]]:
    """Conversations that begin with something to ask and an answer; others are left out, as everybody does."""
    try:
        for entry in json.loads(text):
            asked, *rest = [str(turn["value"]) for turn in entry["conversations"][:2]] or [""]
            if asked and rest and rest[0]:
                tokens = 0 if tokenizer is None else len(tokenizer.encode(rest[0], add_special_tokens=False))
                yield asked, tokens or None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--dataset {path}: no ShareGPT file ({type(error).__name__}: {error}): give a list of objects with "
            "conversations, or JSONL"
        ) from None
