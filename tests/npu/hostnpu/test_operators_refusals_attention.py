"""Attention: what the pages forbid fails when asked for, naming operator, argument and page; a case for each rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu

from .checks import assert_refused, half, ints

FIA = "fused_infer_attention_score"
TRAIN = "flash_attention_score/docs/aclnnFlashAttentionVarLenScore.md"
TRIANGLE = torch.triu(torch.ones(2048, 2048, dtype=torch.bool), 1)


def infer(**changes: Any) -> None:
    """Two sequences of two new tokens over pages of 16, head size 32, two heads for each key head; and changes."""
    given: dict[str, Any] = {
        "query": half(4, 4, 32),
        "key": half(8, 16, 64),
        "value": half(8, 16, 64),
        "input_layout": "TND",
        "actual_seq_lengths": [2, 4],
        "actual_seq_lengths_kv": [20, 30],
        "block_table": ints([0, 1], [2, 3]),
        "block_size": 16,
        "num_heads": 4,
        "num_key_value_heads": 2,
    }
    given |= changes
    query, key, value = (given.pop(name) for name in ("query", "key", "value"))
    torch_npu.npu_fused_infer_attention_score(query, key, value, **given)


def triangle(mode: int = 3, **changes: Any) -> dict[str, Any]:
    return {"sparse_mode": mode, "atten_mask": TRIANGLE.npu(), **changes}


def caches(*shape: int, **changes: Any) -> dict[str, Any]:
    return {"key": half(*shape), "value": half(*shape), **changes}


DENSE = {
    "input_layout": "BNSD",
    "actual_seq_lengths": None,
    "actual_seq_lengths_kv": None,
    "block_table": None,
    "block_size": 0,
}
INFER: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "float32": ("query", lambda: {"query": half(4, 4, 32, dtype=torch.float32)}),
    "dtypes differ": ("key", lambda: {"key": half(8, 16, 64, dtype=torch.bfloat16)}),
    "query strided": ("query", lambda: {"query": half(4, 8, 32)[:, ::2]}),
    "caches differ": ("value", lambda: {"value": half(9, 16, 64)}),
    "heads not a multiple": ("numHeads", lambda: {"query": half(4, 3, 32), "num_heads": 3}),
    "65 heads share one": (
        "numHeads",
        lambda: caches(8, 16, 32, query=half(4, 65, 32), num_heads=65, num_key_value_heads=1),
    ),
    "heads above 256": (
        "numHeads",
        lambda: caches(8, 16, 320, query=half(4, 320, 32), num_heads=320, num_key_value_heads=10),
    ),
    "heads unlike the query": ("numHeads", lambda: {"num_heads": 8}),
    "unknown mode": ("sparseMode", lambda: triangle(5)),
    "table of int64": ("blockTable", lambda: {"block_table": ints([0, 1], [2, 3], dtype=torch.int64)}),
    "table without a row": ("blockTable", lambda: {"block_table": ints([0, 1])}),
    "table without a column": ("blockTable", lambda: {"actual_seq_lengths_kv": [20, 33]}),
    "table of one dimension": ("blockTable", lambda: {"block_table": ints(0, 1)}),
    "blocks of 24": ("blockSize", lambda: caches(8, 24, 64, block_size=24)),
    "blocks of 528": ("blockSize", lambda: caches(8, 528, 64, block_size=528)),
    "block size unlike the cache": ("blockSize", lambda: {"block_size": 32}),
    "cache row too wide": (
        "key",
        lambda: caches(1, 16, 65536, query=half(4, 256, 256), num_heads=256, num_key_value_heads=256),
    ),
    "no query lengths": ("actualSeqLengths", lambda: {"actual_seq_lengths": None}),
    "no key lengths": ("actualSeqLengthsKv", lambda: {"actual_seq_lengths_kv": None}),
    "lengths not cumulative": ("actualSeqLengths", lambda: {"actual_seq_lengths": [3, 2]}),
    "lengths end before the tokens": ("actualSeqLengths", lambda: {"actual_seq_lengths": [2, 3]}),
    "lists of different length": ("actualSeqLengthsKv", lambda: {"actual_seq_lengths_kv": [20]}),
    "keys unpaged not cumulative": (
        "actualSeqLengthsKv",
        lambda: {
            "key": half(50, 2, 32),
            "value": half(50, 2, 32),
            "block_table": None,
            "actual_seq_lengths_kv": [30, 20],
        },
    ),
    "head size 256 with a cache by heads": (
        "query",
        lambda: caches(8, 2, 16, 256, query=half(4, 4, 256)),
    ),
    "one head a key head with head size 32": ("query", lambda: caches(8, 16, 128, num_key_value_heads=4)),
    "a band on the second kernel": (
        "sparseMode",
        lambda: caches(8, 16, 128, query=half(4, 4, 64), inner_precise=1, **triangle(4, pre_tokens=3, next_tokens=0)),
    ),
    "an empty band": ("nextTokens", lambda: triangle(4, pre_tokens=3, next_tokens=-4)),
    "causal without a mask": ("attenMask", lambda: {"sparse_mode": 3}),
    "a small triangle": ("attenMask", lambda: triangle(atten_mask=TRIANGLE[:1024, :1024].npu())),
    "a mask of floats": ("attenMask", lambda: triangle(atten_mask=half(2048, 2048))),
    "no triangle": ("attenMask", lambda: triangle(atten_mask=TRIANGLE.T.contiguous().npu())),
    "a full mask in TND": ("attenMask", lambda: {"atten_mask": torch.zeros(4, 64, dtype=torch.bool).npu()}),
    "BSH with a cache by heads": (
        "key",
        lambda: caches(8, 2, 16, 32, query=half(2, 2, 128), input_layout="BSH"),
    ),
    "head size 24 with S > 1": ("query", lambda: caches(2, 2, 8, 24, **DENSE, query=half(2, 4, 3, 24))),
    "head size above 512": ("query", lambda: caches(2, 2, 8, 528, **DENSE, query=half(2, 4, 3, 528))),
    "key heads unlike the key": ("numKeyValueHeads", lambda: caches(2, 4, 8, 32, **DENSE, query=half(2, 4, 3, 32))),
    "three lengths for two": (
        "actualSeqLengthsKv",
        lambda: caches(3, 2, 8, 32, **(DENSE | {"query": half(3, 4, 3, 32), "actual_seq_lengths_kv": [8, 8]})),
    ),
    "length above S": (
        "actualSeqLengthsKv",
        lambda: caches(2, 2, 8, 32, **(DENSE | {"query": half(2, 4, 3, 32), "actual_seq_lengths_kv": [8, 9]})),
    ),
    "mask too narrow": (
        "attenMask",
        lambda: caches(
            2, 2, 8, 32, **DENSE, query=half(2, 4, 3, 32), atten_mask=torch.zeros(3, 7, dtype=torch.bool).npu()
        ),
    ),
    "mask of another batch": (
        "attenMask",
        lambda: caches(
            2, 2, 8, 32, **DENSE, query=half(2, 4, 1, 32), atten_mask=torch.zeros(3, 8, dtype=torch.bool).npu()
        ),
    ),
    "blocks of 64 with S > 1 and head size 256": (
        "blockSize",
        lambda: caches(8, 64, 512, query=half(2, 2, 1024), input_layout="BSH", block_size=64, actual_seq_lengths=None),
    ),
}


@pytest.mark.parametrize("name", INFER)
def test_infer_attention(name: str) -> None:
    argument, changes = INFER[name]
    assert_refused("aclnnFusedInferAttentionScoreV3", argument, FIA, lambda: infer(**changes()))


def train(**changes: Any) -> None:
    given: dict[str, Any] = {
        "query": half(4, 4, 16),
        "key": half(4, 2, 16),
        "value": half(4, 2, 16),
        "heads": 4,
        "actual_seq_qlen": [2, 4],
        "actual_seq_kvlen": [2, 4],
    }
    given |= changes
    query, key, value, heads = (given.pop(name) for name in ("query", "key", "value", "heads"))
    torch_npu.npu_fusion_attention(query, key, value, heads, "TND", **given)


TRAINING: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "dtypes differ": ("key", lambda: {"key": half(4, 2, 16, dtype=torch.bfloat16)}),
    "integers": ("query", lambda: {n: half(4, 2, 16).int() for n in ("query", "key", "value")} | {"heads": 2}),
    "heads not a multiple": ("headNum", lambda: {"query": half(4, 3, 16), "heads": 3}),
    "heads above 256": ("headNum", lambda: {"query": half(4, 258, 16), "heads": 258}),
    "head size above 768": ("query", lambda: {n: half(4, 2, 784) for n in ("query", "key", "value")} | {"heads": 2}),
    "value wider than key": ("value", lambda: {"value": half(4, 2, 32)}),
    "lengths not cumulative": ("actualSeqQLen", lambda: {"actual_seq_qlen": [3, 1]}),
    "lengths beyond the tokens": ("actualSeqQLen", lambda: {"actual_seq_qlen": [2, 5]}),
    "too many documents": ("actualSeqQLen", lambda: {"actual_seq_qlen": [4] * 2049, "actual_seq_kvlen": [4] * 2049}),
    "zeros at the end of one list": ("actualSeqKvLen", lambda: {"actual_seq_qlen": [4, 0]}),
    "a small triangle": ("attenMask", lambda: triangle(atten_mask=TRIANGLE[:64, :64].npu())),
    "a mask of int8": ("attenMask", lambda: triangle(atten_mask=TRIANGLE.to(torch.int8).npu())),
    "an empty band": ("nextTokens", lambda: triangle(4, pre_tockens=1, next_tockens=-2)),
    "rows hidden whole": ("attenMask", lambda: triangle(actual_seq_kvlen=[1, 4])),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_attention(name: str) -> None:
    argument, changes = TRAINING[name]
    page = "npu_fusion_attention.md" if name in ("lengths beyond the tokens", "zeros at the end of one list") else TRAIN
    assert_refused("aclnnFlashAttentionVarLenScore", argument, page, lambda: train(**changes()))
