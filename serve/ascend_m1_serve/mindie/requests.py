"""Parameters of requests in MindIE's own, TGI's, vLLM's and Triton's families: names, types and ranges as data.

Source: MindIE-LLM's manual and server; where they differ the wider range is taken. Unknown fields are ignored, null is
absent, a whole number is taken for a float.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ascend_m1.errors import InputError

from ..front import check_unicode

Kind = Literal["float", "integer", "boolean", "string"]
_TYPES: dict[Kind, tuple[type, ...]] = {"float": (float, int), "integer": (int,), "boolean": (bool,), "string": (str,)}
_MOST = 2**31 - 1
_MOST_STOPS, _STOP_CHARACTERS = 1024, 32768  # of a request, together


@dataclass(frozen=True)
class Parameter:
    """A field.

    Attributes:
        low, high: of a number. open_low, open_high: which are not included.
        besides: a value outside of the range that is taken, too.
        pattern: of a text, whole.
    """

    kind: Kind
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    besides: int | None = None
    pattern: str | None = None


Family = dict[str, Parameter]
_PENALTY = Parameter("float", -2, 2)
_FLAG = Parameter("boolean")
_SEED = Parameter("integer", 0, 2**64 - 1)
_LENGTH = Parameter("integer", 1, _MOST)
_SHARE = Parameter("float", 0, 1, open_low=True)
_POSITIVE = Parameter("float", 0, open_low=True)

_OLD: Family = {
    "temperature": _POSITIVE,
    "top_k": Parameter("integer", 1, _MOST),
    "top_p": Parameter("float", 0, 1, open_low=True, open_high=True),
    "repetition_penalty": _POSITIVE,
    "seed": _SEED,
    "max_new_tokens": _LENGTH,
    "do_sample": _FLAG,
    "details": _FLAG,
    "typical_p": _SHARE,
    "watermark": _FLAG,
}
_URGENT: Family = {
    "priority": Parameter("integer", 1, 5),
    "timeout": Parameter("integer", 0, 65535, open_low=True),
}
OWN: Family = _OLD | _URGENT
TGI: Family = _OLD | {
    "decoder_input_details": _FLAG,
    "return_full_text": _FLAG,
    "truncate": Parameter("integer", 0, _MOST),
    "adapter_id": Parameter("string", pattern=r"[A-Za-z0-9_./-]{1,256}"),
}
TRITON: Family = OWN | {
    "top_k": Parameter("integer", 0, _MOST),
    "top_p": _SHARE,
    "batch_size": Parameter("integer", 1, _MOST),
    "perf_stat": _FLAG,
}
VLLM: Family = {
    "temperature": Parameter("float", 0),
    "top_k": Parameter("integer", 1, _MOST, besides=-1),
    "top_p": _SHARE,
    "repetition_penalty": _POSITIVE,
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "seed": _SEED,
    "max_tokens": _LENGTH,
    "include_stop_str_in_output": _FLAG,
    "skip_special_tokens": _FLAG,
    "ignore_eos": _FLAG,
    "stream": _FLAG,
    "n": Parameter("integer", 1, _MOST),
    "best_of": Parameter("integer", 1, _MOST),
    "model": Parameter("string"),
}
TRITON_ID = Parameter("string", pattern=r"[A-Za-z0-9_-]{1,256}")


def values(content: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """What is given of a family's parameters. Raises InputError for a wrong type or a value out of range."""
    return {name: value(name, content[name], rule) for name, rule in family.items() if content.get(name) is not None}


def value(name: str, given: Any, rule: Parameter) -> Any:
    """One of them, checked."""
    if type(given) not in _TYPES[rule.kind]:  # a bool is an int to isinstance
        raise InputError(f"{name} must be {rule.kind} type.")
    if isinstance(given, str):
        check_unicode(given)
        if rule.pattern is not None and not re.fullmatch(rule.pattern, given):
            raise InputError(f"{name} must match {rule.pattern}.")
    elif not isinstance(given, bool) and given != rule.besides and not _in_range(given, rule):
        low, high = "(" if rule.open_low else "[", ")" if rule.open_high else "]"
        raise InputError(f"{name} must be in {low}{_text(rule.low)}, {_text(rule.high)}{high}.")
    return given


def stops(given: Any, longest: int = _STOP_CHARACTERS) -> list[str]:
    """Stop strings, one or a list, of up to ``longest`` characters each. Raises InputError."""
    if given is None:
        return []
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or not all(isinstance(stop, str) for stop in found):
        raise InputError("stop must be string type or a list of strings.")
    if len(found) > _MOST_STOPS:
        raise InputError(f"stop must have at most {_MOST_STOPS} strings, got {len(found)}.")
    for stop in found:
        check_unicode(stop)
    if not all(1 <= len(stop) <= longest for stop in found) or sum(map(len, found)) > _STOP_CHARACTERS:
        raise InputError(f"stop must have 1 to {longest} characters each, {_STOP_CHARACTERS} together.")
    return found


def token_ids(name: str, given: Any, most: int) -> list[int]:
    """A list of ids below ``most``. Raises InputError."""
    if not isinstance(given, list) or not all(type(token) is int for token in given):
        raise InputError(f"{name} must be a list of integers.")
    if not all(0 <= token < most for token in given):
        raise InputError(f"{name} must have ids in [0, {most - 1}].")
    return given


def text(name: str, content: Mapping[str, Any]) -> str:
    """A prompt. Raises InputError."""
    given = content.get(name)
    if not isinstance(given, str):
        raise InputError(f"{name} must be string type." if given is not None else f"Not found {name}.")
    if not 0 < len(given) <= 4 * 2**20:
        raise InputError(f"{name} must have 1 to 4194304 characters, got {len(given)}.")
    check_unicode(given)
    return given


def parameters(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object "parameters". Raises InputError."""
    given = content.get("parameters")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError("parameters must be object type.")
    return given


def _in_range(given: float, rule: Parameter) -> bool:
    if rule.kind == "float" and not abs(given) <= sys.float_info.max:  # NaN, infinity, a whole number without end
        return False
    low = given > rule.low if rule.open_low else given >= rule.low
    return low and (given < rule.high if rule.open_high else given <= rule.high)


def _text(bound: float) -> str:
    return str(bound) if math.isinf(bound) else f"{bound:g}" if isinstance(bound, float) else str(bound)


def joined(pieces: Sequence[str]) -> str:
    """The prompt and the text that follows it, as TGI and vLLM give both: one space between."""
    return " ".join(pieces)
