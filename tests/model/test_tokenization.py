"""The tokenizer: same ids as SentencePiece, text comes back, published directories load without remote code."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from ascend_m1 import BaichuanM1Config
from ascend_m1.errors import ConfigError, TokenizerError
from ascend_m1.sentencepiece_model import build_tokenizer, read_sentencepiece
from ascend_m1.tokenization_baichuan_m1 import BaichuanM1Tokenizer, check_vocabulary, register_tokenizer

register_tokenizer(BaichuanM1Config)

SHIPPED = Path(__file__).parents[2] / "ascend_m1" / "checkpoints" / "m1_icd10"
TINY_CONFIG = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))
LINES = [
    "the cat sat on the mat",
    "a dog ate the cat's hat",
    "Ärzte heilen 12 Hüte",
    "猫坐在垫子上，狗也在。",
    "aa aaa aaaa",
] * 8
# SentencePiece writes a space as U+2581, so the character itself cannot come back; surrogates are not text.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60)
LIKELY = st.text("aeht cs<C_Q>Äü猫垫 12\n\t", max_size=60)


def train(**options: Any) -> bytes:
    buffer = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 400,
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "user_defined_symbols": ["<reserved_0>", "<C_Q>", "<C_A>"],
        "hard_vocab_limit": False,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=buffer, **(settings | options))
    return buffer.getvalue()


MODELS = {
    "published": {},
    "unigram": {"model_type": "unigram", "vocab_size": 330},
    "dummy_prefix": {"add_dummy_prefix": True},
    "user_defined_spaces": {"user_defined_symbols": ["<C_Q>", "▁▁", "▁▁▁▁"]},
    "no_byte_fallback": {"byte_fallback": False, "vocab_size": 90},
    "default_normaliser": {
        "normalization_rule_name": "nmt_nfkc",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": True,
        "user_defined_symbols": [],
    },
}


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    """One model, read by SentencePiece and by us."""
    data = train(**MODELS[request.param])
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.model"
    path.write_bytes(data)
    return sentencepiece.SentencePieceProcessor(model_proto=data), build_tokenizer(read_sentencepiece(path), {})


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A directory as published: tokenizer.model alone, and configurations that point to remote code."""
    (tmp_path / "tokenizer.model").write_bytes(train())
    write_json(tmp_path / "config.json", TINY_CONFIG | {"auto_map": {"AutoConfig": "configuration_baichuan.Config"}})
    tokenizer_config = {
        "tokenizer_class": "BaichuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "bos_token": {"__type": "AddedToken", "content": "<s>", "normalized": True, "lstrip": False, "rstrip": False},
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
        "chat_template": "{% for m in messages %}<C_Q>{{ m['content'] }}{% endfor %}<C_A>",
    }
    write_json(tmp_path / "tokenizer_config.json", tokenizer_config)
    return tmp_path


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


# Fixed examples: a unigram model has splits that are equally likely, where the choice may differ (documented).
@settings(derandomize=True, max_examples=300)
@given(text=TEXT | LIKELY)
def test_same_ids_as_sentencepiece(both: tuple[Any, Tokenizer], text: str) -> None:
    reference, ours = both
    # "</s>" is a token for us and text for SentencePiece; a leading "<C_Q>" gets no dummy prefix: both documented.
    if any(piece in text for piece in ("<s>", "</s>", "<unk>")) or text.startswith("<C_Q>"):
        return
    assert ours.encode(text, add_special_tokens=False).ids == reference.encode(text)


@given(text=TEXT | LIKELY)
def test_decoding_gives_the_text_back(text: str) -> None:
    tokenizer = shipped_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@given(text=TEXT | LIKELY)
def test_shipped_json_and_model_agree(text: str) -> None:
    from_json, from_model = shipped_tokenizer(), model_only_tokenizer()
    assert from_json.encode(text) == from_model.encode(text)


_LOADED: dict[str, BaichuanM1Tokenizer] = {}


def shipped_tokenizer() -> BaichuanM1Tokenizer:
    if "json" not in _LOADED:
        _LOADED["json"] = BaichuanM1Tokenizer.from_pretrained(SHIPPED)
    return _LOADED["json"]


