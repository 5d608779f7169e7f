"""The whole command against a server: what it sends, prints, writes and returns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ascend_m1.cli import Parser
from ascend_m1.errors import InputError
from ascend_m1_serve.bench import cli
from ascend_m1_serve.cli import KEY_VARIABLE
from ascend_m1_serve.cli import add_parser as add_serve_parser

from .conftest import Bench
from .server import PROMPT_TOKENS, Known

STATISTICS = {"mean", "median", "p90", "p95", "p99"}


def test_everything(known: Known, bench: Bench, tmp_path: Path) -> None:
    known.first, known.gap = 0.05, 0.01
    file, picture = tmp_path / "out.json", tmp_path / "out.png"
    ran = bench(
        *("--url", known.url, "--requests", 12, "--concurrency", 3, "--input-len", "2:9", "--output-len", "2:6"),
        *("--warmup", 2, "--ignore-eos", "--temperature", 0, "--api-key", "hidden"),
        *("--json", file, "--plot", picture),
    )
    assert ran.status == 0
    assert ran.out.startswith("12 requests completed, 0 failed")
    assert "at most 3 at once" in ran.out
    assert known.at_most == 3
    assert len(known.bodies) == 14
    for body in known.bodies:
        assert (body["model"], body["ignore_eos"], body["temperature"], body["stream"]) == ("first", True, 0.0, True)
        assert 2 <= len(body["messages"][0]["content"].split()) <= 9
        assert 2 <= body["max_tokens"] <= 6
    assert picture.read_bytes().startswith(b"\x89PNG")

    text = file.read_text()
    assert "hidden" not in text
    content = json.loads(text)
    assert set(content) == {"date", "versions", "arguments", "summary", "requests"}
    assert set(content["versions"]) == {"python", "ascend-m1", "httpx", "numpy"}
    assert content["arguments"]["model"] == "first"
    assert content["arguments"]["rate"] is None
    summary, records = content["summary"], content["requests"]
    tokens = [body["max_tokens"] for body in known.bodies[2:]]
    assert sorted(record["output_tokens"] for record in records) == sorted(tokens)
    assert summary["output_tokens"] == sum(tokens)
    assert summary["prompt_tokens"] == 12 * PROMPT_TOKENS
    assert summary["output_tokens_per_second"] == pytest.approx(sum(tokens) / summary["duration"])
    assert (summary["completed"], summary["failed"], summary["unfinished"]) == (12, 0, 0)
    assert set(summary["latency"]) == {"ttft", "tpot", "itl", "e2e", "wait"}
    assert all(set(found) == STATISTICS for found in summary["latency"].values())
    assert summary["latency"]["wait"]["p99"] > 0.05  # nine had to wait
    for record in records:
        assert record["ttft"] >= 0.05
        assert len(record["itl"]) == record["output_tokens"] - 1
        assert record["end"] > record["start"] >= record["scheduled"] == 0
        assert (record["counted_by"], record["finish_reason"], record["error"]) == ("usage", "length", None)


def test_rate(known: Known, bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    ran = bench(
        *("--url", known.url, "--model", "second", "--endpoint", "completions", "--requests", 20),
        *("--rate", 40, "--burstiness", 4, "--seed", 3, "--output-len", 1, "--json", file),
    )
    assert ran.status == 0
    assert all(body["model"] == "second" and isinstance(body["prompt"], str) for body in known.bodies)
    records = json.loads(file.read_text())["requests"]
    due = [record["scheduled"] for record in records]
    assert due == sorted(due)
    assert 0.25 < due[-1] < 0.8  # 19 gaps of 1/40 s; six standard deviations are 0.33 s
    assert all(-0.001 <= record["start"] - record["scheduled"] < 0.2 for record in records)


def test_failures(known: Known, bench: Bench, tmp_path: Path) -> None:
    known.fail_every, known.usage = 3, False
    file = tmp_path / "out.json"
    ran = bench("--url", known.url, "--requests", 7, "--output-len", 2, "--json", file, "--plot", tmp_path / "a.png")
    assert ran.status == 1
    assert ran.out.startswith("5 requests completed, 2 failed")
    assert "first failure: HTTP 503: out of luck\n" in ran.out
    assert "5 answers came without usage" in ran.out
    content = json.loads(file.read_text())
    assert (content["summary"]["failed"], content["summary"]["output_tokens"]) == (2, 10)
    assert sum(record["error"] == "HTTP 503: out of luck" for record in content["requests"]) == 2


def test_nobody_answers(bench: Bench) -> None:
    nobody = ("--url", "http://127.0.0.1:1", "--requests", 2)
    with pytest.raises(InputError, match=r"models: ConnectError.*start the server or correct --url"):
        bench(*nobody)
    with pytest.raises(InputError, match="warming up: ConnectError"):
        bench(*nobody, "--model", "m", "--warmup", 1)
    ran = bench(*nobody, "--model", "m")
    assert ran.status == 1
    assert ran.out.startswith("0 requests completed, 2 failed")


def test_dataset(known: Known, bench: Bench, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    lines = [{"prompt": f"p{i}", "max_tokens": i + 1} for i in range(3)]
    data.write_text("\n".join(map(json.dumps, lines)))
    ran = bench("--url", known.url, "--dataset", data)
    assert "repeat" not in ran.err
    assert sorted(body["max_tokens"] for body in known.bodies) == [1, 2, 3]
    ran = bench("--url", known.url, "--dataset", data, "--requests", 5, "--warmup", 1)
    assert "holds 3 prompts: they repeat" in ran.err
    assert ran.out.startswith("5 requests completed")


def test_key_from_the_environment(known: Known, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench("--url", known.url, "--requests", 1, "--output-len", 1)
    assert "authorization" not in known.headers[-1]
    monkeypatch.setenv("OPENAI_API_KEY", "from outside")
    bench("--url", known.url, "--requests", 1, "--output-len", 1)
    assert known.headers[-1]["authorization"] == "Bearer from outside"
    monkeypatch.setenv("ASCEND_M1_API_KEY", "the server's")
    bench("--url", known.url, "--requests", 1, "--output-len", 1)
    assert known.headers[-1]["authorization"] == "Bearer the server's"


def test_the_products_two_commands_meet() -> None:
    parser = Parser(prog="ascend-m1")
    commands = parser.add_subparsers(parser_class=Parser)
    cli.add_parser(commands)
    add_serve_parser(commands)
    assert parser.parse_args(["bench", "serve"]).url == f"http://127.0.0.1:{parser.parse_args(['serve']).port}"
    assert cli.KEY_VARIABLES[0] == KEY_VARIABLE


def test_results_are_whole_or_not_there(known: Known, bench: Bench, tmp_path: Path) -> None:
    """A run that cannot write its results leaves the earlier ones."""
    file = tmp_path / "out.json"
    file.write_text("earlier")
    (tmp_path / ".out.json.part").mkdir()  # what cannot be written to
    with pytest.raises(OSError, match="directory"):
        bench("--url", known.url, "--requests", 1, "--output-len", 1, "--json", file)
    assert file.read_text() == "earlier"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--requests", "0"], "--requests 0: give 1 or more"),
        (["--concurrency", "0"], "--concurrency 0: give 1 or more"),
        (["--warmup", "-1"], "--warmup -1: give 0 or more"),
        (["--seed", "-1"], "--seed -1: give 0 or more"),
        (["--rate", "0"], "--rate 0: give requests per second above 0"),
        (["--rate", "nan"], "--rate nan: give"),
        (["--burstiness", "inf"], "--burstiness inf: give a number above 0"),
        (["--temperature", "-1"], "--temperature -1: give 0 or more"),
        (["--dataset", "a", "--input-len", "3"], "give one of them"),
        (["--input-len", "x"], "--input-len 'x': give a length"),
        (["--output-len", "0"], "--output-len '0': give a length"),
        (["--dataset", "/absent.jsonl"], "/absent.jsonl: No such file"),
        (["--json", "/absent/a.json"], "--json /absent/a.json: there is no folder /absent"),
        (["--plot", "/absent/a.png"], "--plot /absent/a.png: there is no folder /absent"),
        (["--plot", "a.txt"], "--plot a.txt: is drawn as PNG"),
        (["--url", "nowhere"], "--url nowhere: is no server's address"),
        (["--endpoint", "infer"], "invalid choice"),
        (["--requests", "many"], "invalid int value"),
    ],
)
def test_wrong_options(bench: Bench, options: list[str], message: str) -> None:
    with pytest.raises(InputError) as raised:
        bench(*options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_not_installed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^httpx and matplotlib missing: pip install httpx matplotlib$"):
        bench("--plot", "a.png")


def test_ctrl_c_prints_what_was_measured(known: Known, tmp_path: Path) -> None:
    known.gap = 0.02
    file = tmp_path / "out.json"
    command = [
        sys.executable,
        "-m",
        "tests.serve.bench.command",
        "--url",
        known.url,
        "--requests",
        "50",
        "--rate",
        "20",
    ]
    command += ["--output-len", "10", "--json", str(file)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    root = Path(__file__).parents[3]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, cwd=root, text=True, **pipes)
    deadline = time.monotonic() + 60
    while not (known.finished >= 5 and known.under_way):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert " requests completed, 0 failed" in out
    content = json.loads(file.read_text())
    summary = content["summary"]
    assert 4 <= summary["completed"] < 50
    assert summary["output_tokens"] == 10 * summary["completed"]
    assert summary["unfinished"] == sum(record["end"] is None for record in content["requests"])
