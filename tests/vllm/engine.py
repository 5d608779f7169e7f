"""One vLLM engine in a process of its own: what it is asked, and what it answers.

``run`` writes the job into a file and starts this file as a program, which is the only place that imports vLLM. So a
test says which engine it wants as data, and nothing of one engine is left for the next.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

GREEDY = {"max_tokens": 24, "temperature": 0, "ignore_eos": True, "detokenize": False}
# Small, so that start-up is fast; float32 unless a test says otherwise.
ENGINE = {
    "skip_tokenizer_init": True,
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_batched_tokens": 256,
    "max_num_seqs": 8,
    "num_gpu_blocks_override": 64,
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "gpu_memory_utilization": 0.3,
    "disable_log_stats": False,
}


@dataclass(frozen=True)
class Job:
    """Prompts for one engine.

    Attributes:
        model: checkpoint folder.
        prompts: token ids.
        rounds: "together" or "one by one", in turn, all prompts in each.
        engine: arguments of ``vllm.LLM`` beyond ``ENGINE``.
        sampling: of ``vllm.SamplingParams`` beyond ``GREEDY``.
        follow_pages: instead of rounds, decode the first prompt and note the cache's pages in use after each step.
        environment: variables of the process.
    """

    model: str
    prompts: list[list[int]]
    rounds: tuple[str, ...] = ("together",)
    engine: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    follow_pages: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def workers(engine: dict[str, Any]) -> int:
    """Processes that compute."""
    tensor: int = engine.get("tensor_parallel_size", 1)
    pipeline: int = engine.get("pipeline_parallel_size", 1)
    return tensor * pipeline


def environment(workers: int) -> dict[str, str]:
    """Variables of an engine's process."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(workers > 1)),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all engines share the first core
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
    }


def run(job: Job, folder: Path, *command: str, timeout: int = 300) -> dict[str, Any]:
    """What the engine answers; ``command``: what comes after ``python``, unless it is this file.

    Raises:
        AssertionError: the process failed or took longer than ``timeout`` seconds; with the end of its output.
    """
    question, written = folder / "job.json", folder / "answer.json"
    question.write_text(json.dumps(asdict(job)))
    process = subprocess.Popen(
        [sys.executable, *(command or [__file__]), str(question), str(written)],
        env={**os.environ, **environment(workers(job.engine)), **job.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # an engine that fails to start may wait for its workers for ever
        raise AssertionError(f"no answer in {timeout} s:\n{process.communicate()[0][-6000:]}") from None
    assert process.returncode == 0, f"exit status {process.returncode}:\n{output[-6000:]}"
    answered: dict[str, Any] = json.loads(written.read_text())
    return answered


def _sample(sample: Any) -> dict[str, Any]:
    tokens, logprobs = list(sample.token_ids), sample.logprobs
    chosen = logprobs and [at[token].logprob for at, token in zip(logprobs, tokens, strict=True)]
    return {"tokens": tokens, "logprobs": chosen, "text": sample.text}


def _answer(output: Any) -> dict[str, Any]:
    samples = [_sample(sample) for sample in output.outputs]
    return {**samples[0], "samples": samples, "cached": output.num_cached_tokens}


def _rounds(llm: Any, job: dict[str, Any], sampling: Any) -> dict[str, Any]:
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    answers = []
    for how in job["rounds"]:
        batches = [prompts] if how == "together" else [[prompt] for prompt in prompts]
        answers.append(
            [_answer(output) for batch in batches for output in llm.generate(batch, sampling, use_tqdm=False)]
        )
    counted = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    scheduler = llm.llm_engine.vllm_config.scheduler_config.get_scheduler_cls().__name__
    return {"rounds": answers, "preemptions": int(counted["vllm:num_preemptions"]), "scheduler": scheduler}


def _pages(llm: Any, job: dict[str, Any], sampling: Any) -> dict[str, Any]:
    """[tokens in the cache, pages in use] after each step; bytes of a page."""
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    groups = scheduler.kv_cache_config.kv_cache_groups
    layers = max(len(group.layer_names) for group in groups)  # a block of the pool is a page in each of these
    pool = scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    engine.add_request("0", {"prompt_token_ids": job["prompts"][0]}, sampling)
    seen, tokens = [], []
    while engine.has_unfinished_requests():
        outputs = engine.step()
        request = scheduler.requests.get("0") or next(iter(scheduler.requests.values()), None)
        if request is not None:
            seen.append((request.num_computed_tokens, (free - pool.get_num_free_blocks()) * layers))
        tokens = list(outputs[0].outputs[0].token_ids) if outputs else tokens
    return {"pages": seen, "page_bytes": groups[0].kv_cache_spec.page_size_bytes, "tokens": tokens}


def answer(job: dict[str, Any], path: Path) -> None:
    """Start the engine that the job asks for and write what it answers."""
    from vllm import LLM, SamplingParams

    llm = LLM(model=job["model"], **{**ENGINE, **job["engine"]})
    sampling = SamplingParams(**{**GREEDY, **job["sampling"]})
    path.write_text(json.dumps((_pages if job["follow_pages"] else _rounds)(llm, job, sampling)))


if __name__ == "__main__":  # worker processes import this file again
    answer(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
