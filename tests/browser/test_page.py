"""The chat page in headless Chromium."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from ascend_m1_serve.api import ApiOptions
from ascend_m1_serve.front import Asked

from ..serve.api.conftest import service  # noqa: F401  (a fixture)
from ..serve.api.running import Running, embedded, running

_ASKED, _LONG = Asked(), {"max_tokens": 900, "ignore_eos": True}
QUESTION = "What does ICD-10-CM code J45 mean?"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture
def page(browser: Browser, service: Running) -> Iterator[Page]:  # noqa: F811
    with browser.new_page() as page:
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(service.url)
        yield page
        assert problems == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


def test_a_conversation(page: Page) -> None:
    ask(page, QUESTION)
    expect(page.locator("article.assistant")).to_have_text("Asthma")
    expect(page.locator("#speed")).to_have_text(re.compile(r"^\d+ tokens, [\d.]+ tokens/s$"))
    expect(page.locator("#state")).to_have_text(re.compile(r"^cpu float32 · 0 running · 0 waiting · cache 0 %$"))
    expect(page.get_by_label("Model")).to_have_value("m1-icd10")
    page.get_by_label("Message").press_sequentially(QUESTION.replace("J45", "A00"))
    page.keyboard.press("Enter")
    expect(page.locator("article.assistant").nth(1)).not_to_be_empty()
    page.get_by_role("button", name="New").click()
    expect(page.locator("article")).to_have_count(0)


# The first answer begins and does not end before it is given up; the page's fetch tells of every request for one.
HALF = """
const real = window.fetch;
window.asked = [];
window.fetch = (url, options = {}) => {
  if (!url.endsWith("completions")) return real(url, options);
  window.asked.push(JSON.parse(options.body).messages);
  if (window.asked.length > 1) return real(url, options);
  const event = 'data: {"choices": [{"delta": {"content": "half"}}]}\\n\\n';
  const body = new ReadableStream({ start(controller) {
    controller.enqueue(new TextEncoder().encode(event));
    options.signal.addEventListener("abort", () => controller.error(new DOMException("", "AbortError")));
  } });
  return Promise.resolve(new Response(body));
};
"""


def test_a_new_conversation_begins_empty(page: Page) -> None:
    """During an answer, too, which belongs to the old one."""
    page.add_init_script(HALF)
    page.reload()
    ask(page, "Once")
    expect(page.locator("article.assistant")).to_have_text("half")
    page.get_by_role("button", name="New").click()
    expect(page.locator("article")).to_have_count(0)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    ask(page, QUESTION)
    expect(page.locator("article.assistant")).to_have_text("Asthma")
    assert page.evaluate("asked") == [[{"role": "user", "content": text}] for text in ("Once", QUESTION)]


def test_an_answer_can_be_stopped(page: Page, service: Running) -> None:  # noqa: F811
    """While the engine is full the answer does not begin."""
    streams = service.call(
        lambda: [service.front.engine.submit([5], service.front.sampling(_ASKED, **_LONG)) for _ in range(16)]
    )
    ask(page, QUESTION)
    expect(page.locator("#state")).to_contain_text("16 running")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    service.call(lambda: [stream.abort() for stream in streams])


def test_what_the_server_refuses_is_shown(page: Page) -> None:
    ask(page, "word " * 5000)
    expect(page.locator("article.error")).to_contain_text("the prompt has")
    ask(page, QUESTION)
    expect(page.locator("article.assistant")).to_have_text("Asthma")


def test_a_key(browser: Browser) -> None:
    with running(embedded(max_length=256), ApiOptions(key="k")) as locked, browser.new_page() as page:
        page.goto(locked.url)
        expect(page.locator("#state")).to_contain_text("wrong or no API key")
        page.get_by_label("API key").fill("k")
        ask(page, QUESTION)
        expect(page.locator("article.assistant")).to_have_text("Asthma")


def test_nothing_comes_from_elsewhere(browser: Browser, service: Running) -> None:  # noqa: F811
    seen: list[str] = []
    with browser.new_page() as page:
        page.on("request", lambda request: seen.append(request.url))
        page.goto(service.url)
        ask(page, QUESTION)
        expect(page.locator("article.assistant")).to_have_text("Asthma")
    assert all(url.startswith(service.url) for url in seen)


@contextmanager
def another_site(content: str) -> Iterator[str]:
    """Its address; every path of it is this page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content.encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


def test_a_page_of_another_site(browser: Browser) -> None:
    """It can neither stop nor use a service without a key; its link to the page may be followed."""
    with running(embedded(max_length=256), ApiOptions(local=True)) as own:
        use = f"fetch('{own.url}/infer', {{method: 'POST', mode: 'no-cors', body: '{{\"inputs\": \"x\"}}'}})"
        content = f"<img src={own.url}/stopService><script>{use}</script><a href={own.url}/>chat</a>"
        with another_site(content) as url, browser.new_page() as page:
            with page.expect_response("**/infer") as used, page.expect_event("requestfailed"):  # the image
                page.goto(url)
            assert used.value.status == 403
            assert not own.front.draining
            page.get_by_role("link").click()
            ask(page, QUESTION)
            expect(page.locator("article.assistant")).to_have_text("Asthma")
