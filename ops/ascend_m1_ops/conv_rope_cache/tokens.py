"""Where the tokens of one forward pass stand: positions, slots of the cache, sequences and their state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenTable:
    """Tokens [tokens] of sequences [sequences] laid end to end; all tensors int32, on the device of the tokens.

    Attributes:
        positions: row of the rotation's tables for each token.
        slots: row of the cache, seen as [blocks · block_size], where each token's k and v go; −1: they are not stored.
        starts: index of the sequence that begins with each token; −1: the token continues the one above it.
        cu_seqlens: [sequences + 1]; sequence s holds the tokens cu_seqlens[s]:cu_seqlens[s + 1]. Tokens after the last
            are padding: slot −1, start −1.
        state_rows: row of the state of each sequence, no two alike; −1: none (zeros before it, nothing remembered).
        continues: [sequences] 1: that row holds raw k and v of the token before; 0: the sequence begins afresh.
    """

    positions: Tensor
    slots: Tensor
    starts: Tensor
    cu_seqlens: Tensor
    state_rows: Tensor
    continues: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All of them, in the order of the registered operator."""
        return self.positions, self.slots, self.starts, self.cu_seqlens, self.state_rows, self.continues

    @staticmethod
    def prefill(
        lengths: Sequence[int], positions: Tensor, slots: Tensor, state_rows: Tensor, continues: Tensor
    ) -> TokenTable:
        """Sequences, or chunks of them, of any lengths; 0 is allowed.

        Args:
            lengths: tokens of each sequence, on the host; more positions than their sum are padding.
            positions, slots: int32 [tokens].
            state_rows, continues: int32 [sequences].
        """
        borders = [0, *accumulate(lengths)]
        starts = torch.full(positions.shape, -1, dtype=torch.int32)
        for sequence, length in enumerate(lengths):
            if length:
                starts[borders[sequence]] = sequence
        device = positions.device
        cu_seqlens = torch.tensor(borders, dtype=torch.int32).to(device)
        return TokenTable(positions, slots, starts.to(device), cu_seqlens, state_rows, continues)
