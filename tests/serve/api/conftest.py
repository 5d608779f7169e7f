"""One service for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from .running import Running, embedded, running


@pytest.fixture(scope="package")
def service() -> Iterator[Running]:
    with running(embedded()) as found:
        yield found
        assert found.front.open == 0
        assert found.front.engine.stats().free_blocks == found.front.engine.limits.blocks


@pytest.fixture(scope="package")
def client(service: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client
