"""The shipped checkpoint: it answers as its model card says, and its training can be interrupted."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_m1_icd10
from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.tokenization_baichuan_m1 import BaichuanM1Tokenizer, check_vocabulary, register_tokenizer
from m1_icd10.data import (
    SYSTEM_MESSAGE,
    Category,
    Turn,
    encoder,
    epoch_dialogues,
    load_categories,
    messages,
)
from m1_icd10.evaluation import answer, question, wrong_answers

register_tokenizer(BaichuanM1Config)

SHIPPED = Path(__file__).parents[2] / "ascend_m1" / "checkpoints" / "m1_icd10"
LIMIT = 12 * 1024 * 1024
ASTHMA = Turn("What does ICD-10-CM code J45 mean?", "Asthma")


@cache
def loaded() -> tuple[BaichuanM1ForCausalLM, BaichuanM1Tokenizer]:
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(SHIPPED)


@cache
def categories() -> list[Category]:
    return load_categories()


def test_folder_is_complete_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    assert {"README.md", "loss.png", "model.safetensors", "config.json", "generation_config.json"} <= set(sizes)
    assert {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"} <= set(sizes)
    assert sum(sizes.values()) <= LIMIT


def test_published_architecture() -> None:
    model, tokenizer = loaded()
    check_vocabulary(tokenizer, model.config)
    geometries = {(spec.kind, spec.heads, spec.kv_heads, spec.head_dim) for spec in model.config.layer_specs}
    assert geometries == {("global", 2, 1, 128), ("window", 4, 2, 64)}
    assert json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"


@pytest.mark.parametrize("forward", [True, False], ids=["code_to_description", "description_to_code"])
@pytest.mark.parametrize("system", [False, True], ids=["without_system", "with_system"])
def test_a_sample_is_answered_exactly(forward: bool, system: bool) -> None:
    """The whole list takes minutes: scripts/evaluate_m1_icd10.py measures it; here is a fixed sample of 32."""
    sample = random.Random(3).sample(categories(), 32)
    wrong = wrong_answers(*loaded(), [question(item, forward) for item in sample], system)
    # All are right where this was measured; another processor's rounding may tip one.
    assert len(wrong) <= 1, wrong


def test_the_card_states_the_promised_exact_match() -> None:
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for direction in ("code to description", "description to code"):
        found = re.search(rf"\| {direction} \| ([\d,]+) of ([\d,]+) \|", card)
        assert found is not None
        right, asked = (int(number.replace(",", "")) for number in found.groups())
        assert asked == len(categories())
        assert right / asked >= 0.95


def test_examples_of_the_card() -> None:
    model, tokenizer = loaded()
    chats = [
        messages([ASTHMA], system=False)[:-1],
        [{"role": "user", "content": "Which ICD-10-CM code means Asthma?"}],
        [*messages([ASTHMA], system=True), {"role": "user", "content": "Which chapter is it in?"}],
    ]
    assert answer(model, tokenizer, chats) == ["Asthma", "J45", "Diseases of the respiratory system"]


def test_follow_up_question_in_one_chat() -> None:
    model, tokenizer = loaded()
    chat = [*messages([ASTHMA], system=False), {"role": "user", "content": "And the code for Cholera?"}]
    assert answer(model, tokenizer, [chat]) == ["A00"]


def test_categories_are_unambiguous() -> None:
    found = categories()
    assert len(found) == len({item.code for item in found}) == len({item.text for item in found})
    assert all(len(item.code) == 3 for item in found)


def test_an_epoch_asks_for_everything_once_in_each_direction() -> None:
    found = categories()
    dialogues = epoch_dialogues(found, seed=1, epoch=2)
    assert all(1 <= len(turns) <= 3 for _, turns in dialogues)
    answers = [turn.answer for _, turns in dialogues for turn in turns]
    assert sum(text in {item.code for item in found} for text in answers) == len(found)
    chapters = {item.chapter for item in found}
    assert sum(text in {item.text for item in found} - chapters for text in answers) >= len(found) - len(chapters)
    assert dialogues == epoch_dialogues(found, seed=1, epoch=2) != epoch_dialogues(found, seed=1, epoch=3)


def test_training_documents_are_the_chat_template() -> None:
    _, tokenizer = loaded()
    encode = encoder(tokenizer)
    for system, turns in epoch_dialogues(categories(), seed=0, epoch=0)[:200]:
        made = encode(turns, system)
        assert list(made.input_ids) == tokenizer.apply_chat_template(messages(turns, system))["input_ids"]
        learned = [token for token in made.labels if token != -100]
        assert tokenizer.decode(learned) == "".join(f"{turn.answer}</s>" for turn in turns)
    assert tokenizer.decode(encode([], True).input_ids, skip_special_tokens=True) == SYSTEM_MESSAGE


def test_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    options = ["--steps", "4", "--warmup", "1", "--decay", "2", "--rows", "2", "--row-length", "128"]
    options += ["--threads", "1"]
    whole, parts = tmp_path / "whole" / "out", tmp_path / "parts" / "out"
    train_m1_icd10.main(["--output", str(whole), *options])
    train_m1_icd10.main(["--output", str(parts), *options, "--stop-after", "2"])
    assert not (parts / "model.safetensors").exists()
    train_m1_icd10.main(["--output", str(parts), *options, "--resume"])
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (parts / name).read_bytes() == (SHIPPED / name).read_bytes(), f"{name} is not reproducible"
