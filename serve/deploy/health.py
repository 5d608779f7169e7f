"""Whether a service answers at one of these addresses: exit status 0, else 1. For a container's health check.

python health.py URL...
"""

from __future__ import annotations

import ssl
import sys
import urllib.request
from collections.abc import Sequence


def healthy(url: str) -> bool:
    """Whether it answers 200. Its certificate is not looked at: it is of another name than this machine's own."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=3, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:  # nobody there, or another status
        return False


def main(urls: Sequence[str]) -> int:
    return 0 if any(map(healthy, urls)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
