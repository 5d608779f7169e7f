"""``generate``: what is printed is what transformers would have generated, as it comes and with nothing beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.cli.checkpoint import open_checkpoint
from ascend_m1.device import choose_dtype
from ascend_m1.errors import InputError
from ascend_m1.generation import generate_text
from ascend_m1.prompts import plain_ids
from ascend_m1.sampling import SamplingOptions
from ascend_m1.text_stream import TextStream

from .conftest import CONTEXT, Cli


def expected(checkpoint: Path, text: str, new: int, **options: Any) -> str:
    """What plain transformers gives in float32."""
    tokenizer = open_checkpoint(str(checkpoint)).tokenizer
    model = BaichuanM1ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, pad_token_id=0, **options)
    decoded: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return decoded


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("hello",), "<C_Q>hello<C_A>"),
        (("hello", "--system", "be kind"), "<B_SYS>be kind<C_Q>hello<C_A>"),
        (("hello", "--raw"), "hello"),
    ],
)
def test_greedy_is_what_transformers_gives(cli: Cli, checkpoint: Path, arguments: tuple[str, ...], text: str) -> None:
    ran = cli("generate", *arguments, "--model", checkpoint, "--dtype", "float32", "--max-new-tokens", 12)
    assert ran == (0, expected(checkpoint, text, 12, do_sample=False) + "\n", "")


def test_a_folder_without_an_adapter(cli: Cli, tmp_path: Path) -> None:
    ran = cli("generate", "--adapter", tmp_path, "x")
    hint = "give an adapter's folder, as `ascend-m1 train` or PEFT writes it"
    assert (ran.status, ran.err) == (2, f"ascend-m1: error: adapter {tmp_path} holds no adapter_config.json: {hint}\n")


def test_beams(cli: Cli, checkpoint: Path) -> None:
    ran = cli(
        "generate", "--raw", "ab", "--model", checkpoint, "--dtype", "float32", "--max-new-tokens", 6, "--num-beams", 3
    )
    assert ran == (0, expected(checkpoint, "ab", 6, do_sample=False, num_beams=3) + "\n", "")


def test_prompt_sources_agree(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Grüße, 你好\n", encoding="utf-8")
    common = ("--model", checkpoint, "--max-new-tokens", 4)
    answers = {
        cli("generate", "Grüße, 你好", *common),
        cli("generate", "--file", path, *common),
        cli("generate", *common, stdin=path.read_bytes()),
        cli("generate", "-", *common, stdin=path.read_bytes()),
    }
    assert len(answers) == 1
    assert answers.pop().status == 0


def test_a_seed_repeats_and_no_seed_does_not(cli: Cli, checkpoint: Path) -> None:
    common = ("generate", "hello", "--model", checkpoint, "--max-new-tokens", 12, "--temperature", 1)
    assert cli(*common, "--seed", 3) == cli(*common, "--seed", 3)
    assert len({cli(*common).out for _ in range(3)}) > 1


def test_temperature_zero_is_greedy(cli: Cli, checkpoint: Path) -> None:
    common = ("generate", "hello", "--model", checkpoint, "--max-new-tokens", 8)
    assert cli(*common) == cli(*common, "--temperature", 0) == cli(*common, "--do-sample", "--top-k", 1)


def test_generation_ends_with_the_context(cli: Cli, checkpoint: Path) -> None:
    prompt = "x" * (CONTEXT - 5)  # and two markers: room for three
    ran = cli("generate", prompt, "--model", checkpoint, "--max-new-tokens", 10)
    assert ran.status == 0
    assert f"at most 3 new tokens: the prompt takes {CONTEXT - 3} of the context's {CONTEXT}" in ran.err
    assert ran.err.count("\n") == 1
    assert cli("generate", prompt, "--model", checkpoint) == (0, ran.out, "")


def test_text_comes_token_by_token(checkpoint: Path) -> None:
    opened = open_checkpoint(str(checkpoint))
    model = BaichuanM1ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    pieces: list[str] = []
    new = generate_text(
        model, opened.tokenizer, plain_ids(opened.tokenizer, "ab"), SamplingOptions(max_new_tokens=10), pieces.append
    )
    assert "".join(pieces) == opened.tokenizer.decode(new, skip_special_tokens=True)
    assert len(pieces) > 1


@pytest.mark.parametrize("text", ["plain", "Grüße", "你好，世界", "a🙂b", "🙂", "x\n\n y"])
def test_streamed_characters_are_whole(checkpoint: Path, text: str) -> None:
    tokenizer = open_checkpoint(str(checkpoint)).tokenizer
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for index in tokenizer(text)["input_ids"]:
        stream.take([index])
    stream.end()
    assert pieces == list(text)


def test_stream_keeps_bytes_that_never_become_a_character(checkpoint: Path) -> None:
    tokenizer = open_checkpoint(str(checkpoint)).tokenizer
    ids = tokenizer("a你")["input_ids"][:-1]
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for index in ids:
        stream.take([index])
    stream.end()
    assert "".join(pieces) == tokenizer.decode(ids)


def test_options_override_the_checkpoint() -> None:
    base = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9, max_new_tokens=5, repetition_penalty=1.1)
    kept = SamplingOptions().resolve(base, room=100)
    assert (kept.do_sample, kept.temperature, kept.top_p, kept.top_k) == (True, 0.7, 0.9, 0)
    assert (kept.max_new_tokens, kept.repetition_penalty) == (5, 1.1)
    greedy = SamplingOptions(temperature=0.0, max_new_tokens=9).resolve(base, room=7)
    assert (greedy.do_sample, greedy.temperature, greedy.max_new_tokens) == (False, None, 7)


def test_the_tokenizers_end_counts_where_the_checkpoint_names_none() -> None:
    for named, end in ((3, 3), ([3, 4], [3, 4]), (None, 7)):
        assert SamplingOptions().resolve(GenerationConfig(eos_token_id=named), 100, end=7).eos_token_id == end


def test_auto_dtype_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("ascend_m1.device.cpu_flags", lambda: {"amx_bf16"})
    assert choose_dtype("auto", cpu, torch.bfloat16) == (torch.bfloat16, None)
    assert choose_dtype("auto", cpu, torch.float32) == (torch.float32, None)
    monkeypatch.setattr("ascend_m1.device.cpu_flags", set)
    dtype, reason = choose_dtype("auto", cpu, torch.bfloat16)
    assert dtype == torch.float32
    assert reason is not None
    assert "bfloat16" in reason
    assert choose_dtype("bfloat16", cpu, torch.float32) == (torch.bfloat16, None)


def test_options_refuse_in_the_library_too() -> None:
    with pytest.raises(InputError, match="top_p=nan"):
        SamplingOptions(top_p=float("nan"))
