"""Loss, gradient checkpointing and transformers' Trainer on packed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from ascend_m1 import BaichuanM1ForCausalLM

from .small import ids, model


def packed_rows(rows: int = 2) -> dict[str, Tensor]:
    """Rows of 20 tokens with documents of 7, 9 and 4."""
    tokens = torch.cat(ids(*[20] * rows))
    labels = tokens.clone()
    labels[:, 2:4] = -100
    return {"input_ids": tokens, "labels": labels, "seqlens": torch.tensor([[7, 16, 20]] * rows)}


def manual_loss(lm: BaichuanM1ForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross entropy, every document run by itself."""
    losses = []
    for tokens, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        for start, end in ((0, 7), (7, 16), (16, 20)):
            logits = lm(tokens[None, start:end]).logits[0, :-1]
            losses.append(nn.functional.cross_entropy(logits, labels[start + 1 : end], reduction="none"))
    loss = torch.cat(losses)
    return loss.sum() / (loss != 0).sum()


def gradients(lm: BaichuanM1ForCausalLM, loss: Tensor) -> dict[str, Tensor]:
    lm.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in lm.named_parameters() if parameter.grad is not None}


def assert_equal_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:  # float64; the order of summation differs
        assert torch.allclose(one[name], other[name], rtol=1e-9, atol=1e-11), name


def test_packed_loss_and_gradients_equal_those_of_the_documents() -> None:
    lm, batch = model().train(), packed_rows()
    loss, truth = lm(**batch).loss, manual_loss(lm, batch)
    torch.testing.assert_close(loss, truth, rtol=1e-10, atol=0.0)
    assert_equal_gradients(gradients(lm, loss), gradients(lm, truth))


def test_loss_honours_item_count_and_shifted_labels() -> None:
    lm, batch = model(), packed_rows()
    loss = lm(**batch).loss
    counted = int((batch["labels"][:, 1:] != -100).sum()) - 2 * 2  # no target across the two borders of each row
    torch.testing.assert_close(lm(**batch, num_items_in_batch=10).loss, loss * counted / 10)
    shifted = torch.full_like(batch["labels"], -100)
    shifted[:, :-1] = batch["labels"][:, 1:]
    shifted[:, [6, 15]] = -100
    torch.testing.assert_close(lm(**batch, shift_labels=shifted).loss, loss)


def test_logits_come_with_the_loss_on_request() -> None:
    lm, batch = model(), packed_rows()
    assert lm(**batch).logits is None
    assert lm(**batch, logits_to_keep=0).logits.shape == (2, 20, lm.config.vocab_size)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(reentrant: bool) -> None:
    batch, lm = packed_rows(), model().train()
    plain = gradients(lm, lm(**batch).loss)
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    lm.enable_input_require_grads()
    assert lm.is_gradient_checkpointing
    assert_equal_gradients(plain, gradients(lm, lm(**batch).loss))


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("flattened", [True, False])
def test_trainer_steps_on_packed_data(tmp_path: Path, flattened: bool, checkpointing: bool) -> None:
    """Rows with ``seqlens``, or documents that transformers' own collator packs with restarting position_ids."""
    lm, data = model().float(), packed_rows(8)
    data["labels"][
        :, [0, 7, 16]
    ] = -100  # never targets; Trainer counts labels itself, so it must see that they are not
    before = {name: parameter.clone() for name, parameter in lm.named_parameters()}
    rows: list[dict[str, Any]] = [{name: tensor[row] for name, tensor in data.items()} for row in range(8)]
    if flattened:
        cut = [(slice(0, 7), row) for row in rows] + [(slice(7, 16), row) for row in rows]
        cut += [(slice(16, 20), row) for row in rows]
        rows = [{name: row[name][part].tolist() for name in ("input_ids", "labels")} for part, row in cut]
    size = 4 if flattened else 2
    arguments: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": size, "gradient_accumulation_steps": 2}
    arguments |= {"logging_steps": 1, "learning_rate": 1e-2, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    arguments |= {"gradient_checkpointing": checkpointing, "remove_unused_columns": False, "save_strategy": "no"}
    trainer = Trainer(
        model=lm,
        args=TrainingArguments(output_dir=str(tmp_path), per_device_eval_batch_size=64, **arguments),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithFlattening() if flattened else None,
    )
    first = trainer.evaluate()["eval_loss"]
    torch.testing.assert_close(first, manual_loss(lm, data).item(), rtol=1e-4, atol=0.0)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    # Before any update and on a part of the data: near the whole set's loss, neither its half nor its double.
    assert abs(logged[0] - first) < 0.4 * first
    assert trainer.evaluate()["eval_loss"] < first
    assert all(not torch.equal(parameter, before[name]) for name, parameter in lm.named_parameters())
    trainer.save_model()
    again = BaichuanM1ForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, lm.lm_head.weight)
