"""What openMind is told: the group with its models, the chat format, and transformers' classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from openmind.flow.datasets.template import TEMPLATES, Template
from openmind.flow.model.model_registry import register_model_group
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from . import GROUP
from .baichuan_m1 import BaichuanM1Config, BaichuanM1ForCausalLM, BaichuanTokenizer

TARGETS = "W_pack, o_proj, gate_proj, up_proj, down_proj"


class ChatTemplate(Template):  # type: ignore[misc, unused-ignore]
    """The checkpoint's own chat_template, in place of openMind's pieces of text."""

    def encode(
        self, tokenizer: Any, messages: list[dict[str, str]], datasets_args: Any
    ) -> list[tuple[list[int], list[int]]]:
        """Messages that alternate -> (tokens before an answer, the answer's), for each; openMind learns the latter.

        As ``ascend-m1 train`` does it: a template that does not end an answer with a special token gets the end token.

        Raises:
            ValueError: the template writes an answer otherwise than it asks for it, or changes earlier turns.
        """
        encoded: list[list[int]] = []
        before: list[int] = []
        for index in range(1, len(messages), 2):
            for turns, ask in ((messages[:index], True), (messages[: index + 1], False)):
                text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
                ids = tokenizer.encode(text, add_special_tokens=False)
                if ids[: len(before)] != before or len(ids) == len(before):
                    raise ValueError("the chat template changes what it wrote before: these turns cannot be learnt")
                encoded.append(ids[len(before) :])
                before = ids
        if encoded and encoded[-1][-1] not in tokenizer.all_special_ids:
            encoded[-1] = [*encoded[-1], tokenizer.eos_token_id]
        pairs: list[tuple[list[int], list[int]]] = self._make_pairs(
            encoded, datasets_args.cutoff_len, datasets_args.reserved_label_len
        )
        return pairs


def register() -> None:
    """Called when openMind's table of models has been loaded."""
    TEMPLATES[GROUP] = ChatTemplate()
    register_model_group(GROUP, {"m1-icd10": {"modelers": str(_embedded())}}, lora_target=TARGETS, template=GROUP)
    AutoConfig.register(GROUP, BaichuanM1Config)
    AutoModelForCausalLM.register(BaichuanM1Config, BaichuanM1ForCausalLM)
    AutoTokenizer.register(BaichuanM1Config, fast_tokenizer_class=BaichuanTokenizer)


def _embedded() -> Path:
    """The embedded checkpoint's folder, found without importing the package, which needs transformers 5."""
    spec = importlib.util.find_spec("ascend_m1")
    if spec is None or spec.origin is None:
        raise ImportError("the package ascend_m1 is not installed beside it")
    return Path(spec.origin).parent / "checkpoints" / "m1_icd10"
