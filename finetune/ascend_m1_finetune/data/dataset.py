"""Tokenised documents as a data set: kept on disk and read again, made while training, or packed."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.exceptions import DatasetGenerationError
from torch import Tensor

from ascend_m1.cli.options import note
from ascend_m1.errors import AscendM1Error, InputError

from ..packing import IGNORED, Document, pack_documents, pad_documents
from ..recipe import Recipe
from .files import Row, rows
from .forms import conversation
from .info import Source, sources
from .template import chat_document, text_documents

_FORMAT = 2  # of what is kept on disk; another number makes it anew


def training_data(recipe: Recipe, tokenizer: Any, seed: int) -> Any:
    """What the Trainer draws from; each item has ``input_ids`` and ``labels``, a packed one ``position_ids``, too.

    Raises:
        InputError: a file, a row of it (with its line) or an entry of a dataset-info file cannot be used.
    """
    found = sources(str(recipe.dataset), recipe.custom_dataset_info)
    if tokenizer.chat_template is None and any(source.form != "text" for source in found):
        raise InputError(f"model {recipe.base}: has no chat_template for conversations: give one, or formatting: text")
    arguments = {"found": found, "tokenizer": tokenizer, "length": recipe.cutoff_len, "seed": seed}
    if recipe.streaming:
        return datasets.IterableDataset.from_generator(_streamed, gen_kwargs=arguments)
    counts: Counter[str] = Counter()  # empty where the tokens are there already
    try:
        kept = datasets.Dataset.from_generator(
            _documents,
            gen_kwargs={**arguments, "counts": counts},
            cache_dir=recipe.cache_dir,
            fingerprint=_fingerprint(found, tokenizer, recipe.cutoff_len, seed),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, AscendM1Error):
            raise error.__cause__ from None
        raise
    beside = Path(kept.cache_files[0]["filename"]).with_suffix(".json")
    if counts:
        part = beside.with_suffix(".part")
        part.write_text(json.dumps(counts), encoding="utf-8")
        os.replace(part, beside)
    elif beside.is_file():  # not if the process that made the tokens was killed right after
        counts.update(json.loads(beside.read_text(encoding="utf-8")))
    _say(counts, recipe.cutoff_len)
    if not recipe.packing:
        return kept
    items = [Document(tuple(item["input_ids"]), tuple(item["labels"])) for item in kept]
    random.Random(seed).shuffle(items)  # the Trainer mixes whole rows only, and a row would hold one data set
    return pack_documents(items, recipe.cutoff_len, tokenizer.pad_token_id or 0)


class Padded:
    """A collator of items that are not packed: padded at the end to the longest."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Items with ``input_ids`` and ``labels`` -> tensors [B, longest], see ``pad_documents``."""
        return pad_documents([Document(tuple(item["input_ids"]), tuple(item["labels"])) for item in items], self.pad_id)


def stacked(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A collator of packed rows, each of tensors [L] -> tensors [B, L].

    ``attention_mask`` is there for the Trainer to count tokens by: 0 in the tail, the one document without an answer.
    ``M1Trainer`` keeps it from the model, to which the tail is a document like others.
    """
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    number = (batch["position_ids"] == 0).cumsum(1)
    last = number == number[:, -1:]
    learns = ((batch["labels"] != IGNORED) & last).any(1, keepdim=True)
    return {**batch, "attention_mask": (~last | learns).long()}


def _documents(
    found: list[Source], tokenizer: Any, length: int, seed: int, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    for source in found:
        before, empty = counts["kept"], True
        for where, row in _chosen(source, seed):
            empty = False
            for item in _tokenised(source, where, row, tokenizer, length):
                labels = item.labels[:length]
                if all(label == IGNORED for label in labels):
                    counts["dropped"] += 1
                    continue
                counts["kept"] += 1
                counts["cut"] += len(item.input_ids) > length
                yield {"input_ids": item.input_ids[:length], "labels": labels}
        if empty:
            raise InputError(f"{source.file}: has no rows: give some, or leave {source.name} out of dataset")
        if counts["kept"] == before:
            raise InputError(f"{source.name}: no row has an answer within cutoff_len={length}")


def _streamed(length: int, **arguments: Any) -> Iterator[dict[str, Any]]:
    counts: Counter[str] = Counter()
    yield from _documents(length=length, counts=counts, **arguments)
    _say(counts, length)


def _say(counts: Counter[str], length: int) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0":  # torchrun starts several, which read the same
        return
    if counts["cut"]:
        note(f"{counts['cut']} rows are longer than cutoff_len={length}: their ends are left out")
    if counts["dropped"]:
        note(f"{counts['dropped']} rows are left out: no answer within cutoff_len={length}")


def _chosen(source: Source, seed: int) -> Iterable[Row]:
    if source.samples is None:
        return rows(source.file)
    held = list(rows(source.file))
    return random.Random(seed).sample(held, min(source.samples, len(held)))


def _tokenised(source: Source, where: str, row: dict[str, Any], tokenizer: Any, length: int) -> Iterator[Document]:
    content = conversation(source, where, row)
    for text in [content] if isinstance(content, str) else [message["content"] for message in content]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"{ord(text[error.start]):04x}"
            raise InputError(f"{where}: \\u{half} is half of a character: mend the text") from None
    if isinstance(content, str):
        yield from text_documents(tokenizer, content, length)
        return
    try:
        yield chat_document(tokenizer, content)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def source_digest(found: list[Source]) -> Any:
    """hashlib's object, of what the rows are; the files count by their bytes."""
    digest = hashlib.sha256()
    for source in found:
        with source.file.open("rb") as file:
            digest.update(
                hashlib.file_digest(file, "sha256").digest() if hasattr(hashlib, "file_digest") else file.read()
            )
        description = [source.form, source.samples, source.columns, source.tags]
        digest.update(json.dumps(description, sort_keys=True).encode())
    return digest


def _fingerprint(found: list[Source], tokenizer: Any, length: int, seed: int) -> str:
    """Of everything that the tokens depend on."""
    digest = source_digest(found)
    digest.update(json.dumps([_FORMAT, tokenizer.chat_template, length, seed]).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    name: str = digest.hexdigest()[:32]
    return name
