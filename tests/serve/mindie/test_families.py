"""MindIE's endpoints by their documented examples, over a real server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ..api.conftest import service  # noqa: F401  (a fixture)
from ..api.running import Running, wait_until

PROMPT = "<C_Q>What does ICD-10-CM code J45 mean?<C_A>"
ANSWER = "Asthma"
MODEL = "m1-icd10"
LONG = {"inputs": "Once", "parameters": {"max_new_tokens": 900}}


class Client:
    """POST and GET with JSON."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60)

    def post(self, path: str, **content: Any) -> Any:
        return self.http.post(path, json=content)

    def ok(self, path: str, **content: Any) -> Any:
        answer = self.post(path, **content)
        assert answer.status_code == 200, answer.text
        assert answer.headers["connection"] == "close"
        return answer.json()

    def get(self, path: str) -> Any:
        return self.http.get(path)


@pytest.fixture
def client(service: Running) -> Client:  # noqa: F811
    return Client(service.url)


@pytest.fixture
def ids(service: Running) -> list[int]:  # noqa: F811
    return list(service.call(lambda: service.front.text_ids(PROMPT)))


def test_vllm(client: Client) -> None:
    assert client.ok("/generate", prompt=PROMPT, max_tokens=20) == {"text": [f"{PROMPT} {ANSWER}"]}
    several = client.ok("/generate", prompt=PROMPT, n=2, best_of=2, temperature=0.5, seed=1)
    assert len(several["text"]) == 2
    body = client.post("/generate", prompt=PROMPT, stream=True).content
    *events, end = body.split(b"\0")
    assert end == b""
    assert "".join(json.loads(event)["text"][0] for event in events) == ANSWER
    ended = client.post("/generate", prompt=PROMPT + ANSWER, stream=True, max_tokens=3)
    assert ended.content == b'{"text":[""]}\0'  # an answer without text is told, too


def test_the_likeliest_of_several(client: Client) -> None:
    """best_of > n: those whose tokens' log-probabilities, as the other interface tells them, have the largest sums."""
    sampled = {"temperature": 1.5, "seed": 3, "max_tokens": 12, "ignore_eos": True}
    ask = {"prompt": PROMPT, "n": 6, "logprobs": 0, **sampled}
    choices = client.http.post("/v1/completions", json=ask).json()["choices"]
    sums = {choice["text"]: sum(choice["logprobs"]["token_logprobs"]) for choice in choices}
    wanted = sorted(sums, key=lambda text: -sums[text])[:2]
    assert len(sums) == 6
    assert wanted != [choice["text"] for choice in choices[:2]]
    found = client.ok("/generate", prompt=PROMPT, n=2, best_of=6, **sampled)
    assert found["text"] == [f"{PROMPT} {text}" for text in wanted]


def test_tgi(client: Client, ids: list[int]) -> None:
    ask = {"inputs": PROMPT, "parameters": {"details": True, "decoder_input_details": True}}
    found = client.ok("/generate", **ask)
    assert found["generated_text"] == ANSWER
    details = found["details"]
    assert (details["finish_reason"], details["seed"]) == ("eos_token", None)
    assert [token["id"] for token in details["prefill"]] == ids
    assert details["generated_tokens"] == len(details["tokens"])
    assert set(details["tokens"][0]) == {"id", "logprob", "special", "text"}
    assert client.ok("/", inputs=PROMPT) == [{"generated_text": ANSWER}]
    assert client.ok("/generate", inputs=PROMPT, parameters=None) == {"generated_text": ANSWER}
    full = client.ok("/generate", inputs=PROMPT, parameters={"return_full_text": True, "stop": ["thm"]})
    assert full == {"generated_text": f"{PROMPT} As"}
    cut = client.ok("/generate", inputs=PROMPT, parameters={"truncate": 3, "decoder_input_details": True})
    assert [token["id"] for token in cut["details"]["prefill"]] == ids[-3:]


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
def test_tgi_stream(client: Client, path: str) -> None:
    answer = client.post(path, inputs=PROMPT, stream=True, parameters={"details": True, "do_sample": True, "seed": 7})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert "[DONE]" not in answer.text
    *rest, last = events
    assert all(event["generated_text"] is None and event["details"] is None for event in rest)
    assert isinstance(last["token"]["id"], list)
    assert "".join(event["token"]["text"] for event in events) == last["generated_text"] == ANSWER
    assert last["details"]["finish_reason"] == "eos_token"
    assert last["details"]["seed"] == 7
    assert last["details"]["generated_tokens"] == len(events)


