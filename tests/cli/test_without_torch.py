"""What MindSpore's path shares with torch's works where torch is not installed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from ascend_m1.checkpoint_files import stored_shapes
from ascend_m1.cli import main
from ascend_m1.cli.checkpoint import open_checkpoint
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.prompts import chat_ids, chat_text, room_for
from ascend_m1.sampling import SamplingOptions
from ascend_m1.text_stream import TextStream

checkpoint = open_checkpoint(str(EMBEDDED))
ids = chat_ids(checkpoint.tokenizer, chat_text(checkpoint.tokenizer, [{"role": "user", "content": "Hello"}]))
assert room_for(checkpoint.config, len(ids)) > 0 and SamplingOptions(top_k=3)
pieces = []
stream = TextStream(checkpoint.tokenizer, pieces.append)
stream.take(ids)
stream.end()
assert "Hello" in "".join(pieces), pieces
assert "lm_head.weight" in stored_shapes(EMBEDDED)
assert main(["generate", "--help"]) == 0

import ascend_m1
from transformers import AutoConfig, AutoTokenizer

assert type(AutoConfig.from_pretrained(EMBEDDED)) is ascend_m1.BaichuanM1Config
assert AutoTokenizer.from_pretrained(EMBEDDED).get_vocab() == checkpoint.tokenizer.get_vocab()
for program in ("from ascend_m1 import BaichuanM1ForCausalLM", "from ascend_m1 import *", "ascend_m1.M1Cache"):
    try:
        exec(program)
    except ImportError as error:
        assert "needs torch: install it" in str(error), error
    else:
        raise SystemExit(f"{program}: no error")
assert not hasattr(ascend_m1, "Other")
assert not [name for name in sys.modules if name.startswith("torch.")]
"""


def test_configuration_prompts_and_commands() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, stdout=subprocess.DEVNULL)
