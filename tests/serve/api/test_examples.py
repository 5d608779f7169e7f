"""The examples of the documents, asked as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import httpx
import pytest

from .running import Running

ROOT = Path(__file__).parents[3]
FAMILIES = ("/v1/chat/completions", "/generate", "/generate", "/v2/models/m1-icd10/generate", "/infer")
ADDRESS = "http://127.0.0.1:1025"


def blocks(document: str, language: str) -> list[str]:
    """Of a document."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def requests(document: str) -> list[tuple[str, str]]:
    """Path and body of each call of curl."""
    found = []
    for block in blocks(document, "bash"):
        words = shlex.split(block, comments=True)
        for start in (index for index, word in enumerate(words) if word == "curl"):
            url, option, body = [word for word in words[start + 1 : start + 5] if word != "-N"][:3]
            assert (url.startswith(ADDRESS), option) == (True, "-d")
            found.append((url.removeprefix(ADDRESS), body))
    return found


def test_one_for_each_family() -> None:
    assert tuple(path for path, _ in requests("docs/serving.md")) == FAMILIES
    for document in ("README.md", "README.zh.md"):
        assert [path for path, _ in requests(document)] == [FAMILIES[0]]


@pytest.mark.parametrize("document", ["docs/serving.md", "README.md", "README.zh.md"])
def test_each_answers_what_the_document_says(service: Running, document: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}  # curl's
    for path, body in requests(document):
        answer = httpx.post(service.url + path, content=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        pieces = re.findall(r'"content":"(\w+)"', answer.text) if "stream" in body else [answer.text]
        assert "Asthma" in "".join(pieces)


def test_the_client(service: Running, capsys: pytest.CaptureFixture[str]) -> None:
    example = next(block for block in blocks("docs/serving.md", "python") if "OpenAI" in block)
    exec(example.replace(ADDRESS, service.url), {})
    assert capsys.readouterr().out == "Asthma\n"


def test_what_the_text_alone_is_answered(service: Running) -> None:
    """Without the chat format; and the format that the document tells is the template's."""
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    question = "What does ICD-10-CM code J45 mean?"
    for path, name in (("/generate", "inputs"), ("/infer", "inputs")):
        answer = httpx.post(service.url + path, json={name: question}, timeout=60).json()["generated_text"]
        assert f"`{answer}`" in text
    user, system = {"role": "user", "content": "question"}, {"role": "system", "content": "text"}
    for chat in ([user], [system, user], [user, {"role": "assistant", "content": "answer"}, user]):
        made = service.front.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert f"`{made}`" in text


def test_installing_keeps_the_clone() -> None:
    """Without -e pip would put a copy in the place of what quickstart.sh installed."""
    for path in (*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'pip install "?(ascend-m1|\.)\[', text), path
        assert "pip install --no-deps ascend-m1" not in text
