"""The tokenizer of a published Baichuan-M1 directory, loaded without remote code.

It reads ``tokenizer.json`` where there is one and ``tokenizer.model`` otherwise; ``tokenizer_config.json`` decides
the special tokens, added tokens and the chat template. A reference to remote code in there is not followed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PretrainedConfig, TokenizersBackend

from .errors import TokenizerError
from .sentencepiece_model import SentencePieceModel, build_tokenizer, read_sentencepiece

FAST_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
JSON_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", FAST_FILE)


class BaichuanM1Tokenizer(TokenizersBackend):
    """A fast tokenizer with the ids of the published SentencePiece model.

    Raises:
        TokenizerError: a file is missing or corrupt, or an added token cannot have the id that the files state.
    """

    vocab_files_names = {"tokenizer_file": FAST_FILE, "vocab_file": SENTENCEPIECE_FILE}
    model_input_names = ["input_ids", "attention_mask"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load from a directory; a local one is checked first, so a broken file is named."""
        directory = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if directory.is_dir():
            check_tokenizer_files(directory)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """The hook of ``from_pretrained`` that turns files into a ``tokenizers.Tokenizer``."""
        # "normal" decoding has to give the text back: no space may be tidied away.
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        added: dict[int, AddedToken] = kwargs.get("added_tokens_decoder") or {}
        fast_file, model_file = kwargs.pop("tokenizer_file", None), kwargs.get("vocab_file")
        if fast_file is not None:
            backend = _read_fast(Path(fast_file))
        elif model_file is not None:
            model = read_sentencepiece(Path(model_file))
            backend = build_tokenizer(model, added)
            for name, piece in _special_pieces(model).items():
                kwargs.setdefault(name, piece)
        else:
            raise TokenizerError(_no_files(kwargs.get("name_or_path")))
        _check_added(backend, added, str(fast_file or model_file))
        kwargs["tokenizer_object"] = backend
        return kwargs


class BaichuanTokenizer(BaichuanM1Tokenizer):
    """The class name that published ``tokenizer_config.json`` files state."""


def register_tokenizer(config_class: type[PretrainedConfig]) -> None:
    """Make ``AutoTokenizer`` use ``BaichuanM1Tokenizer`` for this configuration, without remote code.

    transformers goes by the class name in ``tokenizer_config.json`` before it goes by the configuration, so the
    published name is registered as well.
    """
    AutoTokenizer.register(
        config_class,
        slow_tokenizer_class=BaichuanTokenizer,
        fast_tokenizer_class=BaichuanM1Tokenizer,
        exist_ok=True,
    )


def check_vocabulary(tokenizer: Any, config: PretrainedConfig) -> None:
    """Check that every token of the tokenizer has a row in the embedding.

    Raises:
        TokenizerError: the tokenizer has an id at or above ``config.vocab_size``.
    """
    size = config.vocab_size
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= size:
        raise TokenizerError(
            f"tokenizer: token {token!r} has id {highest} but config.json says vocab_size={size}: "
            "use the tokenizer files of this checkpoint"
        )


def check_tokenizer_files(directory: Path) -> None:
    """Check that a directory has a tokenizer and that its JSON files can be read.

    Raises:
        TokenizerError: names the file and the remedy.
    """
    if not any((directory / name).is_file() for name in (FAST_FILE, SENTENCEPIECE_FILE)):
        raise TokenizerError(_no_files(directory))
    for path in (directory / name for name in JSON_FILES):
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{path}: not readable as JSON ({error}): download it again") from error
        if not isinstance(content, dict):
            raise TokenizerError(f"{path}: holds no JSON object: download it again")
        template = content.get("chat_template")
        if template is not None and not isinstance(template, (str, list)):
            raise TokenizerError(f"{path}: chat_template={template!r} is no text: copy the file again")
        if path.name == FAST_FILE and not {"model", "added_tokens"} <= content.keys():
            raise TokenizerError(f"{path}: has no model or no added_tokens: download it again")


def _no_files(where: object) -> str:
    return f"{where}: neither {FAST_FILE} nor {SENTENCEPIECE_FILE}: copy one from the published checkpoint"


def _read_fast(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise TokenizerError(f"{path}: not a readable tokenizer ({error}): download it again") from error


def _special_pieces(model: SentencePieceModel) -> dict[str, str]:
    ids = {"unk_token": model.unk_id, "bos_token": model.bos_id, "eos_token": model.eos_id, "pad_token": model.pad_id}
    pieces = {name: model.piece_text(index) for name, index in ids.items()}
    return {name: piece for name, piece in pieces.items() if piece is not None}


def _check_added(backend: Tokenizer, added: Mapping[int, AddedToken], source: str) -> None:
    for index, token in added.items():
        actual = backend.token_to_id(token.content)
        if actual != index:
            raise TokenizerError(
                f"{source}: tokenizer_config.json gives {token.content!r} the id {index}, the vocabulary gives "
                f"{actual}: use the files of one checkpoint"
            )
