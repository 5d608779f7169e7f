"""An engine of vLLM in a process of its own, timed a batch at a time. Run as a program by ``bench_vllm.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Batch:
    """What one request to an engine took."""

    wall: float
    cpu: float
    tokens: int


class Engine:
    """Random weights of a configuration."""

    def __init__(
        self,
        folder: Path,
        requests: int,
        prompt: int,
        new: int,
        eager: bool,
        threads: int = 1,
        alone: int | None = None,
    ) -> None:
        """``alone``: how many of the requests to ask one by one; all unless said."""
        job = {"model": str(folder), "requests": requests, "prompt": prompt, "new": new, "eager": eager}
        job["alone"] = alone or requests
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(job)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()  # it is there

    def run(self, together: bool) -> Batch:
        """All requests in one batch, or one after the other."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(together)}\n")
        self.process.stdin.flush()
        return Batch(**self._answer())

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(30)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended with status {self.process.wait()}: its output is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    """Start the engine of argv[1]; a batch for every line that comes in."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch
    from vllm import LLM, SamplingParams

    job = json.loads(sys.argv[1])
    llm = LLM(
        job["model"],
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=job["requests"],
        enable_prefix_caching=False,
        gpu_memory_utilization=0.3,
        enforce_eager=job["eager"],
    )
    print("{}", file=replies, flush=True)
    sampling = SamplingParams(temperature=0, max_tokens=job["new"], ignore_eos=True, detokenize=False)
    torch.manual_seed(0)
    ids = torch.randint(3, 1000, (job["requests"], job["prompt"])).tolist()
    prompts = [{"prompt_token_ids": row} for row in ids]
    for line in sys.stdin:
        batches = [prompts] if json.loads(line) else [[prompt] for prompt in prompts[: job["alone"]]]
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = [output for batch in batches for output in llm.generate(batch, sampling, use_tqdm=False)]
        taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({**taken, "tokens": tokens}), file=replies, flush=True)


if __name__ == "__main__":
    main()
