"""How many files and connections this process may have open."""

from __future__ import annotations

import resource


def allow_connections(count: int) -> None:
    """Let this process open so many connections, as far as the system permits: each is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 100 if hard == resource.RLIM_INFINITY else min(count + 100, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
