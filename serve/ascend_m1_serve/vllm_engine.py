"""vLLM's engine behind the ``Engine`` protocol: many devices, the front unchanged.

With ``vllm_stream`` the only file here that imports vLLM; the model comes to it through the plugin ``ascend_m1_vllm``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm import SamplingParams, TokensPrompt
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from ascend_m1.adapters import check_rank, read_adapter
from ascend_m1.errors import InputError

from .engine.adapter_table import AdapterTable
from .engine.core import check_prompt
from .engine.grammar import GrammarCompiler
from .errors import EngineError
from .protocol import Grammar, Limits, Sampling, Stats
from .vllm_stream import VllmStream

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


class VllmEngine:
    """vLLM in this process' event loop, its workers in processes of their own.

    Args:
        inner: the engine. recorder: told by it. tokenizer: to check grammars before vLLM sees them.
    """

    def __init__(self, inner: AsyncLLM, recorder: Recorder, limits: Limits, tokenizer: Any) -> None:
        self._inner, self._recorder, self.limits = inner, recorder, limits
        self._open: set[VllmStream] = set()
        self._news = asyncio.Event()
        self._numbers = itertools.count(1)
        lora = inner.vllm_config.lora_config
        self._adapters = AdapterTable(lora.max_loras if lora else 0)
        self._loras: dict[int, LoRARequest] = {}  # by slot
        self._grammars = GrammarCompiler(tokenizer, limits.vocab_size)
        self._closing = False

    @property
    def failure(self) -> str | None:
        return f"vLLM failed: {self._inner.dead_error}" if self._inner.errored else None

    def stats(self) -> Stats:
        recorded = self._recorder.stats
        free = round((1 - self._recorder.usage) * self.limits.blocks)
        return replace(recorded, free_blocks=free)

    def adapters(self) -> list[str]:
        return self._adapters.names()

    def submit(
        self, ids: Sequence[int], sampling: Sampling, *, adapter: str | None = None, priority: int = 5
    ) -> VllmStream:
        """See ``protocol.Engine.submit``."""
        if self.failure or self._closing:
            raise EngineError(self.failure or "the engine takes nothing any more: it is being stopped")
        check_prompt(ids, self.limits)
        loaded = None if adapter is None else self._adapters.find(adapter)
        parameters = self._parameters(sampling, self.limits.max_length - len(ids))
        stream = VllmStream(self._close, loaded, sampling.logprobs or 0)
        if loaded is not None:
            loaded.users += 1
        self._open.add(stream)
        outputs = self._inner.generate(
            TokensPrompt(prompt_token_ids=list(ids)),
            parameters,
            f"request-{next(self._numbers)}",
            lora_request=None if loaded is None else self._loras[loaded.slot],
            priority=priority,
        )
        stream.start(outputs)
        return stream

    async def compile(self, grammar: Grammar) -> Grammar:
        """See ``protocol.Engine.compile``. Refuses what vLLM would refuse later; it compiles the text again."""
        return await self._grammars.compiled(grammar)

    def _close(self, stream: VllmStream) -> None:
        """A request has ended."""
        self._open.discard(stream)
        if stream.adapter is not None:
            stream.adapter.users -= 1
        self._news.set()

    async def add_adapter(self, name: str, path: str) -> None:
        """See ``protocol.Engine.add_adapter``. What no engine serves is refused in the same words by both."""
        loaded, config = self._adapters.reserve(name), self._inner.vllm_config
        request = LoRARequest(loaded.key, loaded.number, path)
        try:
            adapter = await asyncio.to_thread(read_adapter, Path(path), config.model_config.hf_config)
            check_rank(adapter, config.lora_config.max_lora_rank)
            try:
                await self._inner.add_lora(request)
            except Exception as error:  # whatever a worker raises, sent as text
                raise EngineError(f"vLLM could not load adapter {name!r}: {' '.join(str(error).split())}") from None
        except BaseException:
            self._adapters.cancel(name, loaded)
            raise
        self._loras[loaded.slot] = request
        self._adapters.commit(name, loaded)

    async def remove_adapter(self, name: str) -> None:
        """See ``protocol.Engine.remove_adapter``."""
        loaded = self._adapters.remove(name)
        while loaded.users:
            self._news.clear()
            await self._news.wait()
        await self._inner.remove_lora(loaded.number)
        self._adapters.give_back(loaded)

    async def stop(self) -> None:
        """See ``protocol.Engine.stop``."""
        self._closing = True
        for stream in list(self._open):
            stream.abort()
        while self._open:
            self._news.clear()
            await self._news.wait()
        self._inner.shutdown()

    def _parameters(self, sampling: Sampling, room: int) -> SamplingParams:
        try:
            return self._converted(sampling, room)
        except ValueError as error:  # vLLM's ranges are narrower
            raise InputError(" ".join(str(error).split())) from None

    def _converted(self, sampling: Sampling, room: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=min(sampling.max_tokens, room),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            seed=sampling.seed,
            logit_bias=sampling.logit_bias or None,
            stop_token_ids=sorted(sampling.stop_token_ids),
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.logprobs,
            structured_outputs=None if sampling.grammar is None else _structured(sampling.grammar),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )


def _structured(grammar: Grammar) -> StructuredOutputsParams:
    if grammar.kind == "json_object":
        return StructuredOutputsParams(json_object=True, disable_any_whitespace=True)
    if grammar.kind == "json_schema":
        return StructuredOutputsParams(json=grammar.text, disable_any_whitespace=True)
    return StructuredOutputsParams(**{grammar.kind: grammar.text})


class Recorder(StatLoggerBase):  # type: ignore[misc, unused-ignore]
    """What vLLM tells of each step."""

    def __init__(self) -> None:
        self.stats, self.usage = Stats(), 0.0

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        """Add a step's numbers."""
        stats = self.stats
        if scheduler_stats is not None:
            found = scheduler_stats.prefix_cache_stats
            self.usage = scheduler_stats.kv_cache_usage
            stats = replace(
                stats,
                running=scheduler_stats.num_running_reqs,
                waiting=scheduler_stats.num_waiting_reqs,
                cached_tokens=stats.cached_tokens + (found.hits if found is not None else 0),
            )
        if iteration_stats is not None:
            stats = replace(
                stats,
                preemptions=stats.preemptions + iteration_stats.num_preempted_reqs,
                prompt_tokens=stats.prompt_tokens + iteration_stats.num_prompt_tokens,
                generated_tokens=stats.generated_tokens + iteration_stats.num_generation_tokens,
                steps=stats.steps + 1,
                last_batch=stats.running,
            )
        self.stats = stats

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


