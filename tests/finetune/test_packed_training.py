"""Training on packed rows: nothing leaks between documents, the Trainer's updates are those of padded batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainingArguments

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1_finetune.lora import add_lora
from ascend_m1_finetune.packing import Document, document, pack_documents, pad_documents

from ..compat.small import VOCAB, model
from ..model.geometries import models


@settings(max_examples=40)
@given(models(), st.lists(st.integers(1, 9), min_size=2, max_size=6), st.data())
def test_no_document_notices_another(lm: BaichuanM1ForCausalLM, sizes: list[int], data: st.DataObject) -> None:
    """One document gets other tokens: logits, loss and gradients of the others keep every bit."""
    changed = data.draw(st.integers(0, len(sizes) - 1))
    before = [torch.randint(1, 37, (size,)).tolist() for size in sizes]
    after = [[37 - token for token in ids] if i == changed else ids for i, ids in enumerate(before)]
    outcomes = []
    for texts in (before, after):
        items = [Document(tuple(t), tuple([-100] * len(t) if i == changed else t)) for i, t in enumerate(texts)]
        packed = pack_documents(items, sum(sizes))
        batch = {name: tensor.unsqueeze(0) for name, tensor in packed[0].items()}
        lm.zero_grad()
        output = lm(**batch, logits_to_keep=0)
        if any(len(t) > 1 for i, t in enumerate(texts) if i != changed):  # else there is no label
            output.loss.backward()
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        others = [
            output.logits[0, s : s + n] for i, (s, n) in enumerate(zip(starts, sizes, strict=True)) if i != changed
        ]
        embedding = lm.model.embed_tokens
        gradients = [p.grad for p in lm.parameters() if p is not embedding.weight and p.grad is not None]
        outcomes.append([torch.cat(others), *gradients])
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)


def documents(count: int, longest: int) -> list[Document]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        size = int(torch.randint(2, longest + 1, (1,), generator=generator))
        ids = torch.randint(3, VOCAB, (size,), generator=generator).tolist()
        made.append(document([(ids[: size // 2], False), (ids[size // 2 :], True)]))
    return made


def train(folder: Path, lm: Any, data: Any, batch: int, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=3, per_device_train_batch_size=batch, learning_rate=1e-2, logging_steps=1, use_cpu=True,
        save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(lm, arguments, train_dataset=data, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("lora", [False, True])
def test_packed_training_equals_padded_training(lora: bool, tmp_path: Path) -> None:
    """The same documents in each update: weights after three of them, in float64 up to the order of sums."""
    items, length = documents(14, 12), 24
    packed = pack_documents(items, length)
    assert 1 < len(packed) < len(items) // 2
    weights, losses = [], []
    for data, options in ((packed, {}), (items, {"data_collator": pad_documents})):
        lm: Any = model().train()
        if lora:
            torch.manual_seed(1)
            lm = add_lora(lm, 2, 4, targets="q_proj,v_proj,mlp").double()
        trainer = train(tmp_path, lm, data, len(data), **options)
        weights.append([p for p in lm.parameters() if p.requires_grad])
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0][2] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the Trainer adds them up in float32
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


class Largest(TorchDispatchMode):
    """The most rows of logits that any tensor of a training step holds."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.shape[-1:] == (VOCAB,):
                self.rows = max(self.rows, tensor.numel() // VOCAB)
        return result


def test_the_trainer_never_holds_the_logits_of_all_tokens(tmp_path: Path) -> None:
    ids = torch.randint(3, VOCAB, (10, 128)).tolist()
    packed = pack_documents([document([(text, True)]) for text in ids], 640)
    lm = model(num_hidden_layers=1).float()
    with Largest() as seen:
        train(tmp_path, add_lora(lm, 2, 4), packed, 2)
    assert 512 <= seen.rows < 1024  # a chunk, of 1,270 tokens that are learnt
    with Largest() as seen:
        lm(packed.input_ids, position_ids=packed.position_ids, labels=packed.labels, logits_to_keep=0)
    assert seen.rows == 1280  # what the watcher would have found
