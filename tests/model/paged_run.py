"""Greedy generation over a paged cache, as a server would do it: prompts in pieces, then decode steps together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.buckets import BucketedDecoder
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import BLOCK_SIZE, PagedCache
from ascend_m1.steps import Chunk, prefill_step

MAX_LENGTH = 512


@dataclass
class Run:
    """What came out: logits [vocab] after each prompt, and the tokens after it."""

    logits: list[Tensor]
    tokens: list[list[int]]


class Server:
    """A model over a paged cache, sequences in shuffled rows and blocks, so that nothing is right by position."""

    def __init__(self, model: BaichuanM1ForCausalLM, sequences: int, graph: str | None = None) -> None:
        weight = model.lm_head.weight
        per_row = MAX_LENGTH // BLOCK_SIZE
        self.model = InferenceModel(model, MAX_LENGTH)
        self.cache = PagedCache(model.config, sequences + 1, (sequences + 1) * per_row, weight.dtype, weight.device)
        self.device = weight.device
        self.decoder = self._decoder(graph)
        blocks = torch.randperm((sequences + 1) * per_row).view(-1, per_row).tolist()
        self.rows = torch.randperm(sequences + 1)[:sequences].tolist()
        self.blocks = [blocks[row] for row in self.rows]

    def _decoder(self, graph: str | None) -> BucketedDecoder:
        """With room for one sequence more than there is work for: most batches are filled up."""
        return BucketedDecoder(self.model, self.cache, self.cache.rows, MAX_LENGTH, graph)

    @contextmanager
    def through(self, graph: str) -> Iterator[None]:
        """Decode through another graph for a while."""
        before, self.decoder = self.decoder, self._decoder(graph)
        try:
            yield
        finally:
            self.decoder = before

    def run(self, prompts: list[list[int]], steps: int, chunk: int = MAX_LENGTH, apart: int = 0) -> Run:
        """``steps`` tokens after each prompt; a sequence begins ``apart`` steps after the one before, and ends so."""
        result = self.prefill(prompts, chunk)
        self.decode(result.tokens, [len(prompt) for prompt in prompts], steps, apart)
        return result

    @torch.no_grad()
    def prefill(self, prompts: list[list[int]], chunk: int = MAX_LENGTH) -> Run:
        """All prompts, ``chunk`` tokens of each at a time, and the first token after each."""
        held, logits = [0] * len(prompts), [torch.empty(0)] * len(prompts)
        while waiting := [i for i, prompt in enumerate(prompts) if held[i] < len(prompt)]:
            pieces = [self._chunk(i, held[i], prompts[i][held[i] : held[i] + chunk]) for i in waiting]
            last = self.model(prefill_step(pieces, self.cache, self.device), self.cache).cpu()
            for i, piece, row in zip(waiting, pieces, last, strict=True):
                held[i], logits[i] = piece.length, row
        return Run(logits, [[int(row.argmax())] for row in logits])

    def decode(self, tokens: list[list[int]], held: list[int], steps: int, apart: int = 0) -> None:
        """Append to each sequence's one token until there are ``steps``; ``held`` tokens are in the cache."""
        begins = [i * apart for i in range(len(tokens))]
        for now in range(steps - 1 + begins[-1]):
            self.step(tokens, held, [i for i, begin in enumerate(begins) if begin <= now < begin + steps - 1])

    @torch.no_grad()
    def step(self, tokens: list[list[int]], held: list[int], which: list[int] | None = None) -> None:
        """One decode step of all sequences, or of some; appends to ``tokens``."""
        which = list(range(len(tokens))) if which is None else which
        chunks = [self._chunk(i, held[i], tokens[i][-1:]) for i in which]
        for i, token in zip(which, self.decoder.step(chunks).tokens.tolist(), strict=True):
            tokens[i].append(token)
            held[i] += 1

    def _chunk(self, i: int, held: int, tokens: list[int]) -> Chunk:
        return Chunk(self.rows[i], self.blocks[i], held, tokens)
