"""The record of what the compilers said is what they say."""

from __future__ import annotations

import json

from tests.lowering import report


def test_record_is_what_this_machine_finds() -> None:
    recorded = json.loads(report.RECORD.read_text(encoding="utf-8"))
    assert recorded == report.build(), "write it anew: python -m tests.lowering.report"
