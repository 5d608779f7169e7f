"""``chat``: the answers of a conversation without cache, but only new tokens are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.cli.checkpoint import open_checkpoint
from ascend_m1.conversation import Conversation
from ascend_m1.errors import InputError
from ascend_m1.generation import generate_text
from ascend_m1.prompts import chat_ids, chat_text
from ascend_m1.sampling import SamplingOptions

from .conftest import Cli


@pytest.fixture
def talk(checkpoint: Path) -> Conversation:
    opened = open_checkpoint(str(checkpoint))
    model = BaichuanM1ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    # Only letters come out, so that the text of an answer becomes the tokens it was made of.
    letters = opened.tokenizer("abcdefgh")["input_ids"]
    model.generation_config.suppress_tokens = [i for i in range(model.config.vocab_size) if i not in letters]
    return Conversation(model, opened.tokenizer, SamplingOptions(max_new_tokens=4))


def computed(talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Columns of every forward from now on."""
    columns: list[int] = []
    embed = talk.model.model.embed

    def count(ids: Any) -> Any:
        columns.append(ids.shape[1])
        return embed(ids)

    monkeypatch.setattr(talk.model.model, "embed", count)
    return columns


def test_a_turn_computes_only_what_is_new(talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = computed(talk, monkeypatch)
    talk.answer("hi", print)
    assert columns == [4, 1, 1, 1]  # <C_Q> h i <C_A>, and the last token is not fed back
    columns.clear()
    talk.answer("more", print)
    # the last token of the answer, </s>, and <C_Q> m o r e <C_A>
    assert columns == [8, 1, 1, 1]
    assert talk.reused == 7


def test_answers_are_those_without_a_cache(talk: Conversation) -> None:
    for text in ("hi", "more", "and more", "bye"):
        got = talk.answer(text, lambda piece: None)
        pieces: list[str] = []
        ids = chat_ids(talk.tokenizer, chat_text(talk.tokenizer, talk.messages[:-1]))
        generate_text(talk.model, talk.tokenizer, ids, talk.options, pieces.append)
        assert got == "".join(pieces)
    assert talk.reused > 0


def test_a_rendering_that_does_not_extend_the_cache_restarts_it(talk: Conversation) -> None:
    first = talk.answer("hi", lambda piece: None)
    talk.messages[0]["content"] = "ho"
    talk.answer("more", lambda piece: None)
    assert talk.reused == 0
    talk.reset()
    assert talk.messages == []
    assert talk.answer("hi", lambda piece: None) == first


def test_ctrl_c_keeps_what_was_said(talk: Conversation) -> None:
    said: list[str] = []

    def stop(piece: str) -> None:
        said.append(piece)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.answer("hi", stop)
    assert talk.messages[-1] == {"role": "assistant", "content": "".join(said)}
    assert talk.answer("more", lambda piece: None)


def test_a_refused_message_changes_nothing(talk: Conversation) -> None:
    talk.answer("hi", lambda piece: None)
    before = list(talk.messages)
    for text in ("", " ", "x" * 100):
        with pytest.raises(InputError):
            talk.answer(text, lambda piece: None)
    assert talk.messages == before
    talk.answer("more", lambda piece: None)
    assert talk.reused == 7


def test_piped_conversation(cli: Cli, checkpoint: Path) -> None:
    common = ("chat", "--model", checkpoint, "--max-new-tokens", 3)
    ran = cli(*common, stdin=b"hi\n\n/reset\nhi\n/exit\nnot read\n")
    assert (ran.status, ran.err) == (0, "")
    half = len(ran.out) // 2
    assert ran.out[:half] == ran.out[half:]


def test_piped_mistakes_are_reported_and_the_rest_is_answered(cli: Cli, checkpoint: Path) -> None:
    common = ("chat", "--model", checkpoint, "--max-new-tokens", 3)
    ran = cli(*common, stdin=b"x" * 100 + b"\n/what\nhi\n")
    assert ran.status == 2
    assert ran.err.splitlines()[0].endswith("/reset begins anew")
    assert "/what: no such command" in ran.err.splitlines()[1]
    assert ran.out == cli(*common, stdin=b"hi\n").out
    left = cli(*common, stdin=b"/what\nhi\n/exit\n")  # leaving is no pardon, as the help says
    assert (left.status, left.out) == (2, ran.out)
    assert "the exit status is 2" in " ".join(cli("chat", "--help").out.split())
    assert "line 2: byte 0" in cli(*common, stdin=b"hi\n\xff\n").err


def test_ctrl_c_stops_the_answer_not_the_program(cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Conversation.answer

    def interrupted(self: Conversation, text: str, emit: Any) -> str:
        if text == "stop":
            raise KeyboardInterrupt
        return answer(self, text, emit)

    monkeypatch.setattr(Conversation, "answer", interrupted)
    common = ("chat", "--model", checkpoint, "--max-new-tokens", 3)
    ran = cli(*common, stdin=b"stop\nhi\n")
    assert (ran.status, ran.out) == (0, "\n" + cli(*common, stdin=b"hi\n").out)
