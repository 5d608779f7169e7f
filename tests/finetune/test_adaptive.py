"""Updates are skipped by the rule, wholly, and a resumed run decides as the uninterrupted one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainingArguments

from ascend_m1.errors import InputError
from ascend_m1_finetune.adaptive import AdaptiveUpdate, RunningNorm

from ..forks import in_processes

# Not too far apart, for the two ways to work out the mean round differently.
NORMS = st.lists(st.floats(0.1, 1e4) | st.sampled_from([0.0, math.inf, math.nan]), max_size=60)
RULES = st.tuples(st.floats(1.01, 20), st.integers(1, 30), st.integers(1, 10))


def reference(norms: list[float], factor: float, memory: int, warmup: int) -> list[bool]:
    """The decisions, the mean worked out anew from the whole history each time."""
    counted: list[float] = []
    decisions = []
    for norm in norms:
        mean = 0.0
        for index, earlier in enumerate(counted):
            share = 1 / min(index + 1, memory)
            mean = mean * (1 - share) + earlier * share
        free = len(counted) < warmup or mean == 0
        decisions.append(math.isfinite(norm) and (free or norm <= factor * mean))
        if math.isfinite(norm):
            counted.append(norm if free or norm <= factor * mean else factor * mean)
    return decisions


@given(NORMS, RULES)
def test_decisions_are_the_rules(norms: list[float], rule: tuple[float, int, int]) -> None:
    running = RunningNorm(*rule)
    found = []
    for norm in norms:
        limit = rule[0] * running.mean
        # Where the norm is the limit up to rounding, either decision is right, and the rest depends on it.
        if math.isclose(norm, limit, rel_tol=1e-9):
            return
        found.append(running.accept(norm))
        assert found == reference(norms[: len(found)], *rule)


@given(st.floats(1.01, 20), st.integers(1, 200), st.floats(1.5, 1e6))
def test_a_gradient_that_stays_large_is_accepted_in_time(factor: float, memory: int, rise: float) -> None:
    running = RunningNorm(factor, memory, warmup=1)
    assert running.accept(1.0)
    growth = math.log1p((factor - 1) / memory)
    assert any(running.accept(rise) for _ in range(2 + memory + math.ceil(math.log(rise) / growth)))


@pytest.mark.parametrize("rule", [{"factor": 1.0}, {"factor": math.inf}, {"memory": 0}, {"warmup": 0}])
def test_impossible_rules(rule: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(rule))}={next(iter(rule.values()))}"):
        AdaptiveUpdate(**rule)


class Fit(nn.Module):
    """Least squares; a row's ``weight`` makes its gradient as large as a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 1)

    def forward(self, x: Tensor, labels: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {"loss": ((self.line(x).squeeze(-1) - labels).square() * weight).mean()}


def rows(spikes: tuple[int, ...] = ()) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(16, 4, generator=generator)
    return [
        {"x": row[:3], "labels": row[3] + 4, "weight": torch.tensor(1e4 if index in spikes else 1.0)}
        for index, row in enumerate(made)
    ]


def trainer(folder: Path, data: list[dict[str, Tensor]], callback: AdaptiveUpdate | None, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    options: dict[str, Any] = {"max_grad_norm": 0, "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    options |= {"per_device_train_batch_size": 1, "max_steps": len(data), "weight_decay": 0.1, "save_steps": 8}
    options |= {"train_sampling_strategy": "sequential", "logging_steps": 1, "report_to": [], "disable_tqdm": True}
    arguments = TrainingArguments(str(folder), use_cpu=True, remove_unused_columns=False, **{**options, **changes})
    callbacks: Any = None if callback is None else [callback]
    return Trainer(Fit(), arguments, train_dataset=data, callbacks=callbacks)


def outcome(run: Trainer) -> list[Tensor]:
    """Weights and the optimiser's moments and step counts."""
    state = run.optimizer.state_dict()["state"]
    return [*run.model.state_dict().values(), *(value for held in state.values() for value in held.values())]


def assert_same(one: Trainer, other: Trainer) -> None:
    for a, b in zip(outcome(one), outcome(other), strict=True):
        assert torch.equal(a, b)


def test_a_skipped_update_leaves_nothing_behind(tmp_path: Path) -> None:
    """As if the outliers had not been among the data: weights, moments and step counts bit for bit."""
    spikes, callback = (7, 12), AdaptiveUpdate(warmup=3)
    run = trainer(tmp_path / "a", rows(spikes), callback, save_strategy="no")
    run.train()
    clean = trainer(tmp_path / "b", [r for i, r in enumerate(rows()) if i not in spikes], None, save_strategy="no")
    clean.train()
    assert_same(run, clean)
    logged = [entry["skipped_updates"] for entry in run.state.log_history if "loss" in entry]
    assert logged == [sum(spike <= index for spike in spikes) for index in range(16)]
    spiked = trainer(tmp_path / "c", rows(spikes), None, save_strategy="no")
    spiked.train()  # else the test would show nothing
    assert not torch.allclose(spiked.model.line.weight, clean.model.line.weight, rtol=1e-2)


def test_a_resumed_run_decides_alike(tmp_path: Path) -> None:
    """The outlier at 9 comes right after the checkpoint at 8: a rule in its warm-up again would accept it."""
    whole, first, second = (AdaptiveUpdate(warmup=5) for _ in range(3))
    uninterrupted = trainer(tmp_path / "a", rows((6, 9)), whole)
    uninterrupted.train()
    stopped = trainer(tmp_path / "b", rows((6, 9)), first, max_steps=8)
    stopped.train()
    resumed = trainer(tmp_path / "b", rows((6, 9)), second)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-8"))
    assert_same(uninterrupted, resumed)
    assert whole.skipped == second.skipped == 2
    assert (first.norms.count, second.norms) == (8, whole.norms)


def test_contradicting_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"max_grad_norm=1\.0 with adaptive update"):
        trainer(tmp_path, rows(), AdaptiveUpdate(), max_grad_norm=1.0).train()


def skip_in_all(folder: Path) -> None:
    """One process's gradient is far too large at step 3; all of them must leave the update out."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    for wrap in (nn.parallel.DistributedDataParallel, lambda model: fully_shard(model, mesh=mesh)):
        torch.manual_seed(0)
        model = wrap(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        adaptive = AdaptiveUpdate(warmup=1)
        generator = torch.Generator().manual_seed(rank)
        for step in range(6):
            x = torch.randn(5, 4, generator=generator)
            optimizer.zero_grad()
            (model(x).square().mean() * (1000 if step == 3 and rank == 1 else 1)).backward()
            local = [getattr(p, "_local_tensor", p).detach() for p in model.parameters()]
            before = [weight.clone() for weight in local]
            adaptive.on_pre_optimizer_step(None, None, None, optimizer=optimizer)
            optimizer.step()
            moved = any(not torch.equal(one, other) for one, other in zip(before, local, strict=True))
            assert moved == (step != 3), (rank, step)
        found: list[Any] = [None, None]
        dist.all_gather_object(found, (adaptive.norms.mean, adaptive.skipped))
        assert found[0] == found[1], found
        assert adaptive.skipped == 1
    (folder / f"done-{rank}").touch()


def test_all_processes_decide_alike(tmp_path: Path) -> None:
    """DDP, where each holds the whole gradient, and FSDP2, where each holds a piece."""
    in_processes(2, tmp_path, skip_in_all, tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 2
