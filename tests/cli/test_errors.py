"""A mistake gives one line on stderr that names what is wrong and the remedy, status 2, and nothing on stdout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import CONTEXT, Cli, Ran


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


def edit_tensors(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Change one tensor in its shard, or remove it."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = folder / index["weight_map"][name]
    tensors = load_file(shard)
    changed = change(tensors.pop(name))
    save_file(tensors if changed is None else tensors | {name: changed}, shard, metadata={"format": "pt"})


def add_tensor(folder: Path, name: str) -> None:
    """Put one more tensor into the first shard."""
    shard = first_shard(folder)
    save_file(load_file(shard) | {name: torch.ones(2)}, shard, metadata={"format": "pt"})


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def truncate(folder: Path) -> None:
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-10])


def corrupt_header(folder: Path) -> None:
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:8] + b"\x00" * 40 + shard.read_bytes()[48:])


def exported(folder: Path) -> None:
    """In place of weights."""
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "mindir.json").write_text("{}")


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


CONFIG = "config.json"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "config missing": (lambda f: (f / CONFIG).unlink(), r"config\.json.*not found"),
    "config not JSON": (lambda f: (f / CONFIG).write_text("{"), r"config\.json.*not valid JSON"),
    "config a list": (lambda f: (f / CONFIG).write_text("[]"), r"config\.json.*not a JSON object"),
    "field missing": (lambda f: edit_json(f / CONFIG, num_key_value_heads=None), r"config\.json.*num_key_value_heads"),
    "field contradicts": (
        lambda f: edit_json(f / CONFIG, num_attention_heads=3),
        r"config\.json.*num_attention_heads=3",
    ),
    "field negative": (lambda f: edit_json(f / CONFIG, vocab_size=-1), r"config\.json.*vocab_size=-1"),
    "dtype unknown": (lambda f: edit_json(f / CONFIG, dtype="x"), r"config\.json"),
    "field a word": (lambda f: edit_json(f / CONFIG, attention_dropout="x"), r"config\.json.*attention_dropout|float"),
    "another model": (lambda f: edit_json(f / CONFIG, model_type="llama"), r"model_type='llama'"),
    "generation config": (lambda f: (f / "generation_config.json").write_text("x"), r"generation_config\.json"),
    "truncated shard": (truncate, r"00001-of-.*truncated or corrupt"),
    "corrupt header": (corrupt_header, r"00001-of-.*truncated or corrupt"),
    "missing shard": (lambda f: first_shard(f).unlink(), r"00001-of-.*not found"),
    "an adapter": (lambda f: (f / CONFIG).rename(f / "adapter_config.json"), r"is an adapter: give it as --adapter"),
    "MindIR": (exported, r"no model\.safetensors, but MindIR: run it with `ascend-m1 generate --backend mindspore`"),
    "no weights": (lambda f: [p.unlink() for p in f.glob("model*")], r"no model\.safetensors"),
    "missing tensor": (lambda f: edit_tensors(f, "model.norm.weight", lambda t: None), r"model\.norm\.weight.*missing"),
    "wrong shape": (lambda f: edit_tensors(f, "model.norm.weight", lambda t: t[:-1]), r"model\.norm\.weight.*shape"),
    "tokenizer missing": (without_tokenizer, r"tokenizer\.json.*copy"),
    "tokenizer corrupt": (lambda f: (f / "tokenizer.json").write_text('{"a": 1}'), r"tokenizer\.json.*again"),
    "tokenizer not JSON": (lambda f: (f / "tokenizer.json").write_text("{"), r"tokenizer\.json.*again"),
    "weights of whole numbers": (
        lambda f: edit_tensors(f, "model.norm.weight", lambda t: t.int()),
        r"model\.norm\.weight is stored as I32",
    ),
    "weights of another model": (
        lambda f: add_tensor(f, "model.layers.7.mlp.up_proj.weight"),
        r"layers\.7.*has no place",
    ),
    "weights with NaN": (
        lambda f: edit_tensors(f, "model.norm.weight", lambda t: t * float("nan")),
        r"NaN.*copy the weights again",
    ),
    "index of other things": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}'),
        r"index\.json.*weight_map",
    ),
    "index out of the folder": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
        r"index\.json.*weight_map",
    ),
    "nested too deep": (lambda f: (f / CONFIG).write_text("[" * 200_000), r"config\.json.*not valid JSON"),
    "quantised": (
        lambda f: edit_json(f / CONFIG, quantization_config={"bits": 4}),
        r"quantization_config",
    ),
    "template broken": (
        lambda f: edit_json(f / "tokenizer_config.json", chat_template="{{"),
        r"chat_template is broken.*tokenizer_config\.json",
    ),
    "template a number": (lambda f: edit_json(f / "tokenizer_config.json", chat_template=5), r"chat_template=5"),
    "rope of another model": (
        lambda f: edit_json(f / CONFIG, rope_parameters={"rope_type": "yarn", "factor": 4}),
        r"config\.json.*rope_parameters",
    ),
    "head size contradicts": (lambda f: edit_json(f / CONFIG, head_dim=999), r"config\.json.*head_dim=999"),
    "theta not finite": (lambda f: edit_json(f / CONFIG, rope_theta=float("inf")), r"config\.json.*rope_theta=inf"),
    "too many layers": (lambda f: edit_json(f / CONFIG, num_hidden_layers=10**9), r"num_hidden_layers=1000000000"),
    "eos outside": (lambda f: edit_json(f / CONFIG, eos_token_id=999), r"eos_token_id=999"),
}


def assert_one_line(ran: Ran, pattern: str) -> None:
    assert ran.status == 2
    assert ran.out == ""
    assert re.fullmatch(r"ascend-m1: error: [^\n]+\n", ran.err), ran.err
    assert re.search(pattern, ran.err), ran.err


@pytest.mark.parametrize("name", DAMAGE)
def test_broken_checkpoint_is_named(cli: Cli, damaged: Path, name: str) -> None:
    damage, pattern = DAMAGE[name]
    damage(damaged)
    assert_one_line(cli("generate", "--model", damaged, "hello"), pattern)


def test_tokenizer_beyond_the_vocabulary(cli: Cli, damaged: Path) -> None:
    edit_json(damaged / "config.json", vocab_size=100)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        edit_tensors(damaged, name, lambda t: t[:100].contiguous())
    assert_one_line(cli("generate", "--model", damaged, "hello"), "vocab_size=100")


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": "x"},
        {"temperature": -1},
        {"top_p": 5},
        {"top_k": 1.5},
        {"repetition_penalty": 0},
        {"max_new_tokens": "x"},
        {"eos_token_id": 99999},
        {"eos_token_id": []},
        {"pad_token_id": "x"},
    ],
    ids=str,
)
def test_generation_config_of_impossible_values(cli: Cli, damaged: Path, field: dict[str, Any]) -> None:
    (damaged / "generation_config.json").write_text(json.dumps({"do_sample": True, **field}), encoding="utf-8")
    assert_one_line(cli("generate", "--model", damaged, "hello"), rf"generation_config\.json: {next(iter(field))}=")


def test_generation_config_asking_for_other_methods_is_not_in_the_way(cli: Cli, damaged: Path) -> None:
    fields = {"do_sample": True, "num_return_sequences": 2, "return_dict_in_generate": True, "stop_strings": ["a"]}
    (damaged / "generation_config.json").write_text(json.dumps(fields), encoding="utf-8")
    assert cli("generate", "--model", damaged, "hello", "--max-new-tokens", 2).status == 0


def test_no_chat_template_points_to_raw(cli: Cli, damaged: Path) -> None:
    edit_json(damaged / "tokenizer_config.json", chat_template=None)
    assert_one_line(cli("generate", "--model", damaged, "hello"), "chat_template.*--raw")
    assert cli("generate", "--model", damaged, "--raw", "hello", "--max-new-tokens", 1).status == 0


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ((), "no command"),
        (("fly",), "invalid choice: 'fly'"),
        (("generate", "--fly"), "--fly"),
        (("generate", "x", "--top-k", "many"), "--top-k.*many"),
        (("generate", "x", "--model", "no/such/dir"), "no/such/dir does not exist"),
        (("generate", "x", "--model", "baichuan-inc/Baichuan-M1-14B-Instruct"), "does not exist"),
        (("generate", "x", "--file", "y"), "two prompts"),
        (("generate", "--file", "no-such-file.txt"), "no-such-file.txt: No such file"),
        (("generate", "--file", "/"), "prompt file /: "),
        (("generate", "--raw", "--system", "s", "x"), "--system.*--raw"),
        (("generate", ""), "empty"),
        (("generate", " \n\t"), "empty"),
        (("generate",), "empty"),
        (("generate", "x", "--device", "tpu"), "device 'tpu'.*npu"),
        (("generate", "x", "--device", "cpu:1"), "device 'cpu:1'"),
        (("generate", "x", "--dtype", "int3"), "dtype 'int3'.*bfloat16"),
        (("generate", "x", "--temperature", "nan"), "temperature=nan"),
        (("generate", "x", "--temperature", "-1"), "temperature=-1"),
        (("generate", "x", "--temperature", "inf"), "temperature=inf"),
        (("generate", "x", "--temperature", "0", "--do-sample"), "temperature=0"),
        (("generate", "x", "--top-k", "-1"), "top_k=-1"),
        (("generate", "x", "--top-p", "0"), "top_p=0"),
        (("generate", "x", "--top-p", "1.1"), "top_p=1.1"),
        (("generate", "x", "--min-p", "nan"), "min_p=nan"),
        (("generate", "x", "--min-p", "2"), "min_p=2"),
        (("generate", "x", "--repetition-penalty", "0"), "repetition_penalty=0"),
        (("generate", "x", "--max-new-tokens", "0"), "max_new_tokens=0"),
        (("generate", "x", "--num-beams", "0"), "num_beams=0"),
        (("generate", "x", "--seed", "-1"), "seed=-1"),
        (("chat", "--top-p", "nan"), "top_p=nan"),
        (("plan", "--batch", "0"), "batch=0"),
        (("plan", "--length", "40000"), "length=40000.*32768"),
        (("plan", "--devices", "3"), "devices=3.*1, 2, 4"),
        (("plan", "--memory", "nan"), "memory=nan"),
        (("plan", "--dtype", "int3"), "dtype 'int3'"),
        (("plan", "--model", "nowhere"), "nowhere does not exist"),
    ],
)
def test_wrong_argument_is_named(cli: Cli, checkpoint: Path, arguments: tuple[str, ...], pattern: str) -> None:
    if arguments[:1] in (("generate",), ("chat",)) and "--model" not in arguments:
        arguments += ("--model", str(checkpoint))
    assert_one_line(cli(*arguments), pattern)


@pytest.mark.skipif(torch.cuda.is_available(), reason="hardware: has CUDA")
def test_cuda_that_is_not_there(cli: Cli, checkpoint: Path) -> None:
    assert_one_line(cli("generate", "--model", checkpoint, "--device", "cuda:0", "x"), "device cuda:0.*use cpu")


def test_npu_that_is_not_there(cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ascend_m1.device.find_spec", lambda name: None)
    assert_one_line(cli("generate", "--model", checkpoint, "--device", "npu", "x"), r"device npu.*\[npu\]")


@pytest.mark.parametrize(
    "arguments", [("chat", "--backend", "mindspore"), ("train", "r", "--max_steps=3"), ("bench", "serve", "--some")]
)
def test_unknown_options_name_the_help_of_their_command(cli: Cli, arguments: tuple[str, ...]) -> None:
    words = "bench serve" if arguments[0] == "bench" else arguments[0]
    unknown = " ".join(arguments).removeprefix(f"{words} ").removeprefix("r ")
    assert_one_line(cli(*arguments), f"unrecognized arguments: {unknown}: see `ascend-m1 {words} --help`")


def test_mindspore_that_is_not_there(cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ascend_m1.cli.options.find_spec", lambda name: None)
    ran = cli("generate", "--model", checkpoint, "--backend", "mindspore", "x")
    assert_one_line(ran, r"mindspore not installed: it needs an environment of its own, see docs/mindspore\.md")


def test_npu_without_its_libraries(cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("libhccl.so: cannot open shared object file")

    monkeypatch.setattr("ascend_m1.device.find_spec", lambda name: object())
    monkeypatch.setattr("ascend_m1.device._torch_npu", fail)
    ran = cli("generate", "--model", checkpoint, "--device", "npu:0", "x")
    assert_one_line(ran, r"libhccl\.so.*CANN.*TORCH_DEVICE_BACKEND_AUTOLOAD=0")


def test_prompt_that_is_not_utf8(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"caf\xe9")
    assert_one_line(cli("generate", "--model", checkpoint, "--file", path), r"prompt\.txt: byte 3.*UTF-8")
    assert_one_line(cli("generate", "--model", checkpoint, stdin=b"caf\xe9"), "standard input: byte 3")
    assert_one_line(cli("generate", "--model", checkpoint, "caf\udce9"), "not valid UTF-8 at character 3")


def test_prompt_longer_than_the_context(cli: Cli, checkpoint: Path) -> None:
    # 2 markers and one token a byte: one more than fits with an answer of one token
    ran = cli("generate", "--model", checkpoint, "x" * (CONTEXT - 2))
    assert_one_line(ran, f"{CONTEXT} tokens.*{CONTEXT}.*shorten it by at least 1")


@pytest.mark.parametrize(
    "words",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte",
        "Device(id:0) memory isn't enough and alloc failed, kernel name: MatMul, alloc size: 1B.\n\nC++ Call Stack",
    ],
    ids=["torch", "MindSpore on a device"],
)
def test_out_of_memory_is_one_line(cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr("ascend_m1.generation.generate_text", fail)
    assert_one_line(cli("generate", "--model", checkpoint, "x"), "out of memory.*plan")


def test_nothing_reaches_for_the_network(cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    monkeypatch.setattr("socket.socket.connect", fail)
    assert cli("generate", "--model", "gpt2", "x").status == 2
    assert cli("generate", "--model", checkpoint, "x", "--max-new-tokens", 1).status == 0
