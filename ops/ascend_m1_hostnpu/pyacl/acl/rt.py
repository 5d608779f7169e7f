"""The part ``acl.rt``; every function returns CANN's error code."""

from __future__ import annotations

import ctypes

_INVALID_PARAM = 107000  # ACL_ERROR_RT_PARAM_INVALID


def memcpy(target: int, room: int, source: int, size: int, kind: int) -> int:
    """Copy ``size`` bytes between addresses of host or device memory (``kind``: aclrtMemcpyKind), at once."""
    if size > room or kind not in range(5):
        return _INVALID_PARAM
    ctypes.memmove(target, source, size)
    return 0
