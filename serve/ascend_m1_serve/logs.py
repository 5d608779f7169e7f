"""The service's log: one JSON object a line on stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

from transformers.utils import logging as library

LEVELS = ("debug", "info", "warning", "error")
FIELDS = "fields"  # of ``extra``: more members of a line


class JsonLines(logging.Formatter):
    """time, level, logger, message, and the record's own fields; an exception's trace as one text."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


def start_logging(level: str) -> None:
    """Everything of ``level`` and above to stderr, warnings and what transformers logs, too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    library.disable_default_handler()  # whose lines are plain
    library.enable_propagation()
    logging.getLogger("uvicorn.access").disabled = True  # the service has a line of its own for each request
