"""Choosing tokens: each request by its own options and its own random numbers, whatever else is in the batch.

One number is drawn per token and looked up in the cumulated probabilities of the candidates, so that a seed gives the
same answer alone and in company. Logits are float32 on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..protocol import Logprob, Sampling
from .request import Request

# Candidates looked at first when top_p or min_p narrow the choice: seldom are there more.
_CANDIDATES = 1024
# Repetition penalties beyond these say no more, and their logits would leave float32.
_WEAKEST, _STRONGEST = 1e-30, 1e30


def is_plain(sampling: Sampling) -> bool:
    """Whether the likeliest token is taken, and nothing more is asked for."""
    return sampling.temperature == 0 and sampling.logprobs is None and not _changes_logits(sampling)


def choose(request: Request, logits: Tensor) -> tuple[int | None, tuple[Logprob, ...]]:
    """The request's next token from its logits [vocab], which may be changed, and the log-probabilities asked for.

    None: no token can be chosen, for a logit is no number, as after an overflow in float16.
    """
    sampling = request.sampling
    if not logits.max().isfinite():  # the largest of some numbers and a NaN is NaN
        return None, ()
    report = None if sampling.logprobs is None else torch.log_softmax(logits, dim=-1)
    if _changes_logits(sampling):
        adjust(request, logits)
    token = int(logits.argmax()) if sampling.temperature == 0 else draw(logits, sampling, request.random.random())
    return token, () if report is None else _logprobs(report, token, sampling.logprobs or 0)


def _changes_logits(sampling: Sampling) -> bool:
    neutral = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1, 0, 0)
    return not neutral or sampling.grammar is not None or bool(sampling.logit_bias)


def adjust(request: Request, logits: Tensor) -> None:
    """Grammar, bias and penalties, in place."""
    sampling = request.sampling
    if request.matcher is not None:
        request.matcher.mask(logits)
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias))
        logits[ids] += torch.tensor(list(sampling.logit_bias.values()), dtype=logits.dtype)
    if sampling.repetition_penalty != 1:
        ids = torch.tensor(request.ids).unique()
        seen = logits[ids]
        factor = min(max(sampling.repetition_penalty, _WEAKEST), _STRONGEST)
        logits[ids] = torch.where(seen > 0, seen / factor, seen * factor)
    if request.counts and (sampling.frequency_penalty or sampling.presence_penalty):
        ids = torch.tensor(list(request.counts))
        counts = torch.tensor(list(request.counts.values()), dtype=logits.dtype)
        logits[ids] -= counts * sampling.frequency_penalty + sampling.presence_penalty


def draw(logits: Tensor, sampling: Sampling, number: float) -> int:
    """The candidate at this place, from 0 to 1, of the cumulated probabilities in order of falling probability.

    temperature, then top_k, then top_p among those, then min_p, as vLLM and transformers do it; candidates of equal
    probability are in the order of their ids.
    """
    below = logits.double()
    below -= below.max()  # first: the largest over a tiny temperature is no number any more
    weights = below.div_(sampling.temperature).exp_()
    limit = min(sampling.top_k or len(weights), len(weights))
    narrow = sampling.top_p < 1 or sampling.min_p > 0
    ids, kept = _nucleus(weights, min(limit, _CANDIDATES) if narrow else limit, limit, sampling)
    cumulated = kept.cumsum(0)
    place = int(torch.searchsorted(cumulated, number * float(cumulated[-1]), right=True))
    return int(ids[min(place, len(ids) - 1)])


def _nucleus(weights: Tensor, first: int, limit: int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Ids and weights that remain of the ``limit`` heaviest, looked for among the ``first`` heaviest to begin with."""
    kept, ids = _heaviest(weights, first)
    whole = float(weights.sum()) if limit == len(weights) else float(_heaviest(weights, limit)[0].sum())
    before = kept.cumsum(0) - kept
    inside = before < sampling.top_p * whole if sampling.top_p < 1 else torch.ones_like(kept, dtype=torch.bool)
    inside &= kept >= sampling.min_p * kept[0]
    inside[0] = True
    if first < limit and bool(inside[-1]):  # the border was not among them
        return _nucleus(weights, limit, limit, sampling)
    return ids[inside], kept[inside]


def _heaviest(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The heaviest weights in falling order, and their ids; equal ones by id."""
    if count == len(weights):
        values, ids = weights.sort(descending=True, stable=True)
        return values, ids
    least = weights.topk(count, sorted=False).values.min()
    ids = (weights >= least).nonzero().squeeze(1)  # by id; more than count if there are ties at the border
    values, order = weights[ids].sort(descending=True, stable=True)
    return values[:count], ids[order[:count]]


def _logprobs(report: Tensor, token: int, count: int) -> tuple[Logprob, ...]:
    """The token's own, then the ``count`` likeliest."""
    chosen = Logprob(token, float(report[token]), int((report > report[token]).sum()) + 1)
    if not count:
        return (chosen,)
    values, ids = report.topk(count)
    likeliest = zip(ids.tolist(), values.tolist(), range(1, count + 1), strict=True)
    return (chosen, *(Logprob(*entry) for entry in likeliest))
