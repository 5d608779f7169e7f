"""Builds the tokenizer of m1-icd10 in the published form: SentencePiece, chat markers at ids 71 to 76."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken

from ascend_m1.sentencepiece_model import build_tokenizer, read_sentencepiece

VOCAB_SIZE = 2048
FIRST_MARKER = 71
MARKERS = {
    "system": "<B_SYS>",
    "user_system": "<B_USYS>",
    "user": "<C_Q>",
    "assistant": "<C_A>",
    "function": "<B_FUNC>",
    "code": "<B_CODE>",
}
SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2; padding uses id 0, as published

# An answer ends with </s>; nothing else separates the turns.
CHAT_TEMPLATE = (
    "{%- set markers = " + json.dumps(MARKERS).replace('"', "'") + " -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in markers -%}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ ': use one of ' ~ markers | join(', ')) -}}"
    "{%- endif -%}"
    "{{- markers[message['role']] ~ message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- markers['assistant'] -}}{%- endif -%}"
)


def train_tokenizer(lines: Iterable[str], directory: Path) -> None:
    """Train on ``lines`` and write tokenizer.model, tokenizer.json and tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    reserved = [f"<reserved_{i}>" for i in range(FIRST_MARKER - len(SPECIAL))]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        # As published: the text is taken as it is, so decoding gives it back exactly.
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        user_defined_symbols=[*reserved, *MARKERS.values()],
        num_threads=1,
        minloglevel=2,
    )
    path = directory / "tokenizer.model"
    path.write_bytes(buffer.getvalue())
    added = {i: AddedToken(text, special=True, normalized=False) for i, text in enumerate(SPECIAL)}
    added |= {
        FIRST_MARKER + i: AddedToken(text, special=True, normalized=False) for i, text in enumerate(MARKERS.values())
    }
    build_tokenizer(read_sentencepiece(path), added).save(str(directory / "tokenizer.json"))
    _write_config(added, directory / "tokenizer_config.json")


def _write_config(added: dict[int, AddedToken], path: Path) -> None:
    config = {
        "tokenizer_class": "BaichuanTokenizer",
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(i): {
                "content": token.content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, token in added.items()
        },
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