def test_infer(client: Client, ids: list[int]) -> None:
    found = client.ok("/infer", inputs=PROMPT)
    assert found["generated_text"] == ANSWER
    assert found["details"]["finish_reason"] == "eos_token"
    assert client.ok("/infer_token", input_id=ids) == found
    answer = client.post("/infer", inputs=PROMPT, stream=True, parameters={"details": True})
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert [event["prefill_time"] is None for event in events] == [False, *[True] * (len(events) - 1)]
    assert [event["decode_time"] is None for event in events] == [True, *[False] * (len(events) - 1)]
    assert events[-1]["generated_text"] == ANSWER
    assert events[-1]["token"]["text"] is None
    assert events[-1]["details"]["generated_tokens"] == len(events)
    for content, text in (({"inputs": "x", "input_id": [1]}, "Input conflict."), ({}, "Not found inputs.")):
        assert client.post("/infer", **content).json()["error"] == text


def test_tokenizer(client: Client, ids: list[int]) -> None:
    found = client.ok("/v1/tokenizer", inputs=PROMPT, do_decode=True)
    assert found["token_number"] == len(ids)
    assert "".join(found["tokens"]) == PROMPT
    assert client.ok("/v1/tokenizer", inputs="哮喘", do_decode=False)["tokens"] == []
    chinese = client.ok("/v1/tokenizer", inputs="哮喘", do_decode=True)
    assert chinese["tokens"] == ["哮", "喘"]
    assert chinese["token_number"] >= 2


def test_triton_text(client: Client) -> None:
    path = f"/v2/models/{MODEL}"
    found = client.ok(f"{path}/generate", id="a123", text_input=PROMPT, parameters={"details": True, "perf_stat": True})
    details = found.pop("details")
    assert found == {"id": "a123", "model_name": MODEL, "model_version": None, "text_output": ANSWER}
    assert details["finish_reason"] == "eos_token"
    count = details["generated_tokens"]
    assert [len(details[name]) for name in ("batch_size", "queue_wait_time", "perf_stat")] == [count] * 3
    answer = client.post(f"{path}/generate_stream", text_input=PROMPT, parameters={"details": True})
    events = answer.text.split("\n\n")
    assert all(event.startswith("data:{") for event in events[:-1])
    contents = [json.loads(event.removeprefix("data:")) for event in events[:-1]]
    assert "".join(content["text_output"] for content in contents) == ANSWER
    assert isinstance(contents[0]["details"]["queue_wait_time"], int)
    assert contents[-1]["details"]["finish_reason"] == "eos_token"


def test_triton_tensors(client: Client, ids: list[int], service: Running) -> None:  # noqa: F811
    tensor = {"name": "input0", "shape": [1, len(ids)], "datatype": "UINT32", "data": ids}
    for content in (
        {"inputs": [tensor], "parameters": {"max_new_tokens": 30}},
        {"inputs": [{**tensor, "parameters": {"max_new_tokens": 30}}]},
    ):
        found = client.ok(f"/v2/models/{MODEL}/infer", id="42", outputs=[{"name": "output0"}], **content)
        (output,) = found["outputs"]
        assert (found["id"], output["name"], output["datatype"]) == ("42", "output0", "UINT32")
        assert output["shape"] == [1, len(output["data"])]
        assert service.front.tokenizer.decode(output["data"], skip_special_tokens=True) == ANSWER


