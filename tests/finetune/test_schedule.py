"""The WSD schedule is an exact function of the step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments, get_wsd_schedule

from ascend_m1.errors import InputError
from ascend_m1_finetune.schedule import wsd_lambda_lr, wsd_multiplier


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, float]:
    total = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, total))
    decay = draw(st.integers(0, total - warmup))
    return warmup, total, decay, draw(st.floats(0, 1))


def test_fixed_values() -> None:
    values = [wsd_multiplier(step, warmup=2, total=10, decay=4, min_ratio=0.2) for step in range(12)]
    assert values == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])


@given(shapes())
def test_rises_stays_and_falls(shape: tuple[int, int, int, float]) -> None:
    warmup, total, decay, min_ratio = shape
    values = [wsd_multiplier(step, warmup, total, decay, min_ratio) for step in range(total + 1)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert all(value == 1.0 for value in values[warmup : total - decay])
    assert values[total - decay :] == sorted(values[total - decay :], reverse=True)
    assert values[total] == (min_ratio if decay else 1.0)
    assert all(value > 0.0 for value in values[:total])


def test_lambda_lr_follows_the_function_and_resumes() -> None:
    def run(scheduler: torch.optim.lr_scheduler.LambdaLR, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            rates.append(float(scheduler.get_last_lr()[0]))
            scheduler.optimizer.step()
            scheduler.step()
        return rates

    def fresh() -> torch.optim.lr_scheduler.LambdaLR:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        return wsd_lambda_lr(optimizer, warmup=3, total=12, decay=5)

    whole = fresh()
    rates = run(whole, 12)
    assert rates == pytest.approx([0.5 * wsd_multiplier(step, 3, 12, 5) for step in range(12)])
    first, second = fresh(), fresh()
    begun = run(first, 7)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert begun + run(second, 5) == rates


@given(shapes())
def test_plateau_and_decay_are_those_of_transformers(shape: tuple[int, int, int, float]) -> None:
    """Its "warmup_stable_decay" with linear decay; its warm-up begins at 0, which wastes the first update."""
    warmup, total, decay, min_ratio = shape
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_wsd_schedule(optimizer, warmup, decay, total, decay_type="linear", min_lr_ratio=min_ratio)
    (rate,) = theirs.lr_lambdas
    for step in range(warmup, total):
        assert wsd_multiplier(step, warmup, total, decay, min_ratio) == pytest.approx(rate(step), abs=1e-12)


def test_the_trainer_resumes_on_the_curve(tmp_path: Path) -> None:
    """The rates that are logged are the function's, through a stop and a new process's objects."""

    def trainer(steps: int) -> Trainer:
        model = torch.nn.Linear(2, 1)
        model.forward = lambda x: {"loss": torch.nn.functional.linear(x, model.weight).square().mean()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
        arguments = TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=6, logging_steps=1, use_cpu=True, report_to=[], disable_tqdm=True
        )
        arguments.remove_unused_columns, arguments.label_names = False, ["x"]
        scheduler = wsd_lambda_lr(optimizer, warmup=3, total=12, decay=5, min_ratio=0.1)
        return Trainer(model, arguments, train_dataset=[{"x": torch.ones(2)}] * 200, optimizers=(optimizer, scheduler))

    trainer(6).train()
    resumed = trainer(12)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    rates = [entry["learning_rate"] for entry in resumed.state.log_history if "loss" in entry]
    assert rates == [0.5 * wsd_multiplier(step, 3, 12, 5, 0.1) for step in range(12)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 5, 0), "step=-1"),
        ((0, 3, 5, 3), r"warmup=3 \+ decay=3 do not fit total=5"),
        ((0, 0, 0, 0), "total=0"),
        ((0, 0, 5, 0, 1.5), "min_ratio=1.5"),
    ],
)
def test_impossible_values_are_named(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wsd_multiplier(*arguments)
