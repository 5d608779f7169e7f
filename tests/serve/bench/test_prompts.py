"""Prompts have the lengths asked for, depend on the seed alone, and come out of files as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import InputError, TokenizerError
from ascend_m1_serve.bench.prompts import Prompt, open_tokenizer, random_prompts, read_prompts


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000))
def test_words(count: int, length: int, seed: int) -> None:
    prompts = random_prompts(count, str(length), "2:5", seed)
    assert [len(str(prompt.content).split(" ")) for prompt in prompts] == [length] * count
    assert all(2 <= prompt.max_tokens <= 5 for prompt in prompts)
    assert prompts == random_prompts(count, str(length), "2:5", seed)


def test_prompts_differ() -> None:
    prompts = random_prompts(50, "20", "1", 0)
    assert len({prompt.content for prompt in prompts}) == 50
    assert prompts != random_prompts(50, "20", "1", 1)


@settings(max_examples=20)
@given(st.integers(1, 300), st.integers(0, 1000))
def test_exact_tokens(length: int, seed: int) -> None:
    from transformers import PreTrainedTokenizerFast

    (prompt,) = random_prompts(1, str(length), "1", seed, open_tokenizer(str(EMBEDDED)))
    plain = PreTrainedTokenizerFast(tokenizer_file=str(EMBEDDED / "tokenizer.json"))
    assert len(plain.encode(prompt.content, add_special_tokens=False)) == length


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="is not a directory: give one"):
        open_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(TokenizerError, match="cannot be used"):
        open_tokenizer(str(tmp_path))


def write(path: Path, *entries: object) -> str:
    path.write_text("\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries), encoding="utf-8")
    return str(path)


def test_lines(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "头\u2028痛"}]
    path = write(tmp_path / "a.jsonl", {"prompt": "one"}, {"messages": chat, "max_tokens": 9}, {"prompt": "three"})
    prompts = read_prompts(path, "4", 0, chat=True)
    assert sorted(prompts, key=repr) == sorted([Prompt("one", 4), Prompt(chat, 9), Prompt("three", 4)], key=repr)
    with pytest.raises(InputError, match="holds messages: give --endpoint chat"):
        read_prompts(path, "4", 0, chat=False)


def test_order_depends_on_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"prompt": str(i)} for i in range(30)))
    first = [prompt.content for prompt in read_prompts(path, "4", 0, chat=False)]
    assert first == [prompt.content for prompt in read_prompts(path, "4", 0, chat=False)]
    assert first != [prompt.content for prompt in read_prompts(path, "4", 1, chat=False)]
    assert sorted(map(str, first)) == sorted(map(str, range(30)))


def test_share_gpt(tmp_path: Path) -> None:
    def turns(*texts: str) -> dict[str, object]:
        return {"id": "x", "conversations": [{"from": "human", "value": text} for text in texts]}

    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([turns("ask", "blood cells", "more"), turns("alone"), turns(), turns("", "answer")]))
    assert read_prompts(str(path), "4", 0, chat=True) == [Prompt("ask", 4)]
    tokenizer = open_tokenizer(str(EMBEDDED))
    tokens = len(tokenizer.encode("blood cells", add_special_tokens=False))
    assert read_prompts(str(path), "400", 0, chat=True, tokenizer=tokenizer) == [Prompt("ask", tokens)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no prompt in it"),
        ("\n \n", "no prompt in it"),
        ('{"prompt": "a"}\n{', "line 2: no JSON"),
        ("17", "line 1: give an object"),
        ('{"prompt": ""}', "line 1: give an object"),
        ('{"prompt": "a", "messages": [{}]}', "line 1: give an object"),
        ('{"messages": ["a"]}', "line 1: give an object"),
        ('{"messages": []}', "line 1: give an object"),
        ('{"prompt": "a", "max_tokens": 0}', "line 1: max_tokens=0: give a whole number"),
        ('{"prompt": "a", "max_tokens": true}', "line 1: max_tokens=True: give a whole number"),
        ("[", "no ShareGPT file"),
        ("[1]", "no ShareGPT file"),
        ('[{"conversations": [{"from": "human"}]}]', "no ShareGPT file"),
        ('[{"conversations": {}}]', "no ShareGPT file"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_prompts(str(path), "4", 0, chat=True)
    assert str(path) in str(raised.value)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_prompts(str(tmp_path / "absent"), "4", 0, chat=True)
    (tmp_path / "latin").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(InputError, match="byte 12 is not valid UTF-8"):
        read_prompts(str(tmp_path / "latin"), "4", 0, chat=True)
