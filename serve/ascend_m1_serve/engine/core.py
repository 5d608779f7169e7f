"""The engine without a thread: requests in, steps, tokens out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random, SystemRandom

from ascend_m1.adapters import AdapterSlots
from ascend_m1.errors import InputError
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import BLOCK_SIZE, PagedCache

from ..protocol import Event, Finish, Limits, Logprob, Sampling, Stats
from .block_pool import BlockPool
from .grammar import Matcher
from .request import Request, blocks_for
from .runner import Runner
from .scheduler import Scheduler

_SEEDS = SystemRandom()


@dataclass(frozen=True)
class EngineOptions:
    """How large the engine is.

    Attributes:
        max_length: tokens of the longest sequence, answer included.
        max_sequences: at the same time.
        blocks: of the cache; None: as many as ``max_sequences`` of ``max_length`` take.
        chunk: tokens in a prefill forward.
        prefix_caching: keep full blocks for requests that begin alike.
        graph: how decode steps run, see ``ascend_m1.graphs``; None: the fastest that needs no compiler.
        adapters: LoRA adapters loaded at the same time. adapter_rank: the largest rank of one.
    """

    max_length: int
    max_sequences: int = 16
    blocks: int | None = None
    chunk: int = 512
    prefix_caching: bool = True
    graph: str | None = None
    adapters: int = 0
    adapter_rank: int = 16

    def __post_init__(self) -> None:
        for name in ("max_length", "max_sequences", "blocks", "chunk", "adapter_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: give 1 or more")
        if self.adapters < 0:
            raise InputError(f"adapters={self.adapters}: give 0 or more")

    @property
    def all_blocks(self) -> int:
        """Of the cache, for all sequences."""
        return self.blocks or self.max_sequences * blocks_for(self.max_length)


@dataclass
class Core:
    """Schedule, run, hand out; all in the caller's thread.

    Attributes:
        slots: of LoRA adapters; None: there is no room for any.
        totals: since the start; ``stats`` adds the present.
    """

    runner: Runner
    scheduler: Scheduler
    pool: BlockPool
    limits: Limits
    slots: AdapterSlots | None = None
    totals: Stats = field(default_factory=Stats)
    _arrived: int = 0

    def add(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        *,
        matcher: Matcher | None = None,
        slot: int = 0,
        root: bytes = b"",
        priority: int = 5,
    ) -> Request:
        """Queue a request.

        Raises:
            InputError: see ``protocol.Engine.submit``.
        """
        check_prompt(ids, self.limits)
        self._arrived += 1
        request = Request(
            number=self._arrived,
            ids=list(ids),
            prompt=len(ids),
            sampling=sampling,
            priority=priority,
            arrived=time.monotonic(),
            random=Random(_SEEDS.getrandbits(63) if sampling.seed is None else sampling.seed),
            slot=slot,
            root=root,
            matcher=matcher,
        )
        self.scheduler.add(request)
        return request

    def warm_up(self) -> None:
        """Make the graphs of all decode steps, in the thread that will replay them, before a request waits for one."""
        self.runner.decoder.warm_up()

    def step(self) -> list[tuple[Request, Event]]:
        """One step; nothing if there is nothing to do."""
        if not self.scheduler.busy:
            return []
        plan = self.scheduler.plan()
        now = time.monotonic()
        for request in plan.admitted:
            request.started = now
        batch = len(plan.decode) + len(plan.prefill)
        events = [self._hand_out(*chosen) for chosen in self.runner.run(plan)]
        totals = self.totals
        self.totals = replace(
            totals,
            steps=totals.steps + bool(plan.decode) + bool(plan.prefill),
            last_batch=batch,
            prompt_tokens=totals.prompt_tokens + sum(request.prompt for request in plan.admitted),
            cached_tokens=totals.cached_tokens + sum(request.cached for request in plan.admitted),
            generated_tokens=totals.generated_tokens + sum(len(event.tokens) for _, event in events),
        )
        return events

    def abort(self, request: Request) -> None:
        """End it and free what it holds; nothing if it has ended."""
        self.scheduler.remove(request)

    def stats(self) -> Stats:
        """Now."""
        scheduler = self.scheduler
        return replace(
            self.totals,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            swapped=len(scheduler.swapped),
            free_blocks=self.pool.free,
            preemptions=scheduler.preemptions,
        )

    def _hand_out(self, request: Request, token: int | None, logprobs: tuple[Logprob, ...]) -> tuple[Request, Event]:
        if token is None:
            self.scheduler.remove(request)
            return request, Event((), finish="error")
        request.ids.append(token)
        request.counts[token] += 1
        if request.matcher is not None:
            request.matcher.accept(token)
        finish = self._finish(request, token)
        if finish is not None:
            self.scheduler.remove(request)
        assert request.started is not None
        event = Event(
            tokens=(token,),
            logprobs=(logprobs,) if logprobs else (),
            finish=finish,
            cached_tokens=request.cached,
            queued=request.started - request.arrived,
        )
        return request, event

    def _finish(self, request: Request, token: int) -> Finish | None:
        sampling = request.sampling
        if token in sampling.stop_token_ids or (token in self.limits.end_tokens and not sampling.ignore_eos):
            return "stop"
        if request.generated >= sampling.max_tokens or len(request.ids) >= self.limits.max_length:
            return "length"
        return None


def check_prompt(ids: Sequence[int], limits: Limits) -> None:
    """Raises InputError if a prompt cannot be run."""
    if not 1 <= len(ids) < limits.max_length:
        raise InputError(
            f"the prompt has {len(ids)} tokens: give 1 to {limits.max_length - 1}, which leaves room for an answer"
        )
    if min(ids) < 0 or max(ids) >= limits.vocab_size:
        raise InputError(f"the prompt has a token outside the vocabulary: ids are 0 to {limits.vocab_size - 1}")


def make_core(model: InferenceModel, options: EngineOptions) -> Core:
    """An engine over a model in the layout for serving, where it is.

    Raises:
        InputError: an option is out of range, or the graph cannot be used.
    """
    config, weight = model.config, model.embed
    blocks = options.all_blocks
    if blocks < blocks_for(options.max_length):
        raise InputError(
            f"blocks={blocks}: a sequence of max_length={options.max_length} tokens takes "
            f"{blocks_for(options.max_length)} blocks of {BLOCK_SIZE}: raise one or lower the other"
        )
    cache = PagedCache(config, options.max_sequences, blocks, weight.dtype, weight.device, options.max_length)
    pool = BlockPool(blocks, cache.window or 0)
    end = config.eos_token_id
    limits = Limits(
        max_length=options.max_length,
        max_sequences=options.max_sequences,
        block_size=BLOCK_SIZE,
        blocks=blocks,
        vocab_size=config.vocab_size,
        end_tokens=frozenset([] if end is None else [end] if isinstance(end, int) else end),
        dtype=str(weight.dtype).removeprefix("torch."),
        devices=1,
        device=weight.device.type,
    )
    slots = AdapterSlots(model, options.adapters, options.adapter_rank) if options.adapters else None
    runner = Runner(model, cache, pool, options.max_length, options.graph, options.prefix_caching)
    scheduler = Scheduler(pool, options.max_sequences, options.chunk, options.prefix_caching)
    return Core(runner, scheduler, pool, limits, slots)
