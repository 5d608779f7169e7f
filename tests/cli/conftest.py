"""A tiny random checkpoint with a byte-level tokenizer, and the command line run in this process."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.cli import main

SPECIAL = ("<unk>", "<s>", "</s>", "<B_SYS>", "<C_Q>", "<C_A>")
TEMPLATE = (
    "{%- set marks = {'system': '<B_SYS>', 'user': '<C_Q>', 'assistant': '<C_A>'} -%}"
    "{%- for message in messages -%}{{- marks[message['role']] ~ message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<C_A>{%- endif -%}"
)
CONTEXT = 64


def tiny_config() -> BaichuanM1Config:
    """Two layers, one of each kind, with a window shorter than the context."""
    return BaichuanM1Config(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_swa_attention_heads=4,
        num_swa_key_value_heads=2,
        sliding_window=8,
        max_position_embeddings=CONTEXT,
        eos_token_id=2,
    )


def write_tokenizer(folder: Path) -> None:
    """One token a byte, so that lengths can be counted and any text can come back."""
    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "BaichuanTokenizer", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two shards; not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(7)
    model = BaichuanM1ForCausalLM(tiny_config()).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="30KB")
    write_tokenizer(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


class Ran(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``ascend-m1`` with these arguments and this standard input."""

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Ran(status, captured.out, captured.err)

    return run
