"""Rows of files as tokens: the checkpoint's chat format token by token, answers learnt, mistakes with file and line."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_m1.cli.checkpoint import open_checkpoint
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.errors import InputError
from ascend_m1_finetune.data import Padded, stacked, training_data
from ascend_m1_finetune.data.files import rows
from ascend_m1_finetune.data.info import COLUMNS, TAGS, sources
from ascend_m1_finetune.data.template import chat_document
from ascend_m1_finetune.packing import document, pack_documents
from ascend_m1_finetune.recipe import Recipe

TOKENIZER: Any = open_checkpoint(str(EMBEDDED)).tokenizer
ALPACA = {"instruction": "What is J45?", "input": "", "output": "Asthma"}


def write(folder: Path, content: Any, name: str = "rows.jsonl", **entry: Any) -> Recipe:
    """A data set of one file, and a recipe that names it."""
    text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    (folder / name).write_text(text, encoding="utf-8")
    info = {"rows": {"local_path": ".", "file_name": name, **entry}}
    (folder / "info.json").write_text(json.dumps(info))
    cache = str(folder / "cache")
    return Recipe("out", "m1-icd10", dataset="rows", custom_dataset_info=str(folder / "info.json"), cache_dir=cache)


def learnt(item: Any) -> str:
    return TOKENIZER.decode([label for label in item["labels"] if label != -100])


def whole(item: Any) -> str:
    return TOKENIZER.decode(item["input_ids"])


def only(recipe: Recipe) -> Any:
    (item,) = training_data(recipe, TOKENIZER, 0)
    return item


words = st.text(min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([True, False]), st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_a_conversation_is_its_chat_template_and_answers_are_what_the_model_is_asked_for(
    system: bool, turns: list[tuple[str, str]]
) -> None:
    """For any text, markers of the format in it included."""
    messages = [{"role": "system", "content": "Be brief."}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    made = chat_document(TOKENIZER, messages)
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert list(made.input_ids) == TOKENIZER(text, add_special_tokens=False)["input_ids"]
    wanted = [-100] * len(made.input_ids)
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = TOKENIZER.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
            begin = len(TOKENIZER(asked, add_special_tokens=False)["input_ids"])
            said = TOKENIZER.apply_chat_template(messages[: index + 1], tokenize=False)
            end = len(TOKENIZER(said, add_special_tokens=False)["input_ids"])
            wanted[begin:end] = made.input_ids[begin:end]
    assert list(made.labels) == wanted


def test_alpaca(tmp_path: Path) -> None:
    row = ALPACA | {"input": "Be brief.", "system": "You code.", "history": [["Hello", "Hi"]]}
    item = only(write(tmp_path, [row]))
    assert whole(item) == "<B_SYS>You code.<C_Q>Hello<C_A>Hi</s><C_Q>What is J45?\nBe brief.<C_A>Asthma</s>"
    assert learnt(item) == "Hi</s>Asthma</s>"


def test_columns_with_other_names_keep_the_usual_ones(tmp_path: Path) -> None:
    row = {"question": "What is J45?", "output": "Asthma", "system": "S"}
    item = only(write(tmp_path, [row], columns={"prompt": "question"}))
    assert whole(item) == "<B_SYS>S<C_Q>What is J45?<C_A>Asthma</s>"


@pytest.mark.parametrize("openai", [True, False])
def test_sharegpt_keeps_system_texts(openai: bool, tmp_path: Path) -> None:
    names = ("system", "user", "assistant") if openai else ("system", "human", "gpt")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    role, content = ("role", "content") if openai else ("from", "value")
    texts = ("S", "Q1", "A1", "Q2", "A2")
    turns = [{role: names[min(i, 2 - i % 2)], content: text} for i, text in enumerate(texts)]
    item = only(
        write(tmp_path, [{"conversations": turns}], formatting="sharegpt", **({"tags": tags} if openai else {}))
    )
    assert whole(item) == "<B_SYS>S<C_Q>Q1<C_A>A1</s><C_Q>Q2<C_A>A2</s>"
    assert learnt(item) == "A1</s>A2</s>"


def test_the_examples_of_the_document(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/finetune.md").read_text(encoding="utf-8")
    info, chat = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    row = re.search(r"`(\{\"question.*?\})`", text)
    assert row is not None
    for file, content in (("info.json", info), ("folder/rows.jsonl", row[1]), ("folder/chats.jsonl", chat)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content, encoding="utf-8")
    files = {"custom_dataset_info": str(tmp_path / "info.json"), "cache_dir": str(tmp_path / "cache")}
    items = training_data(Recipe("out", "m1-icd10", dataset="my_data,my_chats", **files), TOKENIZER, 0)
    assert [whole(item) for item in items] == ["<C_Q>What is J45?<C_A>Asthma</s>"] * 2


def test_every_name_of_columns_and_tags_is_in_the_document() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs/finetune.md").read_text(encoding="utf-8").split())
    renamed = {name: usual for form in COLUMNS.values() for name, usual in form.items() if name != usual} | TAGS
    assert [name for name, usual in renamed.items() if f"`{name}` (`{usual}`" not in text] == []


def test_text_is_learnt_whole_and_cut_into_pieces(tmp_path: Path) -> None:
    recipe = write(tmp_path, [{"text": "Asthma " * 30}], formatting="text")
    pieces = list(training_data(Recipe(**{**vars(recipe), "cutoff_len": 16}), TOKENIZER, 0))
    ids = [token for piece in pieces for token in piece["input_ids"]]
    assert ids == [*TOKENIZER("Asthma " * 30)["input_ids"], TOKENIZER.eos_token_id]
    assert len(pieces) > 1
    assert all(2 <= len(piece["input_ids"]) <= 16 for piece in pieces)
    assert all(piece["labels"][1:] == piece["input_ids"][1:] for piece in pieces)


def test_preference_pairs_teach_the_chosen_answer(tmp_path: Path) -> None:
    row = {"instruction": "What is J45?", "chosen": "Asthma", "rejected": "Gout"}
    item = only(write(tmp_path, [row], formatting="preference"))
    assert whole(item) == "<C_Q>What is J45?<C_A>Asthma</s>"


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list_is_read_like_json_lines(indent: int | None, tmp_path: Path) -> None:
    found = [ALPACA, ALPACA | {"output": "}],\n[{"}]
    path = tmp_path / "rows.json"
    path.write_text(" \n" + json.dumps(found, indent=indent))
    assert [row for _, row in rows(path)] == found
    if indent:
        lines = path.read_text().splitlines()
        assert [int(where.rpartition(" ")[2]) for where, _ in rows(path)] == [
            number for number, line in enumerate(lines, 1) if line == " {"
        ]


def test_rows_that_are_cut_or_left_out_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each time that the data is used, kept tokens or not."""
    found = [ALPACA, ALPACA | {"output": "Asthma " * 40}, *[ALPACA | {"instruction": "What is J45? " * 30}] * 2]
    recipe = Recipe(**{**vars(write(tmp_path, found)), "cutoff_len": 40})
    lines = ["1 rows are longer than cutoff_len=40: their ends are left out"]
    lines += ["2 rows are left out: no answer within cutoff_len=40"]
    for streaming in (False, False, True):
        items = list(training_data(Recipe(**{**vars(recipe), "streaming": streaming}), TOKENIZER, 0))
        assert learnt(items[0]) == "Asthma</s>"
        assert [len(item["input_ids"]) == 40 for item in items] == [False, True]
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ascend-m1: ")]
        assert said == [f"ascend-m1: {line}" for line in lines]
    with pytest.raises(InputError, match="rows: no row has an answer within cutoff_len=4"):
        training_data(Recipe(**{**vars(recipe), "cutoff_len": 4}), TOKENIZER, 0)


