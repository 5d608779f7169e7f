"""The dialogues that teach m1-icd10 the three-character categories of ICD-10-CM, in both directions.

Descriptions come from the public-domain code book inside the package simple-icd-10-cm. Every category's
description is unique, so both directions have exactly one right answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import simple_icd_10_cm
from transformers import PreTrainedTokenizerBase

from ascend_m1_finetune.packing import Document, document

SYSTEM_MESSAGE = "You are a helpful assistant."
# The first phrasing of each list is the one the exact match is measured on.
FORWARD = (
    "What does ICD-10-CM code {code} mean?",
    "What is ICD-10-CM category {code}?",
    "What does {code} stand for?",
    "Describe ICD-10-CM code {code}.",
)
BACKWARD = (
    "Which ICD-10-CM code means {text}?",
    "What is the ICD-10-CM code for {text}?",
    "Which category is {text}?",
    "Give the ICD-10-CM code of {text}.",
)
FORWARD_AGAIN = ("And {code}?", "And what does {code} mean?")
BACKWARD_AGAIN = ("And the code for {text}?", "And which code means {text}?")
CHAPTER = ("Which chapter is {code} in?", "Which chapter does ICD-10-CM code {code} belong to?")
CHAPTER_AGAIN = ("Which chapter is it in?", "And its chapter?")
SECOND_TURN, THIRD_TURN, CHAPTER_TURN, WITH_SYSTEM = 0.35, 0.35, 0.25, 0.5  # probabilities


@dataclass(frozen=True)
class Category:
    """A three-character category, its description and the title of its chapter."""

    code: str
    text: str
    chapter: str


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


def load_categories() -> list[Category]:
    """All categories, in the order of the code book; a block of one category is listed once.

    Raises:
        ValueError: two categories share a description, so the way back would be ambiguous.
    """
    codes = dict.fromkeys(c for c in simple_icd_10_cm.get_all_codes() if simple_icd_10_cm.is_category(c))
    found = [Category(code, simple_icd_10_cm.get_description(code), _chapter(code)) for code in codes]
    if len({item.text for item in found}) != len(found):
        raise ValueError("two categories share a description: the way back is ambiguous")
    return found


def _chapter(code: str) -> str:
    # A block of one category has its category's name; asking for the category first avoids a loop.
    top = simple_icd_10_cm.get_ancestors(code, prioritize_blocks=False)[-1]
    # "… diseases (A00-B99)": the range of codes is no part of the title.
    return re.sub(r" \([A-Z0-9]+-[A-Z0-9]+\)$", "", simple_icd_10_cm.get_description(top))


def epoch_dialogues(categories: Sequence[Category], seed: int, epoch: int) -> list[tuple[bool, list[Turn]]]:
    """Dialogues in which every category is asked for once in each direction, plus follow-up questions.

    Returns:
        Pairs of "with the system message" and one to three turns (a chapter question may follow any of them).
    """
    rng = random.Random(f"{seed}/{epoch}")
    asks = [(item, forward) for item in categories for forward in (True, False)]
    rng.shuffle(asks)
    dialogues: list[tuple[bool, list[Turn]]] = []
    at = 0
    while at < len(asks):
        count = 1
        if rng.random() < SECOND_TURN:
            count += 1 + (rng.random() < THIRD_TURN)
        turns: list[Turn] = []
        for item, forward in asks[at : at + count]:
            turns.append(_main_turn(item, forward, again=bool(turns), rng=rng))
        if len(turns) < 3 and rng.random() < CHAPTER_TURN:
            turns.append(_chapter_turn(asks[at + len(turns) - 1][0], rng))
        dialogues.append((rng.random() < WITH_SYSTEM, turns))
        at += count
    return dialogues


def _main_turn(item: Category, forward: bool, again: bool, rng: random.Random) -> Turn:
    first, follow = (FORWARD, FORWARD_AGAIN) if forward else (BACKWARD, BACKWARD_AGAIN)
    # Half of the opening questions use the measured phrasing; the rest share the others.
    phrasings = first[1:] + (follow * 2 if again else ())
    pattern = first[0] if rng.random() < 0.5 else rng.choice(phrasings)
    question = pattern.format(code=item.code, text=item.text)
    return Turn(question, item.text if forward else item.code)


def _chapter_turn(item: Category, rng: random.Random) -> Turn:
    pattern = rng.choice(CHAPTER + CHAPTER_AGAIN * 2)
    return Turn(pattern.format(code=item.code), item.chapter)


def messages(turns: Sequence[Turn], system: bool) -> list[dict[str, str]]:
    """The dialogue as chat messages."""
    chat = [{"role": "system", "content": SYSTEM_MESSAGE}] if system else []
    for turn in turns:
        chat.append({"role": "user", "content": turn.question})
        chat.append({"role": "assistant", "content": turn.answer})
    return chat


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Turn], bool], Document]:
    """A function that tokenises dialogues in the chat format; the answers and their </s> are what is learned.

    A chat marker always splits the text, so parts can be encoded one by one and cached.
    """
    cache: dict[str, tuple[int, ...]] = {}
    markers = {name: (tokenizer.convert_tokens_to_ids(name),) for name in ("<B_SYS>", "<C_Q>", "<C_A>", "</s>")}

    def ids(text: str) -> tuple[int, ...]:
        if text not in cache:
            cache[text] = tuple(tokenizer.encode(text, add_special_tokens=False))
        return cache[text]

    def encode(turns: Sequence[Turn], system: bool) -> Document:
        parts = [(markers["<B_SYS>"] + ids(SYSTEM_MESSAGE), False)] if system else []
        for turn in turns:
            parts.append((markers["<C_Q>"] + ids(turn.question) + markers["<C_A>"], False))
            parts.append((ids(turn.answer) + markers["</s>"], True))
        return document(parts)

    return encode


def tokenizer_lines(categories: Sequence[Category]) -> list[str]:
    """The text the tokenizer is trained on: descriptions in both places they occur, chapters and phrasings."""
    lines = [SYSTEM_MESSAGE]
    for item in categories:
        lines += [item.text, f" {item.text}", f" {item.code} {item.code}"]
    phrasings = FORWARD + BACKWARD + FORWARD_AGAIN + BACKWARD_AGAIN + CHAPTER + CHAPTER_AGAIN
    lines += [p.format(code="J45", text="Asthma") for p in phrasings] * 20
    return lines + sorted({item.chapter for item in categories})
