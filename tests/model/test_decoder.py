"""Decode steps: what is refused before anything is written, what fills a batch up, many sizes over one cache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.buckets import BucketedDecoder, bucket_sizes
from ascend_m1.decode import Buffers, Decoder
from ascend_m1.errors import AscendM1Error, CacheError, InputError
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import BLOCK_SIZE, FILLERS, PagedCache
from ascend_m1.steps import Chunk, prefill_step

from .golden import load_model

CPU = torch.device("cpu")
ROWS, BLOCKS = 3, 6
GOOD = Chunk(row=1, blocks=[2, 3], held=130, tokens=[7])


def parts(max_length: int = 256, rows: int = ROWS) -> tuple[InferenceModel, PagedCache]:
    model = load_model("hybrid")
    return InferenceModel(model, max_length), PagedCache(model.config, rows, 2 * rows, torch.float32, "cpu")


WRONG: list[tuple[dict[str, Any], type[AscendM1Error], str]] = [
    ({"row": -1}, CacheError, "row=-1: .* rows 0 to 2"),
    ({"row": ROWS}, CacheError, "row=3: .* rows 0 to 2"),  # a filler's
    ({"row": 0}, CacheError, "row=0 is also chunk 0's"),
    ({"held": -1}, CacheError, "held=-1: "),
    ({"blocks": []}, CacheError, "131 tokens do not fit into 0 blocks of 128: give it 2"),
    ({"blocks": [2]}, CacheError, "131 tokens do not fit into 1 blocks of 128: give it 2"),
    ({"blocks": [-1, 3]}, CacheError, "block -1: .* blocks 0 to 5"),
    ({"blocks": [2, BLOCKS]}, CacheError, "block 6: .* blocks 0 to 5"),  # the fillers'
    ({"blocks": [2, 0]}, CacheError, "block 0 is also written by chunk 0: give each its own copy"),
    ({"tokens": [199]}, InputError, "token 199: .* ids 0 to 198"),
    ({"tokens": [-100]}, InputError, "token -100: .* ids 0 to 198"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=lambda value: str(value))
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_wrong_chunk_is_named(kind: str, change: dict[str, Any], error: type[AscendM1Error], message: str) -> None:
    model, cache = parts()
    chunks = [Chunk(0, [0], 3, [1]), replace(GOOD, **change)]
    decoder = Decoder(model, cache, 4, 256, "eager")
    with pytest.raises(error, match=f"^chunk 1: .*{message}") as raised:
        decoder.step(chunks) if kind == "decode" else prefill_step(chunks, cache, CPU)
    assert "\n" not in str(raised.value)
    for layer in cache.layers:
        assert not any(tensor.any() for tensor in (layer.k, layer.v, layer.state)), "nothing was written"


@pytest.mark.parametrize(
    ("chunks", "error", "message"),
    [
        ([], InputError, "without chunks"),
        ([replace(GOOD, tokens=[])], InputError, "chunk 0: 0 tokens: a decode step takes one"),
        ([replace(GOOD, tokens=[1, 2])], InputError, "chunk 0: 2 tokens: a decode step takes one"),
        ([replace(GOOD, held=200)], InputError, "chunk 0: held=200: .* max_length=200"),
        ([replace(GOOD, blocks=[0, 1, 2])], CacheError, r"chunk 0: 3 blocks: .* 2 \(max_length=200\)"),
        ([replace(GOOD, row=row, blocks=[row]) for row in range(3)], InputError, "3 sequences .* made for 2"),
    ],
)
def test_what_a_decoder_refuses(chunks: list[Chunk], error: type[AscendM1Error], message: str) -> None:
    model, cache = parts()
    with pytest.raises(error, match=message):
        Decoder(model, cache, 2, 200, "eager").step(chunks)


def test_what_a_prefill_refuses() -> None:
    _, cache = parts()
    with pytest.raises(InputError, match="without chunks"):
        prefill_step([], cache, CPU)
    with pytest.raises(InputError, match="chunk 0: tokens is empty"):
        prefill_step([replace(GOOD, tokens=[])], cache, CPU)
    with pytest.raises(CacheError, match="chunk 0: block 1 is also written by chunk 0"):
        prefill_step([Chunk(0, [1, 1], 0, [1] * 200)], cache, CPU)


def test_blocks_that_are_only_read_may_be_shared() -> None:
    """Two sequences that begin with the same 128 tokens go on from one block that holds them."""
    model, cache = parts()
    same, tails, new = list(range(1, BLOCK_SIZE + 1)), [[5, 6], [7]], 9
    with torch.no_grad():  # rings and states are a row's own, so both rows read the beginning
        model(prefill_step([Chunk(row, [row], 0, same) for row in range(2)], cache, CPU), cache)
        for layer in cache.layers[::2]:
            layer.k[1] = torch.nan  # of global layers; nobody needs it now
        held = [Chunk(row, [0, 2 + row], BLOCK_SIZE, tail) for row, tail in enumerate(tails)]
        model(prefill_step(held, cache, CPU), cache)
        logits = Decoder(model, cache, 2, 256).step([replace(c, held=c.length, tokens=[new]) for c in held]).logits
        for got, tail in zip(logits, tails, strict=True):
            want = load_model("hybrid")(torch.tensor([[*same, *tail, new]])).logits[0, -1]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_what_a_decoder_cannot_be() -> None:
    model, cache = parts(200)
    with pytest.raises(InputError, match="graph 'fast' is not known"):
        Decoder(model, cache, 2, 200, "fast")
    for graph in ("npugraph", "npugraph_ex", "cann"):
        with pytest.raises(InputError, match=f"graph '{graph}' cannot be used here: it needs an NPU, .* on cpu"):
            Decoder(model, cache, 2, 200, graph)
    for batch in (-1, 0, FILLERS + 1):
        with pytest.raises(InputError, match=f"batch={batch}: give 1 to 128"):
            BucketedDecoder(model, cache, batch, 200)
    for length in (0, 201):
        with pytest.raises(InputError, match=f"max_length={length}: .* 1 to 200 tokens"):
            Decoder(model, cache, 2, length)
    with pytest.raises(CacheError, match="at least one of each"):
        PagedCache(model.config, 0, 2, torch.float32, "cpu")


@pytest.mark.parametrize("max_length", [1, 16])
def test_a_batch_is_filled_up_under_short_tables(max_length: int) -> None:
    """A filler is the first token of a sequence, whatever the batch: its position lies in the shortest table."""
    model, cache = parts(max_length)
    chunk = Chunk(0, [0], 0, [5])
    alone = Decoder(model, cache, 1, max_length, "eager").step([chunk])
    filled = Decoder(model, cache, FILLERS, max_length, "eager").step([chunk])
    torch.testing.assert_close(filled.logits, alone.logits)


def test_fillers_share_nothing() -> None:
    """Rows and slots of their own, beyond those of any sequence; NaN in them reaches nobody."""
    _, cache = parts()
    buffers = Buffers(FILLERS, 2, cache, CPU)
    assert buffers.fill([GOOD]) == ([131] + [1] * (FILLERS - 1), [8] + [1] * (FILLERS - 1))
    _, positions, slots, ring_slots, rows, *_ = buffers.data[: 8 * FILLERS].view(8, FILLERS)[:, 1:]
    assert not positions.any()
    spare = {"slots": (slots, BLOCKS), "ring": (ring_slots, ROWS * cache.ring_blocks)}
    for name, (got, block) in spare.items():
        assert len(set(got.tolist())) == FILLERS - 1, name
        assert set((got // BLOCK_SIZE).tolist()) == {block}, name
    assert len(set(rows.tolist())) == FILLERS - 1
    assert rows.min() >= ROWS


def test_more_sizes_than_torch_compiles_of_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives a code object up after eight compiled forms; nine sizes here, and one of them twice."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # dynamo alone, without a compiler
    torch._dynamo.reset()
    small = {"num_hidden_layers": 1, "sliding_window_layers": [0]}
    config = BaichuanM1Config(**load_model("hybrid").config.to_dict() | small)
    model = InferenceModel(BaichuanM1ForCausalLM(config).eval(), 128)
    cache = PagedCache(config, 9, 9, torch.float32, "cpu")
    chunks = [Chunk(row, [row], 0, [row + 1]) for row in range(9)]
    want = Decoder(model, cache, 9, 128, "eager").step(chunks)
    for size in [*range(1, 10), 9]:
        got = Decoder(model, cache, size, 128, "inductor").step(chunks[:size])
        torch.testing.assert_close(got.logits, want.logits[:size])


def test_bucket_sizes() -> None:
    assert [bucket_sizes(batch) for batch in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]
    assert bucket_sizes(100) == [1, 2, 4, 8, 16, 32, 64, 100]


def test_the_smallest_bucket_runs() -> None:
    model, cache = parts(rows=7)
    buckets = BucketedDecoder(model, cache, 6, 256)
    chunks = [Chunk(row, [row], 0, [row + 1]) for row in range(7)]
    want = Decoder(model, cache, 7, 256).step(chunks)
    made: set[int] = set()
    for count in (3, 1, 6, 2, 5):
        got = buckets.step(chunks[:count])
        torch.testing.assert_close(got.logits, want.logits[:count])
        assert torch.equal(got.tokens, want.tokens[:count])
        made.add(next(size for size in (1, 2, 4, 6) if size >= count))
        assert {decoder.batch for decoder in buckets.decoders if decoder.ready} == made
    with pytest.raises(InputError, match="7 sequences in a decode step made for 6"):
        buckets.step(chunks)


def test_warm_up_makes_all_and_touches_no_sequence() -> None:
    model, cache = parts()
    buckets = BucketedDecoder(model, cache, 3, 256)
    buckets.warm_up()
    assert all(decoder.ready for decoder in buckets.decoders)
    for spec, layer in zip(model.config.layer_specs, cache.layers, strict=True):
        blocks = BLOCKS if spec.window is None else ROWS * cache.ring_blocks
        assert not layer.k[:blocks].any()
        assert not layer.state[:ROWS].any()
