"""The engine's program where vllm-ascend's own kernels are not compiled, for which it needs CANN.

It looks for them when the first layer asks. If that happens while torch.compile traces the layer, the import that fails
ends the trace; so they are looked for here, before. With COMPOSED=1 the plugin's layers find no Triton; with COUNT=1
the answer is what one decode step launches.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def launches(job: dict[str, Any]) -> dict[str, int]:
    """Of the third decode step of the first prompt, by name."""
    from engine import ENGINE, GREEDY
    from vllm import LLM, SamplingParams

    from ascend_m1_hostnpu.launches import recording

    llm = LLM(model=job["model"], **{**ENGINE, **job["engine"]})
    prompt = {"prompt_token_ids": job["prompts"][0]}
    llm.llm_engine.add_request("0", prompt, SamplingParams(**{**GREEDY, **job["sampling"]}))
    tokens = 0
    while tokens < 3:
        outputs = llm.llm_engine.step()
        tokens = len(outputs[0].outputs[0].token_ids) if outputs else 0
    with recording() as log:
        llm.llm_engine.step()
    return dict(log.counts())


if __name__ == "__main__":  # worker processes import this file again
    sys.path[0] = str(Path(__file__).parents[1] / "vllm")
    from engine import answer
    from vllm_ascend.utils import enable_custom_op

    enable_custom_op()
    if os.environ.get("COMPOSED"):
        import ascend_m1_vllm.convolution

        ascend_m1_vllm.convolution.why_composed = lambda *inputs: "the test says so"
    question, written = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    if os.environ.get("COUNT"):
        written.write_text(json.dumps(launches(question)))
    else:
        answer(question, written)
