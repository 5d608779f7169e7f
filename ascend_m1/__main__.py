"""``python -m ascend_m1`` is the command ``ascend-m1``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
