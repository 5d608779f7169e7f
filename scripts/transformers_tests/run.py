"""Run transformers' own model and generation tests against Baichuan-M1 and write the result as a table.

    python scripts/transformers_tests/run.py ~/src/transformers --out report.md

The checkout should be of the installed version's tag. Needs ``pip install pytest parameterized accelerate httpx``.
Only a pytest that reports subtests (9 and newer) counts each test method; set RUN_SLOW=1 for the slow ones too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
TESTS = Path(__file__).resolve().with_name("test_baichuan_m1.py")


@dataclass(frozen=True)
class Result:
    """One test: its name, ``passed``, ``failed`` or ``skipped``, and the first line of the reason."""

    name: str
    outcome: str
    reason: str


def run_tests(checkout: Path, select: str | None) -> list[Result]:
    """Run the test file in a fresh interpreter that finds the checkout's ``tests`` package first."""
    paths = [str(checkout), str(PROJECT), str(PROJECT / "ops"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(TESTS), "-q", "--tb=short", f"--junitxml={report}"]
        command += ["-c", os.devnull, f"--rootdir={TESTS.parent}", "--import-mode=importlib", "-p", "no:cacheprovider"]
        command += ["-k", select] if select else []
        subprocess.run(command, cwd=checkout, env=environment, check=False)
        if not report.is_file():
            raise SystemExit("pytest wrote no report: see its output above")
        return read_report(report)


def read_report(report: Path) -> list[Result]:
    """The test cases of a JUnit XML report."""
    results = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                lines = (child.get("message") or child.text or "").strip().splitlines()
                reason = lines[0] if lines else ""
        results.append(Result(case.get("name", ""), outcome, reason))
    return results


def table(results: list[Result], version: str) -> str:
    """Markdown: counts, then each failure, then the reasons for skipping with their numbers."""
    counts = Counter(result.outcome for result in results)
    passed, failed, skipped = (counts[outcome] for outcome in ("passed", "failed", "skipped"))
    lines = [f"transformers {version}: {passed} passed, {failed} failed, {skipped} skipped"]
    lines += ["", "| failed test | reason |", "|---|---|"]
    lines += [f"| {result.name} | {cell(result.reason)} |" for result in results if result.outcome == "failed"]
    reasons = Counter(cell(result.reason) for result in results if result.outcome == "skipped")
    lines += ["", "| skipped | reason |", "|---|---|", *(f"| {n} | {why} |" for why, n in reasons.most_common())]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Fit for one table cell."""
    return text.replace("|", "\\|")[:160]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of the transformers repository, with its tests folder")
    parser.add_argument("--out", type=Path, help="write the table here instead of printing it")
    parser.add_argument("--select", help="only the tests that match this pytest -k expression")
    args = parser.parse_args()
    if not (args.checkout / "tests" / "causal_lm_tester.py").is_file():
        parser.error(f"{args.checkout}: no tests/causal_lm_tester.py: give a checkout of the transformers repository")
    import transformers

    text = table(run_tests(args.checkout.resolve(), args.select), transformers.__version__)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
