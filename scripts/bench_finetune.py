"""Speed and memory of finetuning: packed rows beside padded ones, and beside TRL's SFTTrainer with its defaults.

    python scripts/bench_finetune.py                                  # needs trl: pip install trl
    python scripts/bench_finetune.py --write docs/benchmarks.md       # puts the table into the document

The job: one pass over ragged documents, LoRA on every matrix, bfloat16 weights, activation checkpointing, about eight
documents an update. Each contender trains in a process of its own; ratios are taken within a round. Peak memory is the
process's, Python and the weights included; beside it stands what training adds to the loaded model.

The head's rows have length 1 here: TRL multiplies by ``lm_head.weight`` as it is, so with others its loss would not be
that of the model, whose head divides by the rows' lengths.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1_finetune.packing import Document, document, pack_documents, pad_documents
from bench.machine import describe_machine
from bench.report import Spread, markdown_table, publish, ratios, write_section

SECTION = "bench_finetune"
CONTENDERS = ("packed", "padded", "trl")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LENGTH, BATCH = 1024, 8
# The published proportions of layers, hidden states and vocabulary, at a size that two cores train.
GEOMETRY = {
    "vocab_size": 4096,
    "hidden_size": 640,
    "intermediate_size": 2176,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_swa_attention_heads": 8,
    "num_swa_key_value_heads": 2,
    "sliding_window": 512,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: time of the training process alone, on one thread, for a machine busy with other work",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"document with a place <!-- {SECTION} --> to fill")
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "MODEL"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def make_documents(count: int) -> list[Document]:
    """Questions and answers whose lengths are as ragged as those of real sets: log-normal, half of them below 100."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.empty(count).log_normal_(4.6, 0.8, generator=generator).int().clamp(16, LENGTH).tolist()
    made = []
    for size in sizes:
        ids = torch.randint(3, GEOMETRY["vocab_size"], (size,), generator=generator).tolist()
        made.append(document([(ids[: size // 3], False), (ids[size // 3 :], True)]))
    return made


def save_model(folder: Path) -> None:
    """Random weights."""
    torch.manual_seed(0)
    model = BaichuanM1ForCausalLM(BaichuanM1Config(**GEOMETRY))
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.nn.functional.normalize(model.lm_head.weight, dim=1))
    model.bfloat16().save_pretrained(folder)


def train_one(contender: str, folder: str, count: int, clock: str) -> dict[str, float]:
    """Train in this process: tokens of documents per second, first loss, MiB at the peak and added by training."""
    if clock == "cpu":
        torch.set_num_threads(1)
    documents = make_documents(count)
    trainer = trl_trainer(folder, documents) if contender == "trl" else our_trainer(contender, folder, documents)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _memory("VmRSS")
    start = CLOCKS[clock]()
    trainer.train()
    seconds = CLOCKS[clock]() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = _memory("VmHWM")
    tokens = sum(len(item.input_ids) for item in documents)
    return {"speed": tokens / seconds, "loss": losses[0], "peak": peak, "added": peak - before}


def our_trainer(contender: str, folder: str, documents: list[Document]) -> Any:
    """transformers' Trainer on packed rows, or on padded documents."""
    from transformers import Trainer, TrainingArguments

    from ascend_m1_finetune.lora import add_lora

    model = add_lora(BaichuanM1ForCausalLM.from_pretrained(folder), 8, 16)
    packed = contender == "packed"
    arguments = TrainingArguments(
        per_device_train_batch_size=1 if packed else BATCH, remove_unused_columns=False, **_common(folder)
    )
    return Trainer(
        model,
        arguments,
        train_dataset=pack_documents(documents, LENGTH) if packed else documents,
        data_collator=None if packed else pad_documents,
    )


def trl_trainer(folder: str, documents: list[Document]) -> Any:
    """SFTTrainer as it comes: its batch size, its loss, its precision; the same adapter and data."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from ascend_m1.cli.options import EMBEDDED
    from ascend_m1_finetune.lora import lora_config

    rows = [{"input_ids": list(item.input_ids), "labels": list(item.labels)} for item in documents]
    return SFTTrainer(
        BaichuanM1ForCausalLM.from_pretrained(folder),
        SFTConfig(**_common(folder)),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(EMBEDDED),
        peft_config=lora_config(8, 16),
    )


def _common(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "num_train_epochs": 1,
        "gradient_checkpointing": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }


def _memory(field: str) -> float:
    """MiB, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def measure(documents: int, rounds: int, clock: str) -> dict[str, list[dict[str, float]]]:
    """Each contender's results, round by round, in changing order."""
    contenders = list(CONTENDERS)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        for turn in range(rounds):
            start = turn % len(contenders)
            for name in contenders[start:] + contenders[:start]:
                command = [
                    sys.executable,
                    __file__,
                    "--one",
                    name,
                    folder,
                    "--documents",
                    str(documents),
                    "--clock",
                    clock,
                ]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"round {turn + 1}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found


def findings(found: dict[str, list[dict[str, float]]], documents: int) -> str:
    """The table, and the two ratios that are claimed."""

    def values(name: str, what: str) -> list[float]:
        return [result[what] for result in found[name]]

    rows = []
    for name in found:
        cells = [Spread.of(values(name, what)).show("{:,.0f}".format) for what in ("speed", "peak", "added")]
        share = ratios(values("packed", "peak"), values(name, "peak")).show("{:.2f}".format)
        added = ratios(values("packed", "added"), values(name, "added")).show("{:.2f}".format)
        rows.append(
            [name, *cells, ratios(values("packed", "speed"), values(name, "speed")).show("{:.2f}".format), share, added]
        )
    header = ["trained", "tokens/s", "peak, MiB", "added by training, MiB", "packed: speed", "peak", "added"]
    sizes = [len(item.input_ids) for item in make_documents(documents)]
    lines = [
        f"- {documents} documents of {min(sizes)} to {max(sizes)} tokens, {sum(sizes) / len(sizes):.0f} on average",
        "- first losses: " + ", ".join(f"{name} {results[0]['loss']:.3f}" for name, results in found.items()),
        "",
        markdown_table(header, rows),
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    arguments = parse_arguments(argv)
    if arguments.one:
        print(json.dumps(train_one(*arguments.one, arguments.documents, arguments.clock)))
        return
    if arguments.write:
        write_section(arguments.write, SECTION, None)
    if find_spec("trl") is None:
        raise SystemExit("trl is not installed: pip install trl")
    machine = describe_machine()
    machine["versions"] += f", peft {version('peft')}, trl {version('trl')}"
    machine["clock"] = "of the process, one thread" if arguments.clock == "cpu" else "wall"
    found = measure(arguments.documents, arguments.rounds, arguments.clock)
    publish(machine, findings(found, arguments.documents), arguments.write, SECTION)


if __name__ == "__main__":
    main()
