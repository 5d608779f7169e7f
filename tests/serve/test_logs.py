"""The log: one JSON object a line, whoever writes."""

from __future__ import annotations

import json
import subprocess
import sys

from .test_command import environment

WRITERS = """
import logging, warnings
from transformers.utils import logging as library
from ascend_m1_serve.logs import start_logging
start_logging("info")
logging.getLogger("uvicorn.error").info("a server")
library.get_logger("transformers.tokenization_utils_base").warning("a library")
warnings.warn("a warning")
"""


def test_every_line_is_an_object() -> None:
    ran = subprocess.run([sys.executable, "-c", WRITERS], env=environment(), capture_output=True, text=True, check=True)
    messages = [json.loads(line)["message"] for line in ran.stderr.splitlines()]
    assert messages[:2] == ["a server", "a library"]
    assert "UserWarning: a warning" in messages[2]
    assert len(messages) == 3