def test_a_tokenizer_without_a_chat_template(tmp_path: Path) -> None:
    plain = copy.deepcopy(TOKENIZER)
    plain.chat_template = None
    with pytest.raises(
        InputError, match=r"model .*m1_icd10: has no chat_template for conversations: give one, or form"
    ):
        training_data(write(tmp_path, [ALPACA]), plain, 0)
    assert len(training_data(write(tmp_path, [{"text": "x"}], formatting="text"), plain, 0)) == 1


def test_a_template_that_fails_in_another_way(tmp_path: Path) -> None:
    odd = copy.deepcopy(TOKENIZER)
    odd.chat_template = "{{ messages[0]['content'] + 1 }}"
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1: the chat template refuses the conversation \(can only"):
        training_data(write(tmp_path, [ALPACA]), odd, 0)


def turns(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in pairs]}


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("alpaca", '{"instruction": "x"}', "output is missing or empty: give some text"),
        ("alpaca", {"instruction": 3, "output": "y"}, "instruction is no text: give some text"),
        ("alpaca", ALPACA | {"history": "x"}, "history: give a list of [question, answer]"),
        ("alpaca", ALPACA | {"history": [["x"]]}, "history: ['x']: give a question and an answer"),
        ("alpaca", '{"instruction": ', "not JSON (Expecting value, character 16): mend it"),
        ("alpaca", "What is J45?,Asthma", "not JSON (Expecting value, character 1): give a JSON list or JSON lines"),
        ("alpaca", ALPACA | {"output": "a \ud83d"}, "\\ud83d is half of a character: mend the text"),
        ("text", {"text": "\udc00"}, "\\udc00 is half of a character: mend the text"),
        ("alpaca", "[1]", "a row must be an object, not list"),
        (
            "sharegpt",
            {"messages": []},
            "conversations is missing: give a list of turns, or name it otherwise by columns",
        ),
        ("sharegpt", {"conversations": []}, "conversations: give a list of turns"),
        ("sharegpt", turns(("gpt", "x")), "turn 1: assistant after nothing: expected system or user"),
        ("sharegpt", turns(("human", "x"), ("human", "y")), "turn 2: user after user: expected assistant"),
        ("sharegpt", turns(("human", "x")), "the last turn is no answer: end with gpt"),
        ("sharegpt", turns(("bot", "x")), "turn 1: from='bot': give one of human, gpt, system, observation"),
        ("sharegpt", turns(("human", "")), "turn 1: value is missing or no text"),
        ("text", {"txt": "x"}, "text is missing or empty: give some text"),
        ("preference", {"instruction": "x", "chosen": "y"}, "rejected is missing or empty: give some text"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(form: str, row: Any, message: str, tmp_path: Path) -> None:
    good = {
        "alpaca": ALPACA,
        "sharegpt": turns(("human", "x"), ("gpt", "y")),
        "text": {"text": "x"},
        "preference": {"instruction": "x", "chosen": "y", "rejected": "z"},
    }[form]
    bad = row if isinstance(row, str) else json.dumps(row)
    recipe = write(tmp_path, f"{json.dumps(good)}\n\n{bad}\n", formatting=form)
    with pytest.raises(InputError) as caught:
        training_data(recipe, TOKENIZER, 0)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 3: {message}")


@pytest.mark.parametrize("text", ["", "[]", "\n \n"])
def test_a_file_without_rows(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        training_data(write(tmp_path, text), TOKENIZER, 0)
    assert str(caught.value) == f"{tmp_path / 'rows.jsonl'}: has no rows: give some, or leave rows out of dataset"


def test_a_bad_line_of_a_json_list(tmp_path: Path) -> None:
    recipe = write(tmp_path, '[\n{"instruction": "x", "output": "y"},\n{"instruction" "x"}\n]', "rows.json")
    with pytest.raises(InputError, match=r"rows\.json, line 3: not JSON"):
        training_data(recipe, TOKENIZER, 0)
    for text, message in (
        ("[\n{}\n", "line 3: the list does not end"),
        ("[\n{},\n", "line 3: the list does not end"),
        ("[{}]\n[{}]\n", "line 2: something follows the list's end"),
        ("[{}]]", "line 1: something follows the list's end"),
        ("[{}\n{}]", "line 2: no comma after a row"),
        ("[{},\n,{}]", "line 2: not JSON"),
        ("[{},\n]", "line 2: not JSON"),
        ("[,{}]", "line 1: not JSON"),
    ):
        (tmp_path / "rows.json").write_text(text)
        with pytest.raises(InputError) as caught:
            list(rows(tmp_path / "rows.json"))
        assert str(caught.value).startswith(f"{tmp_path / 'rows.json'}, {message}")
    for text, count in (("[]", 0), ("[ {} ,\n{} ]\n \n", 2)):
        (tmp_path / "rows.json").write_text(text)
        assert len(list(rows(tmp_path / "rows.json"))) == count


def test_a_role_that_the_chat_template_refuses(tmp_path: Path) -> None:
    conversation = turns(("human", "x"), ("gpt", "y"), ("observation", "z"), ("gpt", "y"))
    with pytest.raises(InputError, match=r"line 1: the chat template refuses the conversation \(unknown role tool"):
        training_data(write(tmp_path, [conversation], formatting="sharegpt"), TOKENIZER, 0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"formating": "alpaca"}, "unknown key 'formating': did you mean 'formatting'"),
        ({"formatting": "csv"}, "formatting='csv': give one of alpaca, sharegpt, text, preference"),
        ({"file_name": None}, "give local_path, a folder, and file_name, a .json or .jsonl in it"),
        ({"file_name": "none.json"}, "there is no file"),
        ({"num_samples": 0}, "num_samples=0: give 1 or more"),
        ({"columns": {"answer": "x"}}, "columns has 'answer': known are prompt (instruction), query (input), "),
    ],
)
def test_entries_of_dataset_info(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        training_data(write(tmp_path, [ALPACA], **entry), TOKENIZER, 0)
    assert str(caught.value).startswith(f"{tmp_path / 'info.json'}, rows: {message}")


def test_an_unknown_data_set(tmp_path: Path) -> None:
    recipe = write(tmp_path, [ALPACA])
    with pytest.raises(InputError, match="dataset 'row' is in no dataset-info file: did you mean 'rows'"):
        sources("row", recipe.custom_dataset_info)


def test_samples_are_chosen_by_the_seed(tmp_path: Path) -> None:
    recipe = write(tmp_path, [ALPACA | {"output": str(i)} for i in range(50)], num_samples=5)
    drawn = [[learnt(item) for item in training_data(recipe, TOKENIZER, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5


def test_tokens_are_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write(tmp_path, [ALPACA])
    first = only(recipe)
    monkeypatch.setattr("ascend_m1_finetune.data.dataset.chat_document", None)  # not called again
    assert only(recipe) == first
    monkeypatch.undo()
    assert learnt(only(write(tmp_path, [ALPACA | {"output": "Gout"}]))) == "Gout</s>"


def test_a_stream_is_the_kept_data_set(tmp_path: Path) -> None:
    recipe = write(tmp_path, [ALPACA | {"output": str(i)} for i in range(5)])
    streamed = training_data(Recipe(**{**vars(recipe), "streaming": True}), TOKENIZER, 0)
    kept = list(training_data(recipe, TOKENIZER, 0))
    assert [{name: list(value) for name, value in item.items()} for item in streamed] == kept


def test_packed_rows_hold_all_documents(tmp_path: Path) -> None:
    recipe = write(tmp_path, [ALPACA | {"output": "x " * (i + 1)} for i in range(9)])
    items = list(training_data(recipe, TOKENIZER, 0))
    packed = training_data(Recipe(**{**vars(recipe), "packing": True, "cutoff_len": 64}), TOKENIZER, 0)
    assert len(packed) < len(items)
    assert int((packed.labels != -100).sum()) == sum(label != -100 for item in items for label in item["labels"])


def test_packed_rows_mix_the_data_sets_by_the_seed(tmp_path: Path) -> None:
    """Kept tokens stay as they were read; the same seed gives the same rows, as going on from a checkpoint needs."""
    files = {name: [ALPACA | {"output": f"{name} {i}"} for i in range(40)] for name in ("gout", "asthma")}
    info = {name: {"local_path": ".", "file_name": f"{name}.jsonl"} for name in files}
    for name, found in files.items():
        recipe = write(tmp_path, found, f"{name}.jsonl")
    (tmp_path / "info.json").write_text(json.dumps(info))
    changes = {"dataset": "gout, asthma", "packing": True, "cutoff_len": 128}
    first, again, other = (training_data(Recipe(**{**vars(recipe), **changes}), TOKENIZER, seed) for seed in (0, 0, 1))
    texts = [TOKENIZER.decode(row) for row in first.input_ids]
    assert sum("gout" in text and "asthma" in text for text in texts) > len(texts) // 2 > 2
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=8), st.integers(9, 14))
def test_the_mask_of_packed_rows_is_their_documents(sizes: list[int], length: int) -> None:
    documents = [document([([1] * (size - 1), False), ([2], True)]) for size in sizes]
    packed = pack_documents(documents, length, pad_id=2)
    batch = stacked([packed[row] for row in range(len(packed))])
    assert int(batch["attention_mask"].sum()) == sum(sizes)
    assert not (batch["attention_mask"].diff(dim=1) > 0).any()  # the tail is at the end
    assert all(torch.equal(batch[name], getattr(packed, name)) for name in ("input_ids", "labels", "position_ids"))


def test_the_collator_pads_at_the_end() -> None:
    batch = Padded(0)([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5], "labels": [-100]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