def test_triton_stop(client: Client, service: Running) -> None:  # noqa: F811
    """A request that waits, for the engine is full."""
    path = f"/v2/models/{MODEL}"
    assert client.post(f"{path}/stopInfer", id="a1").status_code == 404
    full = {"prompt": "Once", "n": 16, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with client.http.stream("POST", "/v1/completions", json=full) as others, ThreadPoolExecutor(1) as pool:
        events = others.iter_lines()
        next(events)
        ask = {"id": "a1", "text_input": PROMPT, "parameters": {"details": True}}
        asked = pool.submit(lambda: Client(service.url).ok(f"{path}/generate", **ask))
        while Client(service.url).post(f"{path}/stopInfer", id="a1").status_code == 404:
            assert not asked.done()
        found = asked.result(30)
        assert (found["text_output"], found["details"]["finish_reason"]) == ("", "abort")
        assert [found["details"][name] for name in ("batch_size", "queue_wait_time")] == [[], []]


def all_blocks_free(client: Client) -> bool:
    found = client.get("/v1/status").json()["resource"]
    return bool(found["availBlockNum"] == found["totalNpuBlockNums"])


def test_queries(client: Client) -> None:
    assert client.get("/v2").json()["name"] == "MindIE Server"
    assert client.get(f"/v2/models/{MODEL}").json()["inputs"][0]["name"] == "input0"
    assert client.get(f"/v2/models/{MODEL}/config").json()["max_seq_len"] > 0
    missing = client.get("/v2/models/other")
    assert (missing.status_code, missing.json()) == (
        404,
        {"error": "Model other not found.", "error_type": "NotFoundError"},
    )
    assert client.get("/info").json()["models"][0]["model_id"] == MODEL
    assert client.get("/v1/config").json()["modelName"] == MODEL
    assert client.get("/v1/status").json()["service"]["roleStatus"] == "RoleReady"
    # A request before this test may still be on its way out.
    wait_until(lambda: all_blocks_free(client))
    slots = client.get(f"/v2/models/{MODEL}/getSlotCount").json()
    assert slots["total_slots"] == slots["free_slots"] == 16
    rows = client.get("/metrics-json").json()["result"]
    assert [row["metric"][0]["__name__"] for row in rows][:2] == ["TTFT", "TBT"]
    assert all(isinstance(row["value"], str) for row in rows)


def test_health(client: Client) -> None:
    for path in ("/health", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready"):
        answer = client.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
    for path in ("/health/timed", "/health/timed-5"):
        assert client.get(path).json() == {"status": "healthy"}
    for path in ("/health/timed-0", "/health/timed-601", "/health/timed-x"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("path", "content", "text"),
    [
        ("/generate", {}, "Not found inputs or prompt."),
        ("/generate", {"prompt": 3}, "prompt must be string type."),
        ("/generate", {"prompt": "x", "top_k": 1.5}, "top_k must be integer type."),
        ("/generate", {"prompt": "x", "top_k": 0}, "top_k must be in [1, 2147483647]."),
        ("/generate", {"prompt": "x", "stream": 1}, "stream must be boolean type."),
        ("/generate", {"prompt": "x", "top_p": 0}, "top_p must be in (0, 1]."),
        ("/generate", {"prompt": "x", "stop": [""]}, "stop must have 1 to 32768 characters each, 32768 together."),
        ("/generate", {"prompt": "x", "stop_token_ids": False}, "stop_token_ids must be a list of integers."),
        ("/generate", {"prompt": "x", "n": 2, "temperature": 0}, "n and best_of must be 1 where temperature is 0."),
        ("/generate", {"prompt": "x", "best_of": 2, "temperature": 0}, "n and best_of must be 1 where"),
        ("/generate", {"prompt": "x", "n": 3, "best_of": 2}, "best_of must not be less than n, which is 3."),
        ("/generate", {"prompt": "x", "best_of": 2, "stream": True}, "best_of must be equal to n, which is 1, in a"),
        ("/generate", {"prompt": "x", "n": 129}, "129 answers to a prompt: this server gives at most 128: lower n"),
        ("/generate", {"inputs": "x", "parameters": {"top_p": 1.0}}, "top_p must be in (0, 1)."),
        ("/generate", {"inputs": "x", "parameters": {"temperature": 0}}, "temperature must be in (0, inf]."),
        ("/generate", {"inputs": "x", "parameters": {"temperature": 10**400}}, "temperature must be in (0, inf]."),
        ("/generate", {"prompt": "x", "max_tokens": 10**400}, "max_tokens must be in [1, 2147483647]."),
        ("/generate", {"inputs": "x", "parameters": {"temperature": "a"}}, "temperature must be float type."),
        ("/generate", {"inputs": "x", "parameters": []}, "parameters must be object type."),
        ("/generate_stream", {"inputs": "x", "parameters": {"decoder_input_details": True}}, "decoder_input_details"),
        ("/infer", {"inputs": ""}, "inputs must have 1 to 4194304 characters, got 0."),
        ("/infer", {"inputs": "x", "parameters": {"priority": 6}}, "priority must be in [1, 5]."),
        ("/infer_token", {"input_id": [-1]}, "input_id must have ids in [0, "),
        (f"/v2/models/{MODEL}/generate", {"text_input": "x", "id": "a b"}, "id must match "),
        (f"/v2/models/{MODEL}/stopInfer", {"id": []}, "id must be string type."),
        (f"/v2/models/{MODEL}/stopInfer", {}, "id must be string type."),
        (f"/v2/models/{MODEL}/infer", {"inputs": []}, "inputs must be a list of one object."),
    ],
)
def test_refusals(client: Client, path: str, content: dict[str, Any], text: str) -> None:
    answer = client.post(path, **content)
    assert answer.status_code == 422
    found = answer.json()
    assert found["error"].startswith(text)
    assert found["error_type"] == "Input Validation Error"


def test_null_is_absent_and_whole_numbers_are_floats(client: Client) -> None:
    assert client.ok("/generate", prompt=PROMPT, top_k=None, temperature=0, unknown=1)["text"][0].endswith(ANSWER)


def test_what_is_for_other_servers(client: Client) -> None:
    assert client.post("/v1/role/prefill").json()["error_type"] == "Bad Request"
    assert client.get("/dresult").status_code == 400


def test_prompts_that_are_too_long(client: Client) -> None:
    answer = client.post("/generate", inputs="word " * 5000)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "Input Validation Error")
