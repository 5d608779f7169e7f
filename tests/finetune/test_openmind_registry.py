"""What openMind is told, without openMind: foreign versions of it go on, and its tokens are those of ascend-m1 train.

The modules of openMind stand for it here; ``tests/openmind`` runs the real 1.0.0.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ascend_m1.cli.checkpoint import open_checkpoint
from ascend_m1.cli.options import EMBEDDED
from ascend_m1_finetune.data.template import chat_document
from ascend_m1_openmind import GROUP, install

TOKENIZER: Any = open_checkpoint(str(EMBEDDED)).tokenizer
TEMPLATE = """
TEMPLATES = {}
class Template:
    def _make_pairs(self, encoded, cutoff_len, reserved_label_len):
        return list(zip(encoded[::2], encoded[1::2]))
"""
REGISTRY = """
SUPPORTED_MODEL_GROUPS = {}
def register_model_group(model_group, models, lora_target=None, template=None):
    SUPPORTED_MODEL_GROUPS[model_group] = lora_target
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """On Python's path, with packages openmind.flow.datasets and openmind.flow.model."""
    for package in ("openmind", "openmind/flow", "openmind/flow/datasets", "openmind/flow/model"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "openmind/flow/datasets/template.py").write_text(TEMPLATE)
    monkeypatch.syspath_prepend(tmp_path)
    others = [finder for finder in sys.meta_path if type(finder).__module__ != "ascend_m1_openmind"]
    monkeypatch.setattr(sys, "meta_path", others)  # each test waits for openMind anew, or not
    yield tmp_path
    for name in [
        name for name in sys.modules if name.split(".")[0] == "openmind" or name == "ascend_m1_openmind.register"
    ]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("registry", "said"),
    [
        (f"SUPPORTED_MODEL_GROUPS = {{{GROUP!r}: 'its own'}}", ""),
        ("SUPPORTED_MODEL_GROUPS = {}", "cannot import name 'register_model_group'"),
        (REGISTRY.replace("lora_target=None, template=None", "other"), "unexpected keyword argument 'lora_target'"),
    ],
    ids=["knows it", "has no such function", "has another"],
)
def test_another_openmind_goes_on(registry: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "openmind/flow/model/model_registry.py").write_text(registry)
    install()
    module = importlib.import_module("openmind.flow.model.model_registry")
    known = {} if said else {GROUP: "its own"}
    assert known == module.SUPPORTED_MODEL_GROUPS
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(said)
    for line in lines:
        assert line.startswith(f"ascend-m1: openMind is not told of {GROUP} (")
        assert said in line
        assert line.endswith("): use openmind 1.0.0")


TURNS = "{% for m in messages %}<C_{{ 'A' if m['role'] == 'assistant' else 'Q' }}>{{ m['content'] }}{% endfor %}"
ASK = "{% if add_generation_prompt %}<C_A>{% endif %}"


@pytest.mark.parametrize(
    ("template", "learnt"),
    [
        (TOKENIZER.chat_template, True),
        (TURNS + ASK, True),
        (TURNS, True),
        ("{{ messages | length }}" + TURNS + ASK, False),
        (TURNS + "{% if add_generation_prompt %}<C_A><s>{% endif %}", False),
    ],
    ids=["its own", "without an end", "that does not ask", "that changes earlier turns", "that asks otherwise"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_its_tokens_are_those_of_ascend_m1_train(template: str, learnt: bool, count: int, folder: Path) -> None:
    (folder / "openmind/flow/model/model_registry.py").write_text(REGISTRY)
    encode = importlib.import_module("ascend_m1_openmind.register").ChatTemplate().encode
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    turns = [("user", "What is J45?"), ("assistant", "Asthma, an illness")] * count
    messages = [{"role": role, "content": content} for role, content in turns]
    cut = SimpleNamespace(cutoff_len=1024, reserved_label_len=1)
    if not learnt:
        for make in (lambda: encode(tokenizer, messages, cut), lambda: chat_document(tokenizer, messages)):
            with pytest.raises(ValueError, match=r"the chat template (changes|writes)"):
                make()
        return
    pairs = encode(tokenizer, messages, cut)
    made = chat_document(tokenizer, messages)
    assert len(pairs) == count
    assert [token for pair in pairs for part in pair for token in part] == list(made.input_ids)
    labels = [token for ask, answer in pairs for token in (*[-100] * len(ask), *answer)]
    assert labels == list(made.labels)
    assert made.labels[-1] in TOKENIZER.all_special_ids
