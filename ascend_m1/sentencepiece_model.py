"""Reader of a SentencePiece ``tokenizer.model`` and its translation into a ``tokenizers.Tokenizer``.

It reads the few protobuf fields that decide the encoding, so neither protobuf nor sentencepiece has to be
installed, and it encodes like SentencePiece itself: same normaliser, merges ranked by piece score, byte fallback.
Control and user-defined pieces become added tokens; so unlike in SentencePiece the text ``</s>`` is a token. The
published models have no dummy prefix; in one that has, a text that begins with an added token gets none here. Where a
unigram model finds two splits equally likely, the choice may differ from SentencePiece's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from .errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place in the list."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """The parts of a SentencePiece model that decide how text becomes ids."""

    pieces: tuple[Piece, ...]
    model_type: int
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    def piece_text(self, index: int) -> str | None:
        """The text of a piece, or None where the model does not define that id (it is stored as -1)."""
        return self.pieces[index].text if 0 <= index < len(self.pieces) else None


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a ``tokenizer.model`` file.

    Raises:
        TokenizerError: the file cannot be read as a SentencePiece BPE or unigram model.
    """
    try:
        top = list(_fields(path.read_bytes()))
        pieces = tuple(_read_piece(value) for number, value in top if number == 1 and isinstance(value, bytes))
        trainer = dict(_fields(b"".join(v for n, v in top if n == 2 and isinstance(v, bytes))))
        normalizer = dict(_fields(b"".join(v for n, v in top if n == 3 and isinstance(v, bytes))))
    except (OSError, ValueError, struct.error) as error:
        raise TokenizerError(f"{path}: not a readable SentencePiece model ({error}): download it again") from error
    model_type = _number(trainer, 3, UNIGRAM)
    if not pieces or model_type not in (UNIGRAM, BPE):
        raise TokenizerError(f"{path}: not a SentencePiece BPE or unigram model: download it again")
    return SentencePieceModel(
        pieces=pieces,
        model_type=model_type,
        byte_fallback=bool(_number(trainer, 35, 0)),
        unk_id=_number(trainer, 40, 0),
        bos_id=_number(trainer, 41, 1),
        eos_id=_number(trainer, 42, 2),
        pad_id=_number(trainer, 43, -1),
        charsmap=value if isinstance(value := normalizer.get(2, b""), bytes) else b"",
        add_dummy_prefix=bool(_number(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_number(normalizer, 4, 1)),
        escape_whitespaces=bool(_number(normalizer, 5, 1)),
    )


def build_tokenizer(model: SentencePieceModel, added: Mapping[int, AddedToken]) -> Tokenizer:
    """A fast tokenizer with the model's ids.

    Args:
        model: the SentencePiece model.
        added: tokens that the checkpoint's ``tokenizer_config.json`` places at fixed ids: they rename a piece
            (``<reserved_1>`` becomes ``<|im_start|>``) or extend the vocabulary.
    """
    names = [piece.text for piece in model.pieces]
    for index, token in added.items():
        if index < len(names):
            names[index] = token.content
    tokenizer = Tokenizer(_bpe(model, names, added) if model.model_type == BPE else _unigram(model, names))
    tokenizer.normalizer = normalizers.Sequence(_normalizers(model))
    if model.add_dummy_prefix:
        # "first" goes by the place in the raw text, so it misses a text whose leading spaces were removed.
        scheme: Literal["always", "first"] = "always" if model.remove_extra_whitespaces else "first"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_tokens(_added_tokens(model, added))
    return tokenizer


def _added_tokens(model: SentencePieceModel, added: Mapping[int, AddedToken]) -> list[AddedToken]:
    tokens = dict(added)
    for index, piece in enumerate(model.pieces):
        if piece.type in (CONTROL, USER_DEFINED) and index not in tokens:
            # Found in the normalised text, a piece may hold escaped spaces and does not start a text of its own, which
            # would get another dummy prefix.
            escaped = piece.type == USER_DEFINED and (model.add_dummy_prefix or "▁" in piece.text)
            tokens[index] = AddedToken(piece.text, special=piece.type == CONTROL, normalized=escaped)
    return [tokens[index] for index in sorted(tokens)]


def _bpe(model: SentencePieceModel, names: list[str], added: Mapping[int, AddedToken]) -> models.BPE:
    vocab = {name: index for index, name in enumerate(names)}
    vocab.update((token.content, index) for index, token in added.items())
    normal = {
        piece.text: (-piece.score, index)
        for index, piece in enumerate(model.pieces)
        if piece.type == NORMAL and index not in added
    }
    ranked = sorted(
        (*rank, text[:cut], text[cut:])
        for text, rank in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    )
    return models.BPE(
        vocab=vocab,
        merges=[(left, right) for _, _, left, right in ranked],
        unk_token=names[model.unk_id],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SentencePieceModel, names: list[str]) -> models.Unigram:
    scores = [(name, piece.score) for name, piece in zip(names, model.pieces, strict=True)]
    return models.Unigram(scores, unk_id=model.unk_id, byte_fallback=model.byte_fallback)


def _normalizers(model: SentencePieceModel) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        # Spaces only: SentencePiece leaves newlines and tabs alone.
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.escape_whitespaces:
        steps.append(normalizers.Replace(" ", "▁"))
    if model.add_dummy_prefix:
        # Metaspace adds no prefix to a text that begins with a space already; SentencePiece does.
        steps.append(normalizers.Replace(Regex(r"\A▁"), "▁▁"))
    return steps


def _read_piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    text, score = fields.get(1), fields.get(2, struct.pack("<f", 0.0))
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise ValueError("a piece without text")
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], _number(fields, 3, NORMAL))


def _number(fields: Mapping[int, int | bytes], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        return default
    # protobuf stores a negative int32 as a 64-bit two's complement
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one protobuf message: (number, varint or raw bytes)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"cut short at byte {len(data)}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError(f"cut short at byte {len(data)}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"bad number at byte {at}")
