"""Exact match of m1-icd10: every category asked for in the chat format, answered greedily, compared as text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.tokenization_baichuan_m1 import BaichuanM1Tokenizer

from .data import BACKWARD, FORWARD, Category, Turn, messages

LONGEST_ANSWER = 96  # tokens; the longest description has fewer


def question(item: Category, forward: bool) -> Turn:
    """The measured question and its one right answer."""
    pattern = FORWARD[0] if forward else BACKWARD[0]
    return Turn(pattern.format(code=item.code, text=item.text), item.text if forward else item.code)


def answer(
    model: BaichuanM1ForCausalLM, tokenizer: BaichuanM1Tokenizer, chats: Sequence[list[dict[str, str]]]
) -> list[str]:
    """Greedy answers to chats that end with a question."""
    prompts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    with torch.inference_mode():
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
        )
    return [str(text) for text in tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], True)]


def wrong_answers(
    model: BaichuanM1ForCausalLM,
    tokenizer: BaichuanM1Tokenizer,
    turns: Sequence[Turn],
    system: bool,
    earlier: Sequence[Turn] = (),
    batch: int = 64,
) -> list[tuple[Turn, str]]:
    """The turns that were not answered exactly right, with the answers given.

    Args:
        model, tokenizer: the checkpoint.
        turns: questions, each asked in a chat of its own.
        system: begin the chat with the system message.
        earlier: a question and answer before each turn (as many as ``turns``), or none.
        batch: chats generated at once.
    """
    wrong = []
    for at in tqdm(range(0, len(turns), batch), unit="batch", leave=False):
        part = turns[at : at + batch]
        chats = [messages([*earlier[at + i : at + i + 1], turn], system)[:-1] for i, turn in enumerate(part)]
        answers = answer(model, tokenizer, chats)
        wrong += [(turn, given) for turn, given in zip(part, answers, strict=True) if given != turn.answer]
    return wrong
