"""Train m1-icd10, the small Baichuan-M1 checkpoint that ships with the project.

    python scripts/train_m1_icd10.py --output ascend_m1/checkpoints/m1_icd10
    python scripts/train_m1_icd10.py --output ascend_m1/checkpoints/m1_icd10 --resume     # after an interruption
    python scripts/evaluate_m1_icd10.py --checkpoint ascend_m1/checkpoints/m1_icd10       # exact match, model card

The data, their order and the learning rate are functions of the seed and the step, so a resumed run gives the same
weights as one that was never interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Two threads that spin while they wait make every step many times slower as soon as another process wants a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor
from tqdm import tqdm

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.tokenization_baichuan_m1 import BaichuanM1Tokenizer, check_vocabulary
from ascend_m1_finetune.packing import PackedRows, pack_documents
from ascend_m1_finetune.schedule import wsd_lambda_lr
from m1_icd10.checkpoint import make_config, save_model
from m1_icd10.data import encoder, epoch_dialogues, load_categories, tokenizer_lines
from m1_icd10.tokenizer import train_tokenizer

# What a resumed run must have in common with the run it continues.
FIXED = ("seed", "steps", "warmup", "decay", "peak_lr", "rows", "row_length", "max_grad_norm")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished checkpoint")
    parser.add_argument("--state", type=Path, help="file of the resumable state (default: OUTPUT/../m1_icd10.state.pt)")
    parser.add_argument("--resume", action="store_true", help="continue from the state file if there is one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--warmup", type=int, default=100, help="updates of the warm-up")
    parser.add_argument("--decay", type=int, default=900, help="updates of the decay at the end")
    parser.add_argument("--peak-lr", type=float, default=2e-3)
    parser.add_argument("--rows", type=int, default=8, help="packed rows per update")
    parser.add_argument("--row-length", type=int, default=256)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--save-every", type=int, default=200, help="updates between two saved states")
    parser.add_argument("--stop-after", type=int, help="stop at this update as if interrupted; --resume goes on")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    arguments.state = arguments.state or arguments.output.parent / "m1_icd10.state.pt"
    return arguments


def batches(rows_of_epoch: Any, rows: int, epoch: int, start: int) -> Iterator[tuple[int, int, PackedRows]]:
    """Endless batches of ``rows`` packed rows: (epoch, next row, batch). An epoch's last rows may not
    fill one and are left out.
    """
    while True:
        packed: PackedRows = rows_of_epoch(epoch)
        for at in range(start, len(packed) - rows + 1, rows):
            part = slice(at, at + rows)
            yield (
                epoch,
                at + rows,
                PackedRows(
                    packed.input_ids[part], packed.labels[part], packed.position_ids[part], packed.seqlens[part]
                ),
            )
        epoch, start = epoch + 1, 0


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state completely or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(arguments: argparse.Namespace, tokenizer: BaichuanM1Tokenizer) -> dict[str, Any]:
    """Run the updates and return the last state."""
    categories = load_categories()
    encode = encoder(tokenizer)

    def rows_of_epoch(epoch: int) -> PackedRows:
        dialogues = epoch_dialogues(categories, arguments.seed, epoch)
        return pack_documents([encode(turns, system) for system, turns in dialogues], arguments.row_length)

    torch.manual_seed(arguments.seed)
    model = BaichuanM1ForCausalLM(make_config())
    check_vocabulary(tokenizer, model.config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.peak_lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = wsd_lambda_lr(optimizer, arguments.warmup, arguments.steps, arguments.decay)
    settings = {name: getattr(arguments, name) for name in FIXED}
    state: dict[str, Any] = {"settings": settings, "step": 0, "epoch": 0, "row": 0, "losses": [], "seconds": 0.0}
    if arguments.resume and arguments.state.is_file():
        state = torch.load(arguments.state, weights_only=True)
        if state["settings"] != settings:
            raise SystemExit(f"{arguments.state}: saved with {state['settings']}, asked for {settings}: use the same")
        model.load_state_dict(state.pop("model"))
        optimizer.load_state_dict(state.pop("optimizer"))
        schedule.load_state_dict(state.pop("schedule"))
    started = time.monotonic() - state["seconds"]
    stream = batches(rows_of_epoch, arguments.rows, state["epoch"], state["row"])
    last = min(arguments.steps, arguments.stop_after or arguments.steps)
    with tqdm(total=arguments.steps, initial=state["step"], unit="step", mininterval=2) as bar:
        while state["step"] < last:
            state["epoch"], state["row"], batch = next(stream)
            loss = update(model, optimizer, batch, arguments.max_grad_norm)
            schedule.step()
            state["step"] += 1
            state["losses"].append(loss.item())
            state["seconds"] = time.monotonic() - started
            bar.update()
            bar.set_postfix(loss=f"{state['losses'][-1]:.4f}", epoch=state["epoch"], refresh=False)
            if state["step"] % arguments.save_every == 0 or state["step"] == last:
                full = state | {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                }
                save_state(arguments.state, full)
    return state | {"model": model.state_dict()}


def update(
    model: BaichuanM1ForCausalLM, optimizer: torch.optim.Optimizer, batch: PackedRows, max_grad_norm: float
) -> Tensor:
    """One optimiser update on a batch of packed rows; returns its loss."""
    output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, labels=batch.labels, use_cache=False)
    output.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    loss: Tensor = output.loss.detach()
    return loss


def main(argv: list[str] | None = None) -> None:
    """Tokenizer, training, checkpoint."""
    arguments = parse_arguments(argv)
    torch.set_num_threads(arguments.threads)
    # float32 weights and sums, products in bfloat16 where the processor has them: faster, and the shipped weights are
    # bfloat16 anyway.
    torch.set_float32_matmul_precision("medium")
    train_tokenizer(tokenizer_lines(load_categories()), arguments.output)
    tokenizer = BaichuanM1Tokenizer.from_pretrained(arguments.output)
    state = train(arguments, tokenizer)
    if state["step"] < arguments.steps:
        print(f"stopped at update {state['step']} of {arguments.steps}; --resume goes on")
        return
    save_model(state["model"], arguments.output)
    record = {
        "settings": state["settings"],
        "threads": arguments.threads,
        "epochs": state["epoch"] + 1,
        "seconds": round(state["seconds"]),
        # every tenth value is enough to draw the curve
        "losses": [round(value, 5) for value in state["losses"][::10]],
    }
    (arguments.output / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    arguments.state.unlink()
    print(f"{arguments.output}: trained in {record['seconds']} s; now run scripts/evaluate_m1_icd10.py")


if __name__ == "__main__":
    main()