def visible(devices: Sequence[int], already: str | None) -> str:
    """What to tell CANN for these devices to be the only ones; they are counted among those visible ``already``."""
    names = already.split(",") if already else None
    return ",".join(str(device) if names is None else names[device].strip() for device in devices)


def start(arguments: dict[str, Any], devices: Sequence[int], tokenizer: Any, end_tokens: frozenset[int]) -> VllmEngine:
    """vLLM with a checkpoint; in the event loop's thread. Takes as long as loading does.

    Args:
        arguments: of ``AsyncEngineArgs``. devices: NPUs to use; none: vLLM's choice.

    Raises:
        InputError: vLLM or the plugin refuse the checkpoint or an option.
    """
    from ascend_m1_vllm.refusal import StartError

    if devices:
        os.environ[VISIBLE] = visible(devices, os.environ.get(VISIBLE))
    recorder = Recorder()
    try:
        arguments = {"scheduling_policy": "priority", "disable_log_stats": False, **arguments}
        arguments["structured_outputs_config"] = {"backend": "guidance", "disable_any_whitespace": True}
        inner = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[lambda config, index: recorder])
    except (StartError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from None
    config = inner.vllm_config
    limits = Limits(
        max_length=config.model_config.max_model_len,
        max_sequences=config.scheduler_config.max_num_seqs,
        block_size=config.cache_config.block_size,
        blocks=config.cache_config.num_gpu_blocks,
        vocab_size=config.model_config.get_vocab_size(),
        end_tokens=end_tokens,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        devices=config.parallel_config.world_size,
        device=config.device_config.device_type,
    )
    return VllmEngine(inner, recorder, limits, tokenizer)