def model_only_tokenizer() -> BaichuanM1Tokenizer:
    if "model" not in _LOADED:
        config = json.loads((SHIPPED / "tokenizer_config.json").read_text(encoding="utf-8"))
        added = {int(i): AddedToken(**token) for i, token in config["added_tokens_decoder"].items()}
        backend = build_tokenizer(read_sentencepiece(SHIPPED / "tokenizer.model"), added)
        _LOADED["model"] = BaichuanM1Tokenizer(tokenizer_object=backend)
    return _LOADED["model"]


def test_published_directory_loads_without_remote_code(published: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published)
    assert isinstance(tokenizer, BaichuanM1Tokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "the cat"}])["input_ids"]
    reference = sentencepiece.SentencePieceProcessor(model_file=str(published / "tokenizer.model"))
    assert prompt == reference.encode("<C_Q>the cat<C_A>")
    assert tokenizer.encode("the cat") == reference.encode("the cat")


def test_save_and_load(published: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = AutoTokenizer.from_pretrained(published)
    copy = tmp_path_factory.mktemp("copy")
    first.save_pretrained(copy)
    write_json(copy / "config.json", TINY_CONFIG)
    again = AutoTokenizer.from_pretrained(copy)
    assert isinstance(again, BaichuanM1Tokenizer)
    assert again.encode("<C_Q>the cat 猫\n") == first.encode("<C_Q>the cat 猫\n")
    assert again.chat_template == first.chat_template


def test_added_tokens_rename_a_piece_and_extend(published: Path) -> None:
    """Newer files name reserved ids and use another chat format: their own configuration decides."""
    path = published / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    size = sentencepiece.SentencePieceProcessor(model_file=str(published / "tokenizer.model")).get_piece_size()
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config["added_tokens_decoder"] = {
        "3": {"content": "<|im_start|>", **flags},
        str(size): {"content": "<|im_end|>", **flags},
    }
    config["chat_template"] = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    write_json(path, config)
    tokenizer = AutoTokenizer.from_pretrained(published)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a"}])["input_ids"]
    assert ids[0] == 3
    assert ids[-1] == size
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\na"


def test_added_token_at_an_impossible_id(published: Path) -> None:
    shutil.copy(SHIPPED / "tokenizer.json", published / "tokenizer.json")
    path = published / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    write_json(path, config | {"added_tokens_decoder": {"7": {"content": "<C_Q>", **flags}}})
    with pytest.raises(TokenizerError, match="'<C_Q>' the id 7"):
        BaichuanM1Tokenizer.from_pretrained(published)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00garbage", None])
def test_broken_file_is_named(published: Path, name: str, content: bytes | None) -> None:
    path = published / name
    if content is None:  # cut in the middle, as after a broken download
        source = path if path.is_file() else SHIPPED / name
        content = source.read_bytes()[: source.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=name) as caught:
        BaichuanM1Tokenizer.from_pretrained(published)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        BaichuanM1Tokenizer.from_pretrained(tmp_path)


def test_check_vocabulary() -> None:
    tokenizer = shipped_tokenizer()
    check_vocabulary(tokenizer, BaichuanM1Config.from_dict(TINY_CONFIG))
    with pytest.raises(TokenizerError, match=r"id 2047 but config\.json says vocab_size=2000"):
        check_vocabulary(tokenizer, BaichuanM1Config.from_dict(TINY_CONFIG | {"vocab_size": 2000}))
    with pytest.raises(ConfigError, match="eos_token_id=5000"):
        BaichuanM1Config.from_dict(TINY_CONFIG | {"eos_token_id": 5000})


def test_chat_format() -> None:
    tokenizer = shipped_tokenizer()
    markers = ["<B_SYS>", "<B_USYS>", "<C_Q>", "<C_A>", "<B_FUNC>", "<B_CODE>"]
    assert tokenizer.convert_tokens_to_ids(markers) == [71, 72, 73, 74, 75, 76]
    roles = ["system", "user_system", "user", "assistant", "function", "code"]
    chat = [{"role": role, "content": role.upper()} for role in roles]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == ("<B_SYS>SYSTEM<B_USYS>USER_SYSTEM<C_Q>USER<C_A>ASSISTANT</s><B_FUNC>FUNCTION<B_CODE>CODE<C_A>")
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])
