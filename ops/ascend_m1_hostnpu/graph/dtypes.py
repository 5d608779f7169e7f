"""Data types of the graph: GE has two numberings, one in attributes and outputs, one in the protobuf's descriptors."""

from __future__ import annotations

import torch

# ge::DataType: the attribute dst_type of Cast, _output_dtypes of a graph.
GE_TYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    9: torch.int64,
    11: torch.float64,
    12: torch.bool,
    27: torch.bfloat16,
}

# ge.proto DataType: the descriptor of a constant.
PROTO_TYPES = {
    1: torch.float32,
    2: torch.float16,
    3: torch.int8,
    4: torch.uint8,
    5: torch.int16,
    7: torch.int32,
    8: torch.int64,
    11: torch.bool,
    12: torch.float64,
    27: torch.bfloat16,
}


def ge_type(code: int) -> torch.dtype:
    """The torch dtype of a ge::DataType number.

    Raises:
        NotImplementedError: for a type this interpreter does not hold.
    """
    if code not in GE_TYPES:
        raise NotImplementedError(f"CANN graph: no torch dtype for ge::DataType {code}; add it to dtypes.py")
    return GE_TYPES[code]


def proto_type(code: int) -> torch.dtype:
    """The torch dtype of a protobuf DataType number.

    Raises:
        NotImplementedError: for a type this interpreter does not hold.
    """
    if code not in PROTO_TYPES:
        raise NotImplementedError(f"CANN graph: no torch dtype for protobuf DataType {code}; add it to dtypes.py")
    return PROTO_TYPES[code]
